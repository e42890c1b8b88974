"""Export: a trained model to a bundle, published only if its graphs score as the model does."""

from __future__ import annotations

import itertools
import json
import math
import platform
import shutil
import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ctr.export.golden_requests import golden_requests
from ctr.export.layouts.parts_list import SBOM, write_parts_list
from ctr.export.model_card import model_card
from ctr.export.onnx_export import export_item_graph, export_request_graph, export_scoring_graph
from ctr.export.parity import check_item_parity, check_parity, grid_requests, random_requests
from ctr.export.precision.put import FP32_ALONE, VariantChoice, put_variant
from ctr.export.scoring.scorer_parity import check_scorer_parity
from ctr.export.scoring.scoring_graph import ScoringGraph
from ctr.export.serving_graph import ItemGraph, RequestGraph
from ctr.model.click_model import ClickModel
from ctr.serving.bundle import (
    GOLDEN,
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
from features.encoding.encoder import ENCODER, ITEM_NUMBERS, LOG_COLUMNS, USERS, VOCABULARIES, Encoder
from features.encoding.snapshot import COUNTERS
from features.errors import DataError
from features.store.feature_set import FeatureSet, Sampling, sha256_of
from features.vectors.projections import TRANSFORMS
from features.vectors.semantic_ids import SEMANTIC_IDS

RANDOM_REQUESTS = 200
BATCHED_REQUESTS = 40
LEARNED = (TRANSFORMS, SEMANTIC_IDS)  # folders of what was learned from vectors
PACKAGES = ("numpy", "onnx", "onnxruntime", "onnxscript", "polars", "pyarrow", "torch")


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
class Lineage:
    """What a model's training went on from.

    Args:
        warm_started_from: run id of that model, None for a full training.
        generation: warm starts since the last full training, this one included.
    """

    warm_started_from: str | None = None
    generation: int = 0


FULL_TRAINING = Lineage()


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
    lineage: Lineage = FULL_TRAINING,
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
        lineage: what its training went on from.

    Raises:
        ConfigError: `out` exists and is not empty, or pasts of a log without events in time.
        DataError: the encoder changed since the feature set was built, or encodes a request to something else.
        NumericalError: a weight is not finite, the graph and the model disagree by more than 1e-5 in logits, or the
            variant loses more than is allowed.
    """
    started = time.perf_counter()
    schema, manifest = feature_set.schema, feature_set.manifest
    model = for_serving(model, manifest.sampling)
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
            list_sizes=manifest.list_sizes,
            warm_started_from=lineage.warm_started_from,
            generation=lineage.generation,
        )
        card = model_card(metadata, feature_set.contract, schema, golden.cases[0])
        (folder / MODEL_CARD).write_text(card, encoding="utf-8")
        write_parts_list(folder / SBOM)
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


def for_serving(model: ClickModel, sampling: Sampling | None) -> ClickModel:
    """A copy on the CPU, in evaluation mode, that predicts the click rate of the whole log.

    If training drew negatives at a known rate, the odds that the model learned are too high by 1 / rate.
    """
    model = deepcopy(model).cpu().eval()
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
        kept = (ENCODER, USERS, VOCABULARIES, COUNTERS, LOG_COLUMNS, ITEM_NUMBERS, *LEARNED)
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
