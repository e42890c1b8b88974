"""Golden requests: raw requests with the scores of the trained model, stored in the bundle and replayed at each load.

Most are logged rows that were decoded to raw ids and values. At export the encoder must encode each to what the feature
set holds. The replay then tests encoder and graph together, from raw ids to probabilities.

Shapes: H history items of one request, N candidates.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ctr.export.example_request import as_logged, raw_events
from ctr.export.logged_list import LoggedRow, compared_anew, logged_list
from ctr.export.parity import expected
from ctr.export.row_request import RowRequest
from ctr.model.click_model import ClickModel
from ctr.serving.bundle import GoldenRequest
from features.encoding.base import Columns
from features.encoding.category import HashedEncoder
from features.encoding.encoder import EncodedRequest, Encoder
from features.encoding.request import parse_request
from features.encoding.vocabulary import Vocabulary
from features.errors import DataError
from features.requests.past_columns import RequestEncoder
from features.store.feature_set import FeatureSet
from features.store.schema import FIRST_VALUE, UNKNOWN

CANDIDATES = 6
# History length of the first request, which MODEL_CARD.md shows: it fits on a screen.
EXAMPLE_HISTORY = 3
QUANTILES = (0.0, 0.5, 0.75, 1.0)

RawRequest = dict[str, Any]


def golden_requests(model: ClickModel, feature_set: FeatureSet, encoder: Encoder, seed: int = 0) -> list[GoldenRequest]:
    """About ten requests with their scores: an example, logged ones by history length, and legal edge cases.

    Args:
        model: trained, with the tables of `feature_set` attached.
        feature_set: whose rows are decoded.
        encoder: of `feature_set`.
        seed: of the candidates that are drawn beside a row's own item.

    Raises:
        DataError: a request does not encode to what the feature set holds for it (online/offline skew).
    """
    made: list[GoldenRequest] = []
    requests = RequestEncoder(encoder)
    for name, request, stored in _requests(feature_set, requests, np.random.default_rng(seed)):
        encoded = requests.encode(parse_request(request, encoder.contract))
        if stored is None:
            # What only the events before those shown would tell is not what the feature set holds.
            made.insert(0, _scored(name, request, RowRequest.of_encoded(encoded, _user(request, encoder)), model))
            continue
        _refuse_skew(name, encoded, stored.encoded(feature_set.schema, feature_set.users))
        # A raw number has seven digits: the scores must be those of the number that it encodes to.
        as_encoded = replace(
            stored, context=encoded.context, history_events=encoded.history_events, candidate=encoded.candidate
        )
        made.append(_scored(name, request, as_encoded, model))
    return made


def _scored(name: str, request: RawRequest, stored: RowRequest, model: ClickModel) -> GoldenRequest:
    scores, *tasks = expected(model, stored).T.tolist()
    by_task = dict(zip(model.config.tasks, tasks, strict=True))
    return GoldenRequest(name=name, request=request, scores=scores, tasks=by_task)


def _user(request: RawRequest, encoder: Encoder) -> int:
    return UNKNOWN if request["user"] is None else encoder.users.index(request["user"])


def raw_request(stored: RowRequest, encoder: Encoder) -> RawRequest:
    """The request as JSON, in raw ids and values; unknown values are null, or left out where the form allows it."""
    history: list[Any] = [encoder.items.value(row) for row in stored.history_item]
    if encoder.event:
        history = [
            {"item": item, **_event(stored.history_events, position, encoder)} for position, item in enumerate(history)
        ]
    return {
        "user": encoder.users.value(stored.user) if stored.user >= FIRST_VALUE else None,
        "context": {name: one.raw_value(stored.context[name][0]) for name, one in encoder.context.items()},
        "history": history,
        "candidates": _candidate_entries(stored, encoder),
    }


def _candidate_entries(stored: RowRequest, encoder: Encoder) -> list[Any]:
    items = [encoder.items.value(row) for row in stored.candidate_item]
    if not encoder.candidate:
        return items
    numbers = {
        name: [one.raw_value(value) for value in stored.candidate[name]] for name, one in encoder.candidate.items()
    }
    return [{"item": item, **{name: of[place] for name, of in numbers.items()}} for place, item in enumerate(items)]


def replayable(stored: RowRequest, encoder: Encoder) -> RowRequest:
    """The request with indices that can be decoded, and a value of each counter.

    A hash cannot be undone: where no raw value of a hashed index is known, another index of the column takes its place.
    No request can name an id below 0 either (`with_nameable_ids`).
    A request cannot say that a counter has no value: 0 takes its place, and its candidates are compared anew.
    """

    def known(values: dict[str, np.ndarray], columns: Columns) -> dict[str, np.ndarray]:
        hashed = {name: one for name, one in columns.items() if isinstance(one, HashedEncoder)}
        return values | {name: one.with_examples(values[name]) for name, one in hashed.items()}

    def counted(values: dict[str, np.ndarray], columns: Columns) -> dict[str, np.ndarray]:
        names = encoder.contract.counters.keys() & columns.keys()
        zero = {name: columns[name].encode_one(0.0) for name in names}
        return values | {name: np.where(np.isnan(values[name]), zero[name], values[name]) for name in names}

    named = with_nameable_ids(stored, encoder)
    made = replace(
        named,
        context=counted(known(stored.context, encoder.context), encoder.context),
        candidate=counted(stored.candidate, encoder.candidate),
        history_events=known(stored.history_events, encoder.event),
    )
    counters = encoder.contract.counters.keys() & encoder.candidate.keys()
    changed = any(np.isnan(stored.candidate[name]).any() for name in counters)
    changed = changed or (made.candidate_item != stored.candidate_item).any()
    return compared_anew(made, encoder) if changed else made


def with_nameable_ids(stored: RowRequest, encoder: Encoder) -> RowRequest:
    """The request without ids below 0, which a log may have (`checks.negative_id: warn`) and no request can name.

    Another item takes the place of each; such a user is nobody in particular.
    """
    has_user = stored.user >= FIRST_VALUE and _can_be_named(encoder.users.value(stored.user))
    return replace(
        stored,
        user=stored.user if has_user else UNKNOWN,
        history_item=_nameable(stored.history_item, encoder.items),
        candidate_item=_nameable(stored.candidate_item, encoder.items),
    )


def _can_be_named(raw_id: Any) -> bool:
    return isinstance(raw_id, str) or raw_id >= 0


def _nameable(rows: np.ndarray, ids: Vocabulary) -> np.ndarray:
    """These rows of the catalogue, int64 [N], with another row in the place of each whose id no request can name."""
    unnamed = np.array([row >= FIRST_VALUE and not _can_be_named(ids.value(row)) for row in rows], bool)
    if not unnamed.any():
        return rows
    named = np.flatnonzero(ids.values.to_numpy() >= 0) + FIRST_VALUE
    return np.where(unnamed, named[rows % len(named)], rows)


def logged_request(feature_set: FeatureSet, row: LoggedRow, candidate_item: np.ndarray) -> RowRequest:
    """The request that a row of the test window answers, with other candidates.

    Args:
        feature_set: holds the row.
        row: of the test window.
        candidate_item: item rows, int64 [N].
    """
    rows, events = feature_set.rows("test")[row.part], feature_set.events("test")[row.part]
    return RowRequest.of_row(feature_set.schema, rows, events, row.index, candidate_item)


def _requests(
    feature_set: FeatureSet, requests: RequestEncoder, draw: np.random.Generator
) -> Iterator[tuple[str, RawRequest, RowRequest | None]]:
    encoder, chosen = requests.encoder, chosen_rows(feature_set)
    example, *others = [replayable(_stored(feature_set, row, encoder, draw), encoder) for row in chosen]
    moment, time_H = _times(feature_set, chosen[0])
    yield "logged", raw_request(example, encoder), example
    # After the one whose encoding is compared: a model cannot read what is encoded wrongly.
    if (events := raw_events(example, time_H, encoder)) is not None:
        yield "events as the log has them", _with_events(raw_request(example, encoder), events, moment, requests), None
    for number, stored in enumerate(others, start=1):
        yield f"logged {number}, history of {len(stored.history_item)}", raw_request(stored, encoder), stored
    single = compared_anew(
        replace(
            example,
            candidate_item=example.candidate_item[:1],
            candidate={name: values[:1] for name, values in example.candidate.items()},
        ),
        encoder,
    )
    yield "one candidate", raw_request(single, encoder), single
    none = {name: values[:0] for name, values in example.history_events.items()}
    empty = replace(example, history_item=np.zeros(0, np.int64), history_events=none)
    yield "no history", raw_request(empty, encoder), empty
    yield _anonymous(empty, requests, moment)
    yield _unknown(example, encoder)
    longest = others[-1]
    if len(longest.history_item):
        yield _too_long(longest, encoder, feature_set.schema.history_max_len)


def chosen_rows(feature_set: FeatureSet) -> list[LoggedRow]:
    """The row that MODEL_CARD.md shows, then rows at quantiles of the history length; the last has the longest."""
    lengths = [rows["history_len"] for rows in feature_set.rows("test")]
    starts = np.cumsum([0, *map(len, lengths)])
    length = np.concatenate(lengths)
    by_length = np.argsort(length, kind="stable")
    chosen = [int(np.abs(length - EXAMPLE_HISTORY).argmin())]
    chosen += [int(by_length[int(quantile * (len(length) - 1))]) for quantile in QUANTILES]
    parts = np.searchsorted(starts, chosen, side="right") - 1
    return [LoggedRow(int(part), int(row - starts[part])) for part, row in zip(parts, chosen, strict=True)]


def _stored(feature_set: FeatureSet, row: LoggedRow, encoder: Encoder, draw: np.random.Generator) -> RowRequest:
    """The request of a row; where candidates are compared, with the list of which the feature set has the result."""
    if encoder.relative:
        return logged_list(feature_set, row, encoder)
    return logged_request(feature_set, row, _candidates(feature_set, row, draw))


def _candidates(feature_set: FeatureSet, row: LoggedRow, draw: np.random.Generator) -> np.ndarray:
    """The logged item and a few others of the catalogue."""
    target = int(feature_set.rows("test")[row.part]["item"][row.index])
    others = draw.integers(FIRST_VALUE, feature_set.schema.items, 4 * CANDIDATES)
    return np.array(list(dict.fromkeys([target, *map(int, others)]))[:CANDIDATES], np.int64)


def _times(feature_set: FeatureSet, row: LoggedRow) -> tuple[int, np.ndarray]:
    """Of a row and of the events of its history, µs since 1970."""
    rows, events = feature_set.rows("test")[row.part], feature_set.events("test")[row.part]
    end = int(rows["history_end"][row.index])
    length = int(rows["history_len"][row.index])
    none = np.zeros(0, np.int64)  # of events of given histories
    return int(rows["time"][row.index]), events["time"][end - length : end] if "time" in events else none


def _with_events(ready: RawRequest, events: list[dict[str, Any]], moment: int, requests: RequestEncoder) -> RawRequest:
    """The request with raw events, and its time in place of context columns that tell it."""
    context = {name: value for name, value in ready["context"].items() if name not in requests.context_of_time}
    (time,) = as_logged(np.array([moment]), requests.encoder)
    return {
        "user": ready["user"],
        "time": time,
        "context": context,
        "history": events,
        "candidates": ready["candidates"],
    }


def _anonymous(empty: RowRequest, requests: RequestEncoder, moment: int) -> tuple[str, RawRequest, RowRequest]:
    """Only ids of candidates: no user, no history, each context column and counter at its default.

    A replay has another time of day: where columns or counters tell the time, the request names one.
    """
    encoder = requests.encoder
    request: RawRequest = {"candidates": [encoder.items.value(row) for row in empty.candidate_item]}
    if requests.context_of_time or any(counter.grows for counter in encoder.contract.counters.values()):
        (request["time"],) = as_logged(np.array([moment]), encoder)
    encoded = requests.encode(parse_request(request, encoder.contract))
    anonymous = replace(empty, user=UNKNOWN, context=encoded.context, candidate=encoded.candidate)
    return "candidates alone", request, anonymous


def _too_long(stored: RowRequest, encoder: Encoder, max_len: int) -> tuple[str, RawRequest, RowRequest]:
    """Two more events than the model reads. The stored request has the newest, the raw request all of them."""
    places = np.resize(np.arange(len(stored.history_item)), max_len + 2)

    def take(places: np.ndarray) -> RowRequest:
        events = {name: values[places] for name, values in stored.history_events.items()}
        return replace(stored, history_item=stored.history_item[places], history_events=events)

    return "history longer than is read", raw_request(take(places), encoder), take(places[2:])


def _unknown(stored: RowRequest, encoder: Encoder) -> tuple[str, RawRequest, RowRequest]:
    """A new user whose newest history item and first candidate are new too."""
    candidates = stored.candidate_item.copy()
    candidates[0] = UNKNOWN
    known = raw_request(stored, encoder)
    new_item, new_user = _unseen(encoder.items), _unseen(encoder.users)
    history = [*known["history"], new_item]
    request = known | {
        "user": new_user,
        "history": history,
        "candidates": [_renamed(known["candidates"][0], new_item), *known["candidates"][1:]],
    }
    missing = {field.name: np.nan if field.kind == "numeric" else UNKNOWN for field in encoder.schema.event}
    events = {
        name: np.append(values, values.dtype.type(missing[name])) for name, values in stored.history_events.items()
    }
    max_len = encoder.schema.history_max_len
    return (
        "unknown user, history item and candidate",
        request,
        compared_anew(
            replace(
                stored,
                user=UNKNOWN,
                history_item=np.append(stored.history_item, UNKNOWN)[-max_len:],
                history_events={name: values[-max_len:] for name, values in events.items()},
                candidate_item=candidates,
            ),
            encoder,
        ),
    )


def _renamed(entry: Any, item: Any) -> Any:
    return entry | {"item": item} if isinstance(entry, dict) else item


def _unseen(ids: Vocabulary) -> Any:
    numbers = itertools.count(1_000_000)
    values = numbers if ids.whole_numbers else (f"unseen-{number}" for number in numbers)
    return next(value for value in values if ids.index(value) == UNKNOWN)


def _event(columns: dict[str, np.ndarray], position: int, encoder: Encoder) -> dict[str, Any]:
    raw = {name: one.raw_value(columns[name][position]) for name, one in encoder.event.items()}
    return {name: value for name, value in raw.items() if value is not None}


def _refuse_skew(name: str, online: EncodedRequest, offline: EncodedRequest) -> None:
    pairs = {
        "history": (online.history_item, offline.history_item),
        "candidates": (online.candidate_item, offline.candidate_item),
    }
    for section in ("user", "context", "history_events", "candidate"):
        first, second = getattr(online, section), getattr(offline, section)
        pairs |= {f"{section}.{column}": (first.get(column), values) for column, values in second.items()}
    for where, (got, wanted) in pairs.items():
        same = (
            got is not None
            and got.shape == wanted.shape
            and got.dtype == wanted.dtype
            and np.allclose(got, wanted, rtol=1e-5, atol=1e-5, equal_nan=True)
        )
        if not same:
            raise DataError(
                f"golden request {name!r}: {where} encodes to {got} but the feature set holds {wanted}. The "
                "feature set was built by another version of the encoder: build it again, and train on it."
            )
