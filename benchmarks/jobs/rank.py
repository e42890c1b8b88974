"""What `quadrank bench rank` measures, each in a process of its own: bundles, peers as graphs, and their times."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.measured import peak_mib
from benchmarks.inputs.mmctr_shaped import LEVELS, START
from features.store.schema import FIRST_VALUE

FEWEST_CALLS, MOST_CALLS = 5, 400
CALLS_OF_A_P99 = 100
ROWS_TRIED = 200
RESPOND = ", parse, encode and respond"  # behind the name of a bundle
SHARE_WARM = 0.1  # of the time of the turns
INT8 = "_int8"
OF_PAPER = ("embedding_dim", "vector_dim", "attention_dim", "layers", "rows", "tower")
Feed = dict[str, np.ndarray]


def export_ours(feature_set: str, out: str, preset: str, sizes: dict[str, Any], batch: int = 1_024) -> dict[str, Any]:
    """Export a model of a preset with the weights that it begins with, in single precision and with products of 8 bits.

    Args:
        feature_set: folder.
        out: new folder of the bundle; that with products of 8 bits is `<out>_int8`.
        preset: name of a file of conf/model.
        sizes: model settings over those of the paper.
        batch: rows from which batch norm learns its moments, so that no layer is trivial.

    Returns:
        `parameters`; `tower`, the width of what the quadratic layers multiply; `mib` of the bundle.
    """
    from ctr.export.export_bundle import GRAPHS_ALONE, Extras, export_bundle
    from ctr.export.precision.put import VariantChoice
    from features.store.feature_set import FeatureSet

    data = FeatureSet.open(Path(feature_set))
    model = as_it_begins(data, preset, sizes, batch)
    exported, _ = (
        export_bundle(
            model,
            data,
            Path(path),
            model_version=preset,
            architecture=preset,
            metrics={},
            controls={},
            git_revision="",
            extras=extras,
        )
        for path, extras in (
            (out, GRAPHS_ALONE),
            # The weights are not trained: what is lost says nothing.
            (f"{out}{INT8}", Extras(variant=VariantChoice("int8_products", 1.0, ROWS_TRIED))),
        )
    )
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tower": model.network.logit.in_features,
        "mib": round(exported.bytes / 2**20, 1),
    }


def as_it_begins(data: Any, preset: str, sizes: dict[str, Any], batch: int = 1_024) -> Any:
    """`model_of` in eval mode, after one batch of rows from which batch norm learned its moments."""
    import torch

    from ctr.data.loader import Loader

    model = model_of(data, preset, sizes)
    with torch.no_grad():
        model.train().outputs(next(iter(Loader(data, "train", batch, seed=1, shuffle=True).epoch(0))))
    return model.eval()


def model_of(data: Any, preset: str, sizes: dict[str, Any]) -> Any:
    """The readers of a preset of conf/model at the widths, layers and rows of the paper, weights as they begin."""
    import torch

    from benchmarks.harness.measured import ROOT
    from benchmarks.inputs.presets import DEFAULTS, PAPER
    from ctr.config import load_preset
    from ctr.data.feature_tables import frozen_tables
    from ctr.model.click_model import ClickModel

    paper = load_preset(PAPER, DEFAULTS, {"model": sizes}).model
    of_paper = {name: getattr(paper, name) for name in OF_PAPER}
    own = load_preset(ROOT / "conf" / "model" / f"{preset}.yaml", DEFAULTS, {}).model
    torch.manual_seed(1)
    model = ClickModel(own.model_copy(update=of_paper), data.schema)
    model.attach(frozen_tables(data))
    return model


def times(
    bundles: dict[str, str],
    graphs: dict[str, str],
    eager: dict[str, str],
    sizes: dict[str, Any],
    feature_set: str,
    candidates: int,
    threads: int,
    seconds: float,
) -> dict[str, Any]:
    """Time every way of scoring one request, in turns.

    Args:
        bundles: ours, by name.
        graphs: peers that take a row a candidate, by name.
        eager: preset of each torch model that is not exported, by name.
        sizes: model settings over those of the paper.
        feature_set: folder of that of the torch models; peers have as many items and events.
        candidates: N of the request, whose history is as long as it may be.
        threads: of each way.
        seconds: that the turns take, more if a way is slow.

    Returns:
        `ways`: `name`, `p50_ms`, `p99_ms` (None where it was called less than 100 times) of each; of a bundle's whole
        path too, `NAME from JSON to JSON`, and of all in it but reading JSON and the model, `NAME, parse, encode and
        respond`: in turns with all else, whose tables push it out of the caches, and `warm`, with nothing between.
        `products_ms`: the least time of all matrix products of each bundle's graph. `peak_mib` of the process.
    """
    from benchmarks.harness.graph_products import least_milliseconds, products_of
    from ctr.export.onnx_export import CANDIDATES, HISTORY
    from ctr.serving.bundle import RANKER
    from features.store.feature_set import FeatureSet

    data = FeatureSet.open(Path(feature_set))
    calls: dict[str, Callable[[], object]] = {}
    for name, path in bundles.items():
        calls |= calls_of_bundle(name, Path(path), candidates, threads)
    for name, preset in eager.items():
        calls[name] = _eager_call(data, preset, sizes, candidates, threads)
    for name, path in graphs.items():
        calls[name] = _row_call(Path(path), data.schema.items, data.schema.history_max_len, candidates, threads)
    taken = alternate(calls, seconds)
    warm = {f"{name}, warm": call for name, call in calls.items() if name.endswith(RESPOND)}
    taken |= alternate(warm, SHARE_WARM * seconds)
    axes = {CANDIDATES: candidates, HISTORY: data.schema.history_max_len}
    return {
        "ways": [{"name": name, **quantiles(of)} for name, of in taken.items()],
        "products_ms": {
            name: least_milliseconds(products_of(Path(path) / RANKER, axes), threads) for name, path in bundles.items()
        },
        "peak_mib": peak_mib(),
    }


def alternate(calls: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    """Milliseconds of every call, all in turns, so that a slower moment of the machine meets all of them.

    A call that takes more than a tenth of the given time is left out once it was made five times.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    end = time.perf_counter() + seconds
    while True:
        late = time.perf_counter() > end
        due = [
            name
            for name, of in taken.items()
            if len(of) < FEWEST_CALLS or not (late or len(of) >= MOST_CALLS or np.median(of) > 100 * seconds)
        ]
        if not due:
            return taken
        for name in due:
            started = time.perf_counter()
            calls[name]()
            taken[name].append((time.perf_counter() - started) * 1e3)


def quantiles(milliseconds: list[float]) -> dict[str, float | None]:
    """`p50_ms`, and `p99_ms` where there are enough calls to tell it."""
    enough = len(milliseconds) >= CALLS_OF_A_P99
    return {
        "p50_ms": float(np.median(milliseconds)),
        "p99_ms": float(np.quantile(milliseconds, 0.99)) if enough else None,
    }


def calls_of_bundle(name: str, path: Path, candidates: int, threads: int) -> dict[str, Callable[[], object]]:
    """What is timed of one of our bundles, by name: the model, all but reading JSON and the model, and the whole path.

    Args:
        name: of the bundle.
        path: its folder.
        candidates: N of the request, whose history is as long as it may be.
        threads: of the model.

    Raises:
        ValueError: the request is not full, or has candidates that the model does not know.
    """
    from ctr.serving.answering.answers import Asked, Stages, answer, rank
    from ctr.serving.ranker import Ranker
    from features.encoding.request import Limits, parse_request

    limits = Limits(max_candidates=candidates)
    ranker = Ranker.load(path, threads, limits)
    raw = request_of(ranker.encoder, candidates)
    body = json.dumps(raw).encode()
    encoded = ranker.encode(parse_request(raw, ranker.encoder.contract, limits))
    if len(encoded.history_item) != ranker.encoder.schema.history_max_len or encoded.unknown_candidates:
        raise ValueError(f"{path}: the request is not full: {len(encoded.history_item)} events")
    scores = ranker.scores(encoded)
    scored = copy(ranker)
    scored.scores = lambda encoded: scores  # type: ignore[method-assign]
    return {
        name: lambda: ranker.scores(encoded),
        f"{name}{RESPOND}": lambda: rank(scored, Asked(raw, "1", None, Stages()), limits),
        f"{name}, from JSON to JSON": lambda: answer(ranker, body, limits),
    }


def request_of(encoder: Any, candidates: int, seed: int = 2) -> dict[str, Any]:
    """A raw request of a user whose history is full: events as the log of `mmctr_shaped` has them, or ids alone."""
    generator, schema = np.random.default_rng(seed), encoder.schema
    items = encoder.items.values.to_numpy()
    history = generator.choice(items, schema.history_max_len).tolist()
    rows: list[Any] = history
    if schema.event:
        rows = [
            {"item": item, "time": START + place, "label": int(generator.integers(2))}
            for place, item in enumerate(history)
        ]
    levels = {name: int(generator.integers(1, LEVELS + 1)) for name in ("likes_level", "views_level")}
    return {
        "user": int(encoder.users.values.to_numpy()[seed % len(encoder.users.values)]),
        "time": START + 10 * len(history),
        "context": levels,
        "history": rows,
        "candidates": generator.choice(items, candidates, replace=False).tolist(),
    }


def _row_call(path: Path, items: int, max_len: int, candidates: int, threads: int) -> Callable[[], object]:
    from ctr.serving.ranker import open_session

    session, generator = open_session(path, threads), np.random.default_rng(3)
    history_H = generator.integers(1, items - FIRST_VALUE, max_len)
    known: Feed = {
        "item": generator.integers(1, items - FIRST_VALUE, candidates),
        "history": np.repeat(history_H[None], candidates, axis=0),
        "likes": np.full(candidates, 3),
        "views": np.full(candidates, 5),
    }
    inputs = session.get_inputs()
    if [node.name for node in inputs] == ["rows"]:
        known = {"rows": generator.standard_normal((candidates, inputs[0].shape[1])).astype(np.float32)}
    feed = {node.name: known[node.name] for node in inputs}
    return lambda: session.run(None, feed)


def _eager_call(data: Any, preset: str, sizes: dict[str, Any], candidates: int, threads: int) -> Callable[[], object]:
    import torch

    from ctr.export.parity import expected
    from ctr.export.row_request import RowRequest

    torch.set_num_threads(threads)
    model, generator = model_of(data, preset, sizes).eval(), np.random.default_rng(4)
    schema = data.schema
    request = RowRequest(
        user=FIRST_VALUE,
        history_item=generator.integers(FIRST_VALUE, schema.items, schema.history_max_len),
        candidate_item=generator.integers(FIRST_VALUE, schema.items, candidates),
        context={field.name: np.full(1, FIRST_VALUE) for field in schema.context},
        history_events={
            field.name: np.full(schema.history_max_len, 0.1, np.float32)
            if field.kind == "numeric"
            else np.full(schema.history_max_len, FIRST_VALUE)
            for field in schema.event
        },
        candidate={field.name: np.full(candidates, 0.1, np.float32) for field in schema.candidate},
    )
    return lambda: expected(model, request)
