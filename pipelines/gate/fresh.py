"""Fresh rows, and the scores that two bundles give them, each by its own encoder and its own ONNX graph.

The challenger reads the rows as its feature set holds them. A champion of another feature set has other vocabularies
and other scales: its rows are encoded anew by its own encoder, from the raw log as it stood at each row's time.

Shapes: N fresh rows, Q requests of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from ctr.data.columns import column, row_weights
from ctr.evaluation.ranking_metrics import requests_of
from ctr.export.golden_requests import raw_request, with_nameable_ids
from ctr.export.ranker_as_of import ranker_as_of
from ctr.export.row_request import RowRequest
from ctr.serving.pasts.source import kept_events
from ctr.serving.ranker import Ranker
from features.contract.contract import Contract
from features.encoding.encoder import Encoder
from features.encoding.past import Past, PastEvent
from features.encoding.request import Request, parse_request
from features.progress import progress
from features.requests.as_logged import Asked, Known, LoggedRows, open_as_logged
from features.store.feature_set import FeatureSet, SplitName
from features.store.schema import FIRST_VALUE

AT_ONCE = 20_000  # requests for which the raw log is read once
SHARE_OF_A_USER = 20  # of the rows that are scored, one user has at most one in so many


@dataclass(frozen=True)
class FreshRows:
    """Labelled rows of the newest window of a feature set, in stored order; arrays are [N].

    Args:
        feature_set: that holds them.
        split: test, or valid where the test rows have no labels.
        place_N: places among the rows of the split, ascending.
        user_N, item_N: rows of the catalogues.
        time_N: µs since 1970.
        label_N: 0 or 1.
        weight_N: above 0.
        request_N: number of its request; None where the log names none.
    """

    feature_set: FeatureSet
    split: SplitName
    place_N: np.ndarray
    user_N: np.ndarray
    item_N: np.ndarray
    time_N: np.ndarray
    label_N: np.ndarray
    weight_N: np.ndarray
    request_N: np.ndarray | None

    @property
    def groups(self) -> np.ndarray:
        """The list that each row belongs to: its request, or its user, [N]."""
        return self.user_N if self.request_N is None else self.request_N


def fresh_rows(feature_set: FeatureSet, most: int) -> FreshRows:
    """The labelled rows of the window that models are judged on; of more than `most`, those of users drawn at random.

    A drawn user has all of their rows, but at most the newest twentieth of `most`: one user must not be the gate.

    Args:
        feature_set: of the challenger.
        most: rows.
    """
    split = feature_set.judged_by
    names = ("user", "item", "time", "label")
    rows = {name: column(feature_set, split, name) for name in names}
    rows["weight"] = row_weights(feature_set, split)
    known = ~np.isnan(rows["label"]) & (rows["weight"] > 0) & (rows["user"] >= FIRST_VALUE)
    place_N = np.flatnonzero(known & (rows["item"] >= FIRST_VALUE))
    place_N = _drawn(place_N, rows["user"][place_N], rows["time"][place_N], most)
    requests = requests_of(feature_set, split)
    return FreshRows(
        feature_set=feature_set,
        split=split,
        place_N=place_N,
        **{f"{name}_N": values[place_N] for name, values in rows.items()},
        request_N=None if requests is None else requests[place_N],
    )


def _drawn(place_N: np.ndarray, user_N: np.ndarray, time_N: np.ndarray, most: int) -> np.ndarray:
    """Places of at most `most` rows, those of whole users."""
    if len(place_N) <= most:
        return place_N
    newest = np.lexsort((-time_N, user_N))
    first = np.r_[True, np.diff(user_N[newest]) != 0]
    rank = np.arange(len(newest)) - np.maximum.accumulate(np.where(first, np.arange(len(newest)), 0))
    kept = np.sort(newest[rank < max(most // SHARE_OF_A_USER, 1)])
    users, number, rows_U = np.unique(user_N[kept], return_inverse=True, return_counts=True)
    order = np.random.default_rng(0).permutation(len(users))
    inside = np.cumsum(rows_U[order]) <= most
    chosen = np.zeros(len(users), bool)
    chosen[order[inside]] = True
    return place_N[kept[chosen[number]]]


def sampled_scores(scores_N: np.ndarray, feature_set: FeatureSet) -> np.ndarray:
    """Served probabilities as those of the rows, where a feature set holds drawn negatives alone."""
    sampling = feature_set.manifest.sampling
    if sampling is None or sampling.rate is None:
        return scores_N
    return scores_N / (scores_N + (1 - scores_N) * sampling.rate)


def scores_of(ranker: Ranker, rows: FreshRows) -> np.ndarray:
    """Click probabilities of fresh rows as the bundle serves them, float64 [N].

    A bundle of the rows' own feature set reads them as it holds them; any other from the raw log.

    Raises:
        NumericalError: a score is not finite.
        DataError: the raw log cannot be read, or lacks a row.
    """
    if ranker.bundle.manifest.feature_set == rows.feature_set.manifest.version:
        return scores_as_stored(ranker, rows)
    return scores_from_log(ranker, rows)


def scores_as_stored(ranker: Ranker, rows: FreshRows) -> np.ndarray:
    """Scores of a bundle of the rows' own feature set, items as they were at each row's time, float64 [N]."""
    feature_set, split, found = rows.feature_set, rows.split, []
    with (
        ranker_as_of(ranker, feature_set) as then,
        progress(f"fresh rows: {ranker.model_version}", total=len(rows.place_N), unit="rows") as bar,
    ):
        before = 0
        for part, stored in enumerate(feature_set.rows(split)):
            count = len(stored["item"])
            here = rows.place_N[(rows.place_N >= before) & (rows.place_N < before + count)] - before
            before += count
            for scores in then.row_scores(feature_set, split, part, here.tolist()):
                found.append(float(scores[0]))
                bar.advance(1)
    return sampled_scores(np.array(found, np.float64), feature_set)


def scores_from_log(ranker: Ranker, rows: FreshRows) -> np.ndarray:
    """Scores of any bundle of the log, float64 [N]: raw ids and values of each row by the bundle's own encoder.

    What a user did, and what counters said, is what the raw log held strictly before a row's instant. Items and users
    are those that the bundle knows. Of a log whose rows bring their histories, these are decoded by the feature set's
    encoder.
    """
    encoder = _reading_the_same_log(ranker.encoder, rows.feature_set.contract)
    names = Encoder.load(rows.feature_set.path)
    score_N = np.full(len(rows.place_N), np.nan)
    with progress(f"fresh rows: {ranker.model_version}", total=len(rows.place_N), unit="rows") as bar:
        for place_K, request_scores in _scored(ranker, encoder, names, rows):
            score_N[place_K] = request_scores
            bar.advance(len(place_K))
    return sampled_scores(score_N, rows.feature_set)


def _reading_the_same_log(encoder: Encoder, contract: Contract) -> Encoder:
    """The encoder with a contract that finds the raw files where the challenger's build found them."""
    return replace(encoder, contract=encoder.contract.model_copy(update={"root": contract.root}))


def _scored(
    ranker: Ranker, encoder: Encoder, names: Encoder, rows: FreshRows
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places among the fresh rows, and their scores, request by request."""
    contract = encoder.contract
    if contract.interactions.time is None or contract.history.given is not None:
        yield from _decoded(ranker, names, rows)
        return
    user_N = [names.users.value(row) for row in rows.user_N.tolist()]
    item_N = [names.items.value(row) for row in rows.item_N.tolist()]
    with open_as_logged(encoder) as log:
        logged = log.rows(user_N, item_N, rows.time_N)
        asked = iter(_requests(rows, logged, item_N))
        while some := list(islice(asked, AT_ONCE)):
            questions = [_asked(one, encoder, logged, user_N, item_N) for one in some]
            for one, question, known in zip(some, questions, log.known(questions), strict=True):
                yield one.own, _score(ranker, encoder, one, question, known, logged.context)


@dataclass(frozen=True)
class _Rows:
    """Fresh rows of one user, instant and context: one request.

    Args:
        own: places among the fresh rows whose scores are wanted.
        beside: raw ids of the other candidates of the logged request, where candidates are compared.
    """

    own: np.ndarray
    beside: tuple[Any, ...] = ()


def _requests(rows: FreshRows, logged: LoggedRows, item_N: Sequence[Any]) -> list[_Rows]:
    """Fresh rows by request. Candidates of one request that differ in a context column are requests of their own.

    Where candidates are compared, each of these still has all candidates of the request.
    """
    shared: list[np.ndarray] = [rows.user_N, logged.instant_R]
    shared += [] if rows.request_N is None else [rows.request_N]
    apart = _numbered([*shared, *(values.reshape(len(values), -1) for values in logged.context.values())])
    found = []
    for own in _places(apart):
        if not logged.lists:
            found.append(_Rows(own))
            continue
        beside = Counter(logged.lists[int(own[0])])
        beside.subtract(item_N[place] for place in own.tolist())
        found.append(_Rows(own, tuple(beside.elements())))
    return found


def _numbered(columns: Sequence[np.ndarray]) -> np.ndarray:
    """The number of each row among the distinct ones, int64 [N]."""
    parts = [np.ascontiguousarray(one.reshape(len(one), -1)).view(np.uint8) for one in columns]
    keys = np.ascontiguousarray(np.concatenate(parts, axis=1))
    whole = keys.view(np.dtype((np.void, keys.shape[1]))).ravel()
    number_N: np.ndarray = np.unique(whole, return_inverse=True)[1]
    return number_N


def _places(number_N: np.ndarray) -> list[np.ndarray]:
    """Places of each number, ascending."""
    order = np.argsort(number_N, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(number_N[order])) + 1)


def _asked(
    one: _Rows,
    encoder: Encoder,
    logged: LoggedRows,
    user_N: Sequence[Any],
    item_N: Sequence[Any],
) -> Asked:
    first = int(one.own[0])
    user_row = encoder.users.index(user_N[first])
    columns = {name: encoder.user_table[name][user_row : user_row + 1] for name in encoder.user}
    columns |= {name: values[first : first + 1] for name, values in logged.context.items()}
    candidates = (*(item_N[place] for place in one.own.tolist()), *one.beside)
    return Asked(user_N[first], int(logged.instant_R[first]), candidates, columns)


def _score(
    ranker: Ranker,
    encoder: Encoder,
    one: _Rows,
    asked: Asked,
    known: Known,
    context: Mapping[str, np.ndarray],
) -> np.ndarray:
    """Scores of the request's own rows, float32."""
    # The log's own context columns are put in ready, as a build encodes them.
    lacking: dict[str, Any] = dict.fromkeys(encoder.contract.interactions.context)
    request = Request(
        candidates=asked.candidates,
        past=Past.of(_newest(known.past, encoder.contract)),
        time=asked.time,
        user=asked.user,
        context=lacking | known.users,
        candidate_columns={name: tuple(values.tolist()) for name, values in known.items.items()},
    )
    encoded = ranker.requests.encode(request)
    first = int(one.own[0])
    ready = {name: _wide(values[first : first + 1]) for name, values in context.items()}
    scores_S = ranker.score(replace(encoded, context={**encoded.context, **ready}))
    return scores_S[: len(one.own)]


def _newest(past: tuple[PastEvent, ...], contract: Contract) -> Sequence[PastEvent]:
    """The events that a history can hold, where it holds the newest of all."""
    rules = contract.history
    keep = kept_events(rules)
    if len(past) <= keep or rules.repeats != "keep" or rules.delay is not None:
        return past
    return sorted(past, key=lambda event: event.time)[-keep:]


def _wide(values: np.ndarray) -> np.ndarray:
    return values if values.dtype == np.float32 else values.astype(np.int64)


def _decoded(ranker: Ranker, names: Encoder, rows: FreshRows) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows that bring their histories, decoded to raw ids and values, each as a request of its own."""
    feature_set, before = rows.feature_set, 0
    for stored, events in zip(feature_set.rows(rows.split), feature_set.events(rows.split), strict=True):
        inside = np.flatnonzero((rows.place_N >= before) & (rows.place_N < before + len(stored["item"])))
        for place in inside.tolist():
            index = int(rows.place_N[place]) - before
            own = stored["item"][index : index + 1].astype(np.int64)
            row = with_nameable_ids(RowRequest.of_row(feature_set.schema, stored, events, index, own), names)
            parsed = parse_request(raw_request(row, names), ranker.encoder.contract)
            yield np.array([place]), ranker.score(ranker.requests.encode(parsed))
        before += len(stored["item"])
