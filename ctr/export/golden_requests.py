"""Golden requests: logged rows turned back into raw requests, with the scores the trained model gives them.

They travel in the bundle. Replaying one proves the whole way from raw ids to probabilities: the encoder,
which at export already has to encode it to exactly what the feature set holds, and the graph.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ctr.export.parity import Case, as_input, expected
from ctr.model.click_model import ClickModel
from ctr.serving.bundle import GoldenCase
from features.encoding.base import Columns
from features.encoding.category import HashedEncoder
from features.encoding.encoder import EncodedRequest, Encoder
from features.encoding.request import parse_request
from features.encoding.vocabulary import Vocabulary
from features.errors import DataError
from features.store.feature_set import FeatureSet
from features.store.schema import FIRST_VALUE, UNKNOWN, Schema

CANDIDATES = 6
# The first request is what MODEL_CARD.md shows: one with a history that still fits on a screen.
EXAMPLE_HISTORY = 3
QUANTILES = (0.0, 0.5, 0.75, 1.0)

RawRequest = dict[str, Any]


def golden_cases(model: ClickModel, feature_set: FeatureSet, encoder: Encoder, seed: int = 0) -> list[GoldenCase]:
    """About ten requests: logged ones of the test window by history length, and the edges of what is legal.

    Args:
        model: trained, with the tables of `feature_set` attached.
        encoder: of `feature_set`.

    Raises:
        DataError: a request does not encode to what the feature set holds for it (online/offline skew).
    """
    made = []
    for name, request, case in _requests(feature_set, encoder, np.random.default_rng(seed)):
        encoded = encoder.encode_request(parse_request(request, encoder.contract))
        _refuse_skew(name, encoded, case.encoded(feature_set.schema, feature_set.users))
        # A number comes back from its raw value with seven digits; the scores are those of what came back.
        came_back = replace(
            case, context=encoded.context, history_events=encoded.history_events, candidate=encoded.candidate
        )
        scores, *tasks = expected(model, came_back).T.tolist()
        by_task = dict(zip(model.config.tasks, tasks, strict=True))
        made.append(GoldenCase(name=name, request=request, scores=scores, tasks=by_task))
    return made


def raw_request(case: Case, encoder: Encoder) -> RawRequest:
    """The request in its JSON form; unknown values are null, or left out where the form allows it."""
    history: list[Any] = [encoder.items.value(row) for row in case.history_item]
    if encoder.event:
        history = [
            {"item": item, **_event(case.history_events, position, encoder)} for position, item in enumerate(history)
        ]
    return {
        "user": encoder.users.value(case.user) if case.user >= FIRST_VALUE else None,
        "context": {name: one.raw_value(case.context[name][0]) for name, one in encoder.context.items()},
        "history": history,
        "candidates": _candidate_entries(case, encoder),
    }


def _candidate_entries(case: Case, encoder: Encoder) -> list[Any]:
    items = [encoder.items.value(row) for row in case.candidate_item]
    if not encoder.candidate:
        return items
    numbers = {
        name: [one.raw_value(value) for value in case.candidate[name]] for name, one in encoder.candidate.items()
    }
    return [{"item": item, **{name: of[place] for name, of in numbers.items()}} for place, item in enumerate(items)]


def replayable(case: Case, encoder: Encoder) -> Case:
    """The case with another index where no raw value of a hashed column is known: a hash cannot be undone."""

    def known(values: dict[str, np.ndarray], columns: Columns) -> dict[str, np.ndarray]:
        hashed = {name: one for name, one in columns.items() if isinstance(one, HashedEncoder)}
        return values | {name: one.with_examples(values[name]) for name, one in hashed.items()}

    return replace(
        case,
        context=known(case.context, encoder.context),
        history_events=known(case.history_events, encoder.event),
    )


def logged_case(feature_set: FeatureSet, row: LoggedRow, candidate_item: np.ndarray) -> Case:
    """What one row of the test window knew, asked for these candidates."""
    rows, events = feature_set.rows("test")[row.part], feature_set.events("test")[row.part]
    return case_of_row(feature_set.schema, rows, events, row.index, candidate_item)


def case_of_row(
    schema: Schema,
    rows: Mapping[str, np.ndarray],
    events: Mapping[str, np.ndarray],
    index: int,
    candidate_item: np.ndarray,
) -> Case:
    """What one row of a part knew, asked for these candidates.

    Args:
        schema: of the feature set.
        rows, events: columns of the part, as `FeatureSet.rows` and `FeatureSet.events` give them.
        index: of the row in the part.
        candidate_item: item rows, int64 [N].
    """
    end = int(rows["history_end"][index])
    past = slice(end - int(rows["history_len"][index]), end)
    here = slice(index, index + 1)
    return Case(
        user=int(rows["user"][index]),
        history_item=events["item"][past].astype(np.int64),
        candidate_item=candidate_item,
        context={field.name: as_input(field, rows[field.name][here]) for field in schema.context},
        history_events={field.name: as_input(field, events[field.name][past]) for field in schema.event},
        candidate={
            # The logged item's own numbers, for all: those of the others at that time were not logged.
            field.name: np.repeat(as_input(field, rows[field.name][here]), len(candidate_item))
            for field in schema.candidate
        },
    )


@dataclass(frozen=True)
class LoggedRow:
    """Where a row of the test window lies."""

    part: int
    index: int


def _requests(
    feature_set: FeatureSet, encoder: Encoder, draw: np.random.Generator
) -> Iterator[tuple[str, RawRequest, Case]]:
    example, *others = [
        replayable(logged_case(feature_set, row, _candidates(feature_set, row, draw)), encoder)
        for row in chosen_rows(feature_set)
    ]
    yield "logged", raw_request(example, encoder), example
    for number, case in enumerate(others, start=1):
        yield f"logged {number}, history of {len(case.history_item)}", raw_request(case, encoder), case
    single = replace(
        example,
        candidate_item=example.candidate_item[:1],
        candidate={name: values[:1] for name, values in example.candidate.items()},
    )
    yield "one candidate", raw_request(single, encoder), single
    none = {name: values[:0] for name, values in example.history_events.items()}
    empty = replace(example, history_item=np.zeros(0, np.int64), history_events=none)
    yield "no history", raw_request(empty, encoder), empty
    yield _anonymous(empty, encoder)
    yield _unknown(example, encoder)
    longest = others[-1]
    if len(longest.history_item):
        yield _too_long(longest, encoder, feature_set.schema.history_max_len)


def chosen_rows(feature_set: FeatureSet) -> list[LoggedRow]:
    """The example's row, then rows by quantiles of the history length; the last has the longest history."""
    lengths = [rows["history_len"] for rows in feature_set.rows("test")]
    starts = np.cumsum([0, *map(len, lengths)])
    length = np.concatenate(lengths)
    by_length = np.argsort(length, kind="stable")
    chosen = [int(np.abs(length - EXAMPLE_HISTORY).argmin())]
    chosen += [int(by_length[int(quantile * (len(length) - 1))]) for quantile in QUANTILES]
    parts = np.searchsorted(starts, chosen, side="right") - 1
    return [LoggedRow(int(part), int(row - starts[part])) for part, row in zip(parts, chosen, strict=True)]


def _candidates(feature_set: FeatureSet, row: LoggedRow, draw: np.random.Generator) -> np.ndarray:
    """The logged item and a few others of the catalogue."""
    target = int(feature_set.rows("test")[row.part]["item"][row.index])
    others = draw.integers(FIRST_VALUE, feature_set.schema.items, 4 * CANDIDATES)
    return np.array(list(dict.fromkeys([target, *map(int, others)]))[:CANDIDATES], np.int64)


def _anonymous(empty: Case, encoder: Encoder) -> tuple[str, RawRequest, Case]:
    """Nothing but ids of candidates: no user, no history, every context column and counter at its default."""
    request = {"candidates": [encoder.items.value(row) for row in empty.candidate_item]}
    encoded = encoder.encode_request(parse_request(request, encoder.contract))
    anonymous = replace(empty, user=UNKNOWN, context=encoded.context, candidate=encoded.candidate)
    return "candidates alone", request, anonymous


def _too_long(case: Case, encoder: Encoder, max_len: int) -> tuple[str, RawRequest, Case]:
    """Two events more than are read. The case keeps the newest, and only its raw form has the rest."""
    places = np.resize(np.arange(len(case.history_item)), max_len + 2)

    def take(places: np.ndarray) -> Case:
        events = {name: values[places] for name, values in case.history_events.items()}
        return replace(case, history_item=case.history_item[places], history_events=events)

    return "history longer than is read", raw_request(take(places), encoder), take(places[2:])


def _unknown(case: Case, encoder: Encoder) -> tuple[str, RawRequest, Case]:
    """A new user whose newest history item, and whose first candidate, the model has never seen."""
    candidates = case.candidate_item.copy()
    candidates[0] = UNKNOWN
    known = raw_request(case, encoder)
    new_item, new_user = _unseen(encoder.items), _unseen(encoder.users)
    history = [*known["history"], new_item]
    request = known | {
        "user": new_user,
        "history": history,
        "candidates": [_renamed(known["candidates"][0], new_item), *known["candidates"][1:]],
    }
    missing = {field.name: np.nan if field.kind == "numeric" else UNKNOWN for field in encoder.schema.event}
    events = {name: np.append(values, values.dtype.type(missing[name])) for name, values in case.history_events.items()}
    max_len = encoder.schema.history_max_len
    return (
        "unknown user, history item and candidate",
        request,
        replace(
            case,
            user=UNKNOWN,
            history_item=np.append(case.history_item, UNKNOWN)[-max_len:],
            history_events={name: values[-max_len:] for name, values in events.items()},
            candidate_item=candidates,
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
