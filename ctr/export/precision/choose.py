"""Which variant of a graph is exported: each is written, scored on validation rows and timed beside single precision.

Shapes: R rows, N candidates.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal, get_args

import numpy as np

from ctr.data.columns import column, row_weights
from ctr.evaluation.metrics import auc
from ctr.export.precision.products import Feed, quantize_products
from ctr.export.precision.tables import Block, reduce_table
from ctr.export.ranker_as_of import RankerAsOf, ranker_as_of
from ctr.export.row_request import RowRequest
from ctr.serving.agreement import logit_difference
from ctr.serving.bundle import ITEM_TABLE, RANKER, Bundle, BundleManifest
from ctr.serving.ranker import Ranker, graph_inputs, open_session
from features.encoding.encoder import Encoder
from features.encoding.request import Limits
from features.errors import DataError, NumericalError
from features.progress import progress
from features.store.feature_set import FeatureSet
from features.store.schema import UNKNOWN
from features.store.versions import instants_of

Variant = Literal["fp32", "fp16_table", "int8_table", "int8_products"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
FP32: Variant = "fp32"
AUTO: Literal["auto"] = "auto"
ROWS = 20_000  # validation rows that are scored, drawn where there are more
CALIBRATION_ROWS, CALIBRATION_CANDIDATES = 200, 20
TIMED_CANDIDATES, TIMED_CALLS, WARM_UP = 500, 40, 3
# Times this near are alike, and the smaller bundle is taken.
ALIKE = 1.03


@dataclass(frozen=True)
class Trial:
    """One variant as measured.

    Args:
        auc: on validation rows.
        auc_loss: what single precision has more, on the same rows.
        logit_difference: the largest from single precision on these rows (`ctr.serving.agreement`).
        milliseconds: median of a request of 500 candidates and a full history, one thread.
        mib: of graph and item table.
        rows: that were scored.
    """

    auc: float
    auc_loss: float
    logit_difference: float
    milliseconds: float
    mib: float
    rows: int

    def as_json(self) -> dict[str, float]:
        """All fields by name."""
        return asdict(self)


def try_variants(
    folder: Path,
    manifest: BundleManifest,
    blocks: Sequence[Block],
    feature_set: FeatureSet,
    names: Sequence[Variant],
    rows: int = ROWS,
) -> dict[Variant, Trial]:
    """Write each variant beside the graph of a bundle and measure it.

    Args:
        folder: of the bundle, in single precision; `install` removes what is written here.
        manifest: of that bundle.
        blocks: of its item table.
        feature_set: that the model was trained on. Only its validation rows are read.
        names: of the variants.
        rows: how many of them are scored at most.

    Returns:
        Trials by name, single precision among them.

    Raises:
        DataError: all of these rows that count have one label.
        NumericalError: a variant scores a row with something that is no number.
    """
    picked_R = _picked(feature_set, rows)
    labels_R = column(feature_set, "valid", "label")[picked_R]
    weights_R = row_weights(feature_set, "valid")[picked_R]
    _refuse_one_label(labels_R[weights_R > 0], feature_set.manifest.windows["valid"].rows)
    scores: dict[Variant, np.ndarray] = {}
    graphs: dict[Variant, Callable[[], object]] = {}
    timed = _timed_feed(feature_set, picked_R)
    mib: dict[Variant, float] = {}
    for name in dict.fromkeys((FP32, *names)):
        graph, table = _written(name, folder, blocks, feature_set, picked_R)
        session = open_session(graph)
        ranker = Ranker(Bundle(folder, manifest), Encoder.load(folder), session, Limits())
        with ranker_as_of(ranker, feature_set) as then:
            scores[name] = _scores(then, feature_set, picked_R, name)
        graphs[name] = _call(session, timed)
        mib[name] = (graph.stat().st_size + table.stat().st_size) / 2**20
    milliseconds = _alternate(graphs)
    found = {name: auc(labels_R, of, weights_R) for name, of in scores.items()}
    return {
        name: Trial(
            auc=found[name],
            auc_loss=found[FP32] - found[name],
            logit_difference=logit_difference(scores[name], scores[FP32]),
            milliseconds=milliseconds[name],
            mib=mib[name],
            rows=len(picked_R),
        )
        for name in scores
    }


def fastest(trials: Mapping[Variant, Trial], max_auc_loss: float) -> Variant:
    """The fastest of those that lose at most so much; of several that take about as long, the smallest."""
    allowed = {name: trial for name, trial in trials.items() if trial.auc_loss <= max_auc_loss}
    least = min(trial.milliseconds for trial in allowed.values())
    alike = [name for name, trial in allowed.items() if trial.milliseconds <= ALIKE * least]
    return min(alike, key=lambda name: (allowed[name].mib, allowed[name].milliseconds))


def refuse_loss(name: Variant, trial: Trial, max_auc_loss: float) -> None:
    """Raise NumericalError for a variant that loses more than is allowed."""
    if not trial.auc_loss <= max_auc_loss:
        raise NumericalError(
            f"--variant {name}: loses {trial.auc_loss:.5f} AUC on {trial.rows:,} validation rows, and --max-auc-loss "
            f"allows {max_auc_loss:g}. Nothing was published. Choose --variant auto, or allow more."
        )


def install(folder: Path, name: Variant, tried: Iterable[Variant]) -> None:
    """Put graphs and table of a variant in the place of those of the bundle, and remove what else was tried.

    `scorer.onnx` reads the same table; its products stay in single precision.
    """
    graph, table = _paths(folder, name)
    if table.parent == folder:
        os.replace(graph, folder / RANKER)
    else:  # every graph that reads the table was written anew
        for path in table.parent.iterdir():
            os.replace(path, folder / path.name)
    for other in tried:
        graph, table = _paths(folder, other)
        if table.parent != folder:
            shutil.rmtree(table.parent)
        elif other != FP32:
            graph.unlink(missing_ok=True)


def _paths(folder: Path, name: Variant) -> tuple[Path, Path]:
    """Graph and item table of a variant. A graph lies beside the table that it reads."""
    if name == FP32:
        return folder / RANKER, folder / ITEM_TABLE
    if name == "int8_products":
        return folder / f".{name}.onnx", folder / ITEM_TABLE
    return folder / f".{name}" / RANKER, folder / f".{name}" / ITEM_TABLE


def _written(
    name: Variant, folder: Path, blocks: Sequence[Block], feature_set: FeatureSet, picked_R: np.ndarray
) -> tuple[Path, Path]:
    """As `_paths`, once they are written."""
    graph, table = _paths(folder, name)
    if name == "int8_products":
        inputs = {node.name for node in open_session(folder / RANKER).get_inputs()}
        feeds = (
            {name: values for name, values in feed.items() if name in inputs}
            for feed in _feeds(feature_set, picked_R[:CALIBRATION_ROWS], CALIBRATION_CANDIDATES)
        )
        quantize_products(folder / RANKER, graph, feeds)
    elif name != FP32:
        graph.parent.mkdir()
        reduce_table(folder, graph.parent, blocks, "fp16" if name == "fp16_table" else "int8")
    return graph, table


def _refuse_one_label(labels_R: np.ndarray, rows: int) -> None:
    positives = int((labels_R > 0).sum())
    if positives in (0, len(labels_R)):
        raise DataError(
            f"--variant: AUC is measured on {len(labels_R):,} of the {rows:,} validation rows, and it needs both "
            f"labels, but {positives:,} of these rows are positive. Export without --variant."
        )


def _picked(feature_set: FeatureSet, most: int) -> np.ndarray:
    """Places among the validation rows, in random order, so many at most."""
    return np.random.default_rng(0).permutation(feature_set.manifest.windows["valid"].rows)[:most]


def _located(feature_set: FeatureSet, places: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Part by part: its number, rows of it, and where each of them stands in `places`."""
    start = 0
    for part, rows in enumerate(feature_set.rows("valid")):
        stop = start + len(rows["item"])
        here = np.flatnonzero((places >= start) & (places < stop))
        yield part, places[here] - start, here
        start = stop


def _scores(then: RankerAsOf, feature_set: FeatureSet, picked_R: np.ndarray, name: str) -> np.ndarray:
    """Click probabilities float64 [R]."""
    scores_R = np.empty(len(picked_R))
    with progress(f"scoring validation rows, {name}", total=len(picked_R), unit="rows") as bar:
        for part, rows, here in _located(feature_set, picked_R):
            for at, score in zip(here, then.row_scores(feature_set, "valid", part, rows), strict=True):
                scores_R[at] = score[0]
                bar.advance(1)
    return scores_R


def _feeds(feature_set: FeatureSet, picked_R: np.ndarray, candidates: int) -> Iterator[Feed]:
    """Inputs of the graph: each row's own item and others drawn from the catalogue."""
    generator, schema = np.random.default_rng(1), feature_set.schema
    rows, events = feature_set.rows("valid"), feature_set.events("valid")
    for part, chosen, _ in _located(feature_set, picked_R):
        users = feature_set.users_as_of(rows[part]["user"], instants_of(rows[part]))
        for row in chosen:
            own = rows[part]["item"][row : row + 1].astype(np.int64)
            others = generator.integers(UNKNOWN, schema.items, candidates - 1)
            request = RowRequest.of_row(schema, rows[part], events[part], row, np.concatenate([own, others]))
            # `users` holds the user of row i in row i.
            yield graph_inputs(replace(request, user=row).encoded(schema, users))


def _timed_feed(feature_set: FeatureSet, picked_R: np.ndarray) -> Feed:
    """Inputs of a large request whose history is the longest among the rows."""
    lengths = column(feature_set, "valid", "history_len")[picked_R]
    return next(_feeds(feature_set, picked_R[[int(lengths.argmax())]], TIMED_CANDIDATES))


def _call(session: Any, feed: Feed) -> Callable[[], object]:
    own = {node.name: feed[node.name] for node in session.get_inputs()}
    return lambda: session.run(None, own)


def _alternate(calls: Mapping[Variant, Callable[[], object]]) -> dict[Variant, float]:
    """Median milliseconds of each, in turns, so that a slower moment of the machine meets all of them."""
    taken: dict[Variant, list[float]] = {name: [] for name in calls}
    for turn in range(WARM_UP + TIMED_CALLS):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if turn >= WARM_UP:
                taken[name].append((time.perf_counter() - started) * 1e3)
    return {name: median(of) for name, of in taken.items()}
