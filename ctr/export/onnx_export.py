"""Export: a trained model to the ONNX graphs of a bundle, published only if they score as the model does.

Shapes: H history items of one request, N candidates, D item width.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import platform
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxscript import ir
from torch import Tensor, nn
from torch.export import Dim

from ctr.export.golden_requests import golden_requests
from ctr.export.model_card import model_card
from ctr.export.parity import check_item_parity, check_parity, grid_requests, random_requests
from ctr.export.precision.put import FP32_ALONE, VariantChoice, put_variant
from ctr.export.scoring.scorer_parity import check_scorer_parity
from ctr.export.scoring.scoring_graph import ScoringGraph
from ctr.export.serving_graph import ItemGraph, RequestGraph
from ctr.model.click_model import ClickModel
from ctr.serving.bundle import (
    GOLDEN,
    ITEM_DELTA,
    ITEM_TABLE,
    ITEMS,
    MODEL_CARD,
    RANKER,
    REQUEST,
    SCORER,
    BundleMetadata,
    Golden,
    publish,
    seal,
    write_json,
)
from ctr.serving.ranker import Ranker
from features.encoding.encoder import ENCODER, LOG_COLUMNS, USERS, VOCABULARIES, Encoder
from features.encoding.snapshot import COUNTERS
from features.errors import DataError, NumericalError
from features.store.feature_set import FeatureSet, Sampling, sha256_of
from features.store.schema import Field, Schema
from features.vectors.projections import TRANSFORMS
from features.vectors.semantic_ids import SEMANTIC_IDS

OPSET = 20
HISTORY = "history"
CANDIDATES = "candidates"
ITEMS_AXIS = "items"
DELTA_AXIS = "later_items"
RANDOM_REQUESTS = 200
BATCHED_REQUESTS = 40
REQUESTS = "requests"
LEARNED = (TRANSFORMS, SEMANTIC_IDS)  # folders of what was learned from vectors
PACKAGES = ("numpy", "onnx", "onnxruntime", "onnxscript", "polars", "pyarrow", "torch")

Shape = list[int | str]


@dataclass(frozen=True)
class Extras:
    """What a bundle gets beside the graphs in single precision, each on demand.

    Args:
        pasts: the newest events of each user; the raw log is read again.
        scorer: the graph that scores many requests at once; it is compared on 40 random requests.
        variant: which variant of the ranker graph stands in its place.
    """

    pasts: bool = False
    scorer: bool = False
    variant: VariantChoice = FP32_ALONE


GRAPHS_ALONE = Extras()


@dataclass(frozen=True)
class ExportResult:
    """A published bundle.

    Args:
        path: its folder.
        max_abs_difference: largest absolute difference of a probability between ONNX and torch.
        max_logit_difference: the same in logits (`ctr.serving.agreement.logit_difference`); parity is judged by it.
        seconds: to build, export and check the graphs.
        bytes: of all its files.
        variant: of its graph.
        variants: what was tried, as `BundleMetadata.variants`.
    """

    path: Path
    max_abs_difference: float
    max_logit_difference: float
    seconds: float
    bytes: int
    variant: str
    variants: dict[str, dict[str, float]]


def export_bundle(
    model: ClickModel,
    feature_set: FeatureSet,
    out: Path,
    *,
    model_version: str,
    architecture: str,
    metrics: Mapping[str, Mapping[str, Any]],
    controls: Mapping[str, Mapping[str, Any]],
    git_revision: str,
    extras: Extras = GRAPHS_ALONE,
) -> ExportResult:
    """Export a trained model and publish the bundle at `out`, or leave nothing there.

    Before the bundle is published, a `Ranker` loads it as a server would, replays the golden requests from raw ids, and
    is compared with the torch model on a grid of edge cases and 200 random requests.

    Args:
        model: trained, with the tables of `feature_set` attached.
        feature_set: it was trained on.
        out: a new folder, or an empty one.
        model_version: names the model in every answer, e.g. the training run's id.
        architecture: `ModelConfig.architecture`.
        metrics: by split, then by metric.
        controls: the same metrics of each control.
        git_revision: of the code that trained it.
        extras: what the bundle gets beside the graphs in single precision.

    Raises:
        ConfigError: `out` exists and is not empty, or pasts of a log without events in time.
        DataError: the encoder changed since the feature set was built, or encodes a request to something else.
        NumericalError: a weight is not finite, the graph and the model disagree by more than 1e-5 in logits, or the
            variant loses more than is allowed.
    """
    started = time.perf_counter()
    schema, manifest = feature_set.schema, feature_set.manifest
    model = _for_serving(model, manifest.sampling)
    with publish(out) as folder:
        encoder = _write_encoder(feature_set, folder)
        if extras.pasts:
            # Packing needs a package of the extra `serve`.
            from ctr.export.past_snapshot import write_pasts

            write_pasts(feature_set, encoder, folder)
        golden = Golden(cases=golden_requests(model, feature_set, encoder))
        write_json(folder / GOLDEN, golden)
        example = json.dumps(golden.cases[0].request, indent=2, ensure_ascii=False)
        (folder / REQUEST).write_text(example + "\n", encoding="utf-8")
        graph = RequestGraph(model)
        inputs = export_request_graph(graph, schema, folder / RANKER)
        if extras.scorer:
            export_scoring_graph(ScoringGraph(graph), schema, folder / SCORER)
        export_item_graph(ItemGraph(model), schema, folder / ITEMS)
        metadata = BundleMetadata(
            name=manifest.name,
            model_version=model_version,
            architecture=architecture,
            fingerprint=manifest.fingerprint,
            feature_set=manifest.version,
            metrics={name: dict(values) for name, values in metrics.items()},
            controls={name: dict(values) for name, values in controls.items()},
            windows=manifest.windows,
            inputs=inputs,
            git_revision=git_revision,
            versions=_versions(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        card = model_card(metadata, feature_set.contract, schema, golden.cases[0])
        (folder / MODEL_CARD).write_text(card, encoding="utf-8")
        sealed = seal(folder, metadata)
        ranker = Ranker.load(folder)
        requests = itertools.chain(grid_requests(schema), random_requests(schema, RANDOM_REQUESTS))
        parity = check_parity(model, feature_set.users, ranker.scores, requests)
        if extras.scorer:
            check_scorer_parity(model, feature_set.users, folder, list(random_requests(schema, BATCHED_REQUESTS)))
        check_item_parity(folder, feature_set)
        if extras.variant != FP32_ALONE:
            metadata = put_variant(folder, sealed, graph.table_blocks, feature_set, extras.variant)
            card = model_card(metadata, feature_set.contract, schema, golden.cases[0])
            (folder / MODEL_CARD).write_text(card, encoding="utf-8")
            changed = (RANKER, SCORER, ITEM_TABLE, GOLDEN, MODEL_CARD)
            sealed = seal(folder, metadata, {n: entry for n, entry in sealed.files.items() if n not in changed})
            Ranker.load(folder)
    return ExportResult(
        path=out,
        max_abs_difference=parity.probability,
        max_logit_difference=parity.logit,
        seconds=time.perf_counter() - started,
        bytes=sum(entry.bytes for entry in sealed.files.values()),
        variant=sealed.variant,
        variants=sealed.variants,
    )


def export_request_graph(graph: RequestGraph, schema: Schema, path: Path) -> dict[str, Shape]:
    """Write a `RequestGraph` to `path`, its item table as `item_table.bin` beside it.

    User and context inputs have no candidate axis: they are read once a request, not once a candidate.

    Args:
        graph: `forward(*inputs)` in the order of `graph.input_names`, returning probabilities [N];
            its item table is the buffer `item_table` [items, D]; more than one output in the order of
            `graph.output_names`.

    Returns:
        Shape of every input by name, named axes as text.

    Raises:
        NumericalError: a weight is not finite, or the exporter froze an axis or made a loop.
    """
    examples = example_inputs(schema, graph.input_names)
    shapes = {name: _expected_shape(name, tensor) for name, tensor in examples.items()}
    model = _trace(graph, examples, shapes, graph.output_names)
    _move_table_out(model, "item_table", path.with_name(ITEM_TABLE))
    width = _open(model, ITEM_DELTA, DELTA_AXIS)
    _save(model, path)
    check_shapes(path, shapes | {ITEM_DELTA: [DELTA_AXIS, width]} | {name: [CANDIDATES] for name in graph.output_names})
    return shapes


def export_scoring_graph(graph: ScoringGraph, schema: Schema, path: Path) -> None:
    """Write a `ScoringGraph` to `path`, which reads the `item_table.bin` that the request graph has written beside it.

    Raises:
        NumericalError: as `export_request_graph`.
    """
    one = example_inputs(schema, graph.input_names)
    many = {name for name in one if name.startswith(("history_", "candidate_"))}
    # 3 requests: no other axis has this length.
    examples = {name: (torch.stack if name in many else torch.cat)([tensor] * 3) for name, tensor in one.items()}
    shapes: dict[str, Shape] = {
        name: [REQUESTS, *_expected_shape(name, tensor)[name not in many :]] for name, tensor in one.items()
    }
    model = _trace(graph, examples, shapes, graph.output_names)
    _move_table_out(model, "item_table", path.with_name(ITEM_TABLE), write=False)
    width = _open(model, ITEM_DELTA, DELTA_AXIS)
    _save(model, path)
    scores: dict[str, Shape] = {name: [REQUESTS, CANDIDATES] for name in graph.output_names}
    check_shapes(path, shapes | {ITEM_DELTA: [DELTA_AXIS, width]} | scores)


def export_item_graph(graph: ItemGraph, schema: Schema, path: Path) -> dict[str, Shape]:
    """Write an `ItemGraph` to `path`: encoded columns and vectors of M new items -> rows of the item table.

    Returns:
        Shape of every input by name; M is the axis `items`.

    Raises:
        NumericalError: as `export_request_graph`.
    """
    examples = example_items(schema, graph.input_names)
    shapes: dict[str, Shape] = {name: [ITEMS_AXIS, *tensor.shape[1:]] for name, tensor in examples.items()}
    model = _trace(graph, examples, shapes, graph.output_names)
    _save(model, path)
    with torch.inference_mode():
        width = graph(*examples.values()).shape[1]
    check_shapes(path, shapes | {"row": [ITEMS_AXIS, width]})
    return shapes


def check_shapes(path: Path, shapes: Mapping[str, Shape]) -> None:
    """Check that a saved graph has exactly these inputs and outputs, each axis named or fixed as given.

    An axis that was forgotten at export is frozen to the example's length without a warning, and the
    graph then fails, or scores wrongly, for every other length.

    Raises:
        NumericalError: an axis differs, or the graph holds a loop.
    """
    graph = onnx.load(path, load_external_data=False).graph
    found = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    if set(found) != set(shapes):
        raise NumericalError(f"{path}: inputs and outputs are {sorted(found)}, expected {sorted(shapes)}.")
    for name, shape in shapes.items():
        if found[name] != list(shape):
            raise NumericalError(
                f"{path}: {name} has shape {found[name]}, expected {list(shape)}: the exporter froze or freed an axis."
            )
    # A loop takes one step a candidate, some hundred times slower: nn.EmbeddingBag becomes one.
    loops = sorted({node.op_type for node in graph.node} & {"Loop", "Scan"})
    if loops:
        raise NumericalError(f"{path}: the graph holds a {loops[0]}; write that layer without one.")


def example_inputs(schema: Schema, names: Sequence[str]) -> dict[str, Tensor]:
    """Inputs of the graph's types and ranks, for tracing; no other axis has their lengths, H 5 and N 7."""
    history, candidates = 5, 7
    fields = {f"user_{f.name}": f for f in schema.user} | {f"context_{f.name}": f for f in schema.context}
    lengths = {f"history_{f.name}": history for f in schema.event}
    lengths |= {f"candidate_{f.name}": candidates for f in schema.candidate}
    fields |= {f"history_{f.name}": f for f in schema.event} | {f"candidate_{f.name}": f for f in schema.candidate}
    examples = {"history_item": torch.ones(history, dtype=torch.int64)}
    examples["candidate_item"] = torch.ones(candidates, dtype=torch.int64)
    examples |= {
        name: _example(one).expand(lengths.get(name, 1), *_example(one).shape[1:]) for name, one in fields.items()
    }
    return {name: examples[name].clone() for name in names}


def example_items(schema: Schema, names: Sequence[str]) -> dict[str, Tensor]:
    """Inputs of the item graph, for 5 items."""
    items = 5
    examples = {
        **{f"item_{f.name}": _example(f).expand(items, *_example(f).shape[1:]).clone() for f in schema.item},
        **{f"vector_{v.name}": torch.zeros(items, v.width) for v in schema.vectors},
        **{f"present_{v.name}": torch.ones(items, dtype=torch.bool) for v in schema.vectors},
    }
    return {name: examples[name] for name in names}


def _for_serving(model: ClickModel, sampling: Sampling | None) -> ClickModel:
    """A copy on the CPU that predicts the click rate of the whole log.

    If training drew negatives at a known rate, the odds that the model learned are too high by 1 / rate.
    """
    model = deepcopy(model).cpu()
    if sampling is not None and sampling.rate is not None:
        model.calibrator.shift += math.log(sampling.rate)
    return model


def _write_encoder(feature_set: FeatureSet, folder: Path) -> Encoder:
    """Save the feature set's encoder, without the paths of its raw data, which other machines do not have.

    It is first compared with the hashes of the feature set. A changed vocabulary would not be noticed later: the golden
    requests are decoded and encoded with the same vocabulary.
    """
    for name, entry in feature_set.manifest.files.items():
        path = feature_set.path / name
        kept = (ENCODER, USERS, VOCABULARIES, COUNTERS, LOG_COLUMNS, *LEARNED)
        if name.startswith(kept) and sha256_of(path) != entry.sha256:
            raise DataError(f"{path}: changed since the feature set was built. Build it again, and train on it.")
    encoder = Encoder.load(feature_set.path)
    encoder = replace(encoder, contract=encoder.contract.model_copy(update={"root": ".", "truth": None}))
    encoder.save(folder)
    shutil.copyfile(feature_set.path / USERS, folder / USERS)
    for learned in LEARNED:
        if (feature_set.path / learned).is_dir():
            shutil.copytree(feature_set.path / learned, folder / learned)
    return encoder


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **packages}


def _trace(
    graph: nn.Module, examples: Mapping[str, Tensor], shapes: Mapping[str, Shape], outputs: Sequence[str]
) -> Any:
    """Trace a module to ONNX's intermediate representation, without the exporter's references to source lines."""
    _refuse_non_finite(graph)
    dims = {text: Dim(text) for shape in shapes.values() for text in shape if isinstance(text, str)}
    axes = [{i: dims[d] for i, d in enumerate(shapes[name]) if isinstance(d, str)} for name in examples]
    with quiet_exporter():
        # Exported here, not inside torch.onnx.export: that retries a failure in ways that freeze named axes.
        exported = torch.export.export(
            graph.eval(),
            tuple(examples.values()),
            # `*inputs` is one argument to torch.export, a tuple.
            dynamic_shapes=(tuple(axes),),
        )
        program = torch.onnx.export(
            exported,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(examples),
            output_names=list(outputs),
            dynamic_shapes=(tuple(axes),),
            verbose=False,
        )
    assert program is not None
    program.model.graph.metadata_props.clear()
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
    return program.model


def _example(field: Field) -> Tensor:
    if field.kind == "numeric":
        return torch.zeros(1)
    return torch.ones((1, field.max_len) if field.kind == "tags" else 1, dtype=torch.int64)


def _expected_shape(name: str, example: Tensor) -> Shape:
    if name.startswith("candidate_"):
        return [CANDIDATES]
    if name.startswith("history_"):
        return [HISTORY]
    return list(example.shape)


def _refuse_non_finite(graph: nn.Module) -> None:
    for name, values in (*graph.named_parameters(), *graph.named_buffers()):
        if values.is_floating_point() and not bool(torch.isfinite(values).all()):
            wrong = int((~torch.isfinite(values)).sum())
            raise NumericalError(
                f"export: {wrong} of {values.numel()} values of {name} are not finite. Train again with "
                "a lower `train.learning_rate` or `train.clip_norm`; nothing was published."
            )


def _move_table_out(model: Any, buffer: str, path: Path, write: bool = True) -> None:
    """Write one initializer as raw bytes to `path` and refer to it; the rest of the graph stays one file."""
    value = _initializer(model, buffer)
    table_ID: np.ndarray = value.const_value.numpy()
    if write:
        table_ID.tofile(path)
    value.name = buffer
    value.const_value = ir.ExternalTensor(
        path.name, 0, table_ID.nbytes, value.dtype, shape=value.shape, name=buffer, base_dir=path.parent
    )


def _open(model: Any, buffer: str, axis: str) -> int:
    """Let whoever runs the graph give another value for one initializer, of any length; returns its width."""
    value = _initializer(model, buffer)
    value.name = buffer
    value.shape = ir.Shape([axis, value.shape[1]])
    model.graph.inputs.append(value)
    return int(value.shape[1])


def _initializer(model: Any, buffer: str) -> Any:
    matching = [value for name, value in model.graph.initializers.items() if name.split(".")[-1] == buffer]
    if len(matching) != 1:
        # Indexing (`table[rows]`) instead of F.embedding makes the exporter fold one copy for each use.
        known = ", ".join(model.graph.initializers)
        raise NumericalError(f"export: expected one initializer {buffer!r} in the graph, found these: {known}.")
    return matching[0]


def _save(model: Any, path: Path) -> None:
    ir.save(model, path)
    onnx.checker.check_model(path, full_check=True)


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silence the exporter's warnings about packages that are not used here and about names."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
