"""Parity: the exported graph and the trained torch model must give each request the same probabilities.

Shapes: N candidates of one request, M items, D width of a row of the item table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ctr.export.row_request import RowRequest, as_input
from ctr.model.click_model import ClickModel
from ctr.serving.agreement import TOLERANCE, logit_difference
from ctr.serving.bundle import ITEM_TABLE, ITEMS
from ctr.serving.ranker import open_session
from features.encoding.encoder import EncodedRequest
from features.errors import NumericalError
from features.store.feature_set import FeatureSet
from features.store.schema import UNKNOWN, Field, Schema

CANDIDATE_COUNTS = (1, 2, 7, 100)
ITEMS_COMPARED = 1000

Score = Callable[[EncodedRequest], np.ndarray]


def expected(model: ClickModel, request: RowRequest) -> np.ndarray:
    """Probabilities of the torch model in evaluation mode, whose mode is restored afterwards.

    Args:
        model: its tables attached.
        request: of N candidates.

    Returns:
        float32 [N, 1 + tasks]: of a click, then of each further label.
    """
    training = model.training
    model.eval()
    with torch.inference_mode():
        outputs = model.outputs(request.batch(model.schema.history_max_len))
        score_NH = torch.sigmoid(torch.stack([outputs.click_B, *outputs.tasks.values()], dim=-1))
    model.train(training)
    return score_NH.numpy()


@dataclass(frozen=True)
class Parity:
    """Largest difference between the graph and the model, over all candidates of all requests.

    Args:
        logit: `ctr.serving.agreement.logit_difference`; parity is judged by it.
        probability: absolute difference.
    """

    logit: float
    probability: float


def check_parity(
    model: ClickModel,
    users: Mapping[str, np.ndarray],
    score: Score,
    requests: Iterable[RowRequest],
    graph: str = "the exported graph",
) -> Parity:
    """Compare the exported graph with the trained model on each request.

    Args:
        model: the trained model, its tables attached.
        users: the encoded user columns of its feature set.
        score: the exported graph, e.g. `Ranker.scores`.
        requests: to score with both.
        graph: its name in messages.

    Raises:
        NumericalError: their logits differ by more than `TOLERANCE`, a score is not a number, or there are no requests.
    """
    worst: Parity | None = None
    with _one_thread():
        for request in requests:
            wanted_NH = expected(model, request)
            got_NH = score(request.encoded(model.schema, users))
            if got_NH.shape != wanted_NH.shape:
                raise NumericalError(f"parity: scores {wanted_NH.shape} of the model, but {got_NH.shape} of the graph.")
            logit, probability = logit_difference(got_NH, wanted_NH), float(np.abs(got_NH - wanted_NH).max())
            # Written so that NaN fails too.
            if not logit <= TOLERANCE:
                raise NumericalError(
                    f"parity: {graph} and the trained model differ by {logit:.2e} in logits "
                    f"(at most {TOLERANCE} is allowed) on a request of {len(request.history_item)} history "
                    f"items and {len(wanted_NH)} candidates, user row {request.user}. The bundle is not published."
                )
            before = worst or Parity(0.0, 0.0)
            worst = Parity(max(before.logit, logit), max(before.probability, probability))
    if worst is None:
        raise NumericalError("parity: no request was compared, so parity is unknown. The bundle is not published.")
    return worst


def check_item_parity(folder: Path, feature_set: FeatureSet, seed: int = 0) -> float:
    """Largest difference between `items.onnx` and the item table, over at most 1,000 of the feature set's items.

    Raises:
        NumericalError: it exceeds 1e-5, or is not a number.
    """
    schema = feature_set.schema
    real = np.arange(UNKNOWN, schema.items)
    rows = np.sort(np.random.default_rng(seed).permutation(real)[:ITEMS_COMPARED])
    feed = item_inputs(feature_set, rows, rows)
    session = open_session(folder / ITEMS)
    (row_MD,) = session.run(["row"], {node.name: feed[node.name] for node in session.get_inputs()})
    table_ID = np.memmap(folder / ITEM_TABLE, np.float32, mode="r").reshape(schema.items, -1)
    difference_M = np.abs(row_MD - table_ID[rows]).max(axis=1)
    worst = int(difference_M.argmax())
    if not difference_M[worst] <= TOLERANCE:
        raise NumericalError(
            f"parity: {ITEMS} gives item row {rows[worst]} values {difference_M[worst]:.2e} away from the item "
            f"table's (at most {TOLERANCE} is allowed). The bundle is not published."
        )
    return float(difference_M[worst])


def item_inputs(feature_set: FeatureSet, rows: np.ndarray, columns_at: np.ndarray) -> dict[str, np.ndarray]:
    """Inputs of `items.onnx` for these item rows, by name.

    Args:
        feature_set: whose items they are.
        rows: item rows, [M].
        columns_at: rows of the versioned columns in the stacked table, [M]; `rows` for the latest versions.
    """
    schema, versions = feature_set.schema, feature_set.item_versions
    stacked = {} if versions is None else versions.stacked
    known = {name: stacked[name][columns_at] if name in stacked else of[rows] for name, of in feature_set.items.items()}
    feed = {f"item_{f.name}": as_input(f, known[f.name]) for f in schema.item}
    feed |= {f"vector_{v.name}": feature_set.vectors(v.name)[rows] for v in schema.vectors}
    return feed | {f"present_{v.name}": feature_set.present(v.name)[rows] for v in schema.vectors}


def grid_requests(schema: Schema, seed: int = 0) -> Iterator[RowRequest]:
    """Each history {none, one, some, full, partly unknown, all unknown} with each list of candidates."""
    generator = np.random.default_rng(seed)
    full = schema.history_max_len
    some = _items(generator, schema, min(max(full // 2, 2), full))
    partly = some.copy()
    partly[::2] = UNKNOWN
    histories = [
        some[:0],
        some[:1],
        some,
        _items(generator, schema, full),
        partly,
        np.full(len(some), UNKNOWN, np.int64),
    ]
    lists = [_items(generator, schema, count) for count in CANDIDATE_COUNTS]
    lists += [np.full(2, UNKNOWN, np.int64), np.concatenate([[UNKNOWN], lists[2]])]
    for history in histories:
        for candidates in lists:
            yield _request(generator, schema, history, candidates)


def random_requests(schema: Schema, count: int, seed: int = 0) -> Iterator[RowRequest]:
    """Requests of random users, contexts, history lengths (0 to full) and 1 to 100 candidates."""
    generator = np.random.default_rng(seed)
    for _ in range(count):
        history = _items(generator, schema, int(generator.integers(schema.history_max_len + 1)))
        yield _request(generator, schema, history, _items(generator, schema, int(generator.integers(1, 101))))


def _request(generator: np.random.Generator, schema: Schema, history: np.ndarray, candidates: np.ndarray) -> RowRequest:
    return RowRequest(
        user=int(generator.integers(UNKNOWN, schema.users)),
        history_item=history,
        candidate_item=candidates,
        context={f.name: _values(generator, f, 1) for f in schema.context},
        history_events={f.name: _values(generator, f, len(history)) for f in schema.event},
        candidate={f.name: _values(generator, f, len(candidates)) for f in schema.candidate},
    )


def _items(generator: np.random.Generator, schema: Schema, count: int) -> np.ndarray:
    return generator.integers(UNKNOWN, schema.items, count)


def _values(generator: np.random.Generator, field: Field, count: int) -> np.ndarray:
    if field.kind == "numeric":
        values = generator.normal(size=count)
        values[generator.random(count) < 0.2] = np.nan
        return values.astype(np.float32)
    return generator.integers(UNKNOWN, max(field.size, UNKNOWN + 1), count)


@contextmanager
def _one_thread() -> Iterator[None]:
    """One torch thread: a request is so small that handing parts of it to other threads takes longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
