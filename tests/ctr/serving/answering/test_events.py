"""Reported events: what is taken, what is refused and why, the label that the contract computes."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctr.serving.answering.events import EventReader, Events
from features.build.build import build_feature_set
from features.contract.contract import Contract
from features.encoding.encoder import Encoder
from features.encoding.past import PastEvent
from features.encoding.request import parse_request
from features.errors import ConfigError
from features.requests.past_columns import RequestEncoder
from tests.ctr.serving.answering.stars import MICROS, built, stars_contract, stars_log

NOW = datetime(2026, 1, 2, tzinfo=UTC)
SECONDS = MICROS // 1_000_000
EVENT: dict[str, Any] = {"user": "a", "item": 101, "time": SECONDS, "stars": 5, "depth": 2.5, "note": "not read"}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return Encoder.load(built(tmp_path_factory.mktemp("stars")).path)


def read(
    encoder: Encoder, *events: Any, contract: Contract | None = None, columns: dict[str, Any] | None = None
) -> Events:
    log = pl.Schema({**encoder.log_columns, **(columns or {})})
    encoder = replace(encoder, contract=contract or encoder.contract, log_columns=log)
    return EventReader(RequestEncoder(encoder), most=5).read(json.dumps({"events": list(events)}).encode(), NOW)


def test_an_event_is_read_as_the_log_has_it(encoder: Encoder) -> None:
    found = read(encoder, EVENT, EVENT | {"user": "b", "time": "2026-01-01T01:00:00+01:00", "stars": 3})
    assert found.users == ("a", "b")
    assert found.events == (
        PastEvent(101, MICROS, {"stars": 5, "depth": 2.5}),
        PastEvent(101, MICROS, {"stars": 3, "depth": 2.5}),
    )
    assert found.label_E.tolist() == [1, 0] and found.is_event_E.tolist() == [True, True]
    assert (found.refused, found.reason) == (0, None)


def test_a_label_that_cannot_be_told_is_unknown_and_a_filter_that_cannot_be_told_keeps_nothing(
    encoder: Encoder,
) -> None:
    bare = {name: EVENT[name] for name in ("user", "item", "time")}
    found = read(encoder, bare, bare | {"depth": 1}, EVENT | {"depth": 0}, EVENT | {"stars": None})
    assert np.isnan(found.label_E).tolist() == [True, True, False, True]
    assert found.is_event_E.tolist() == [False, True, False, True]
    assert found.by_user() == {"a": [found.events[1], found.events[3]]}


def test_whole_and_broken_numbers_of_one_column_are_numbers(encoder: Encoder) -> None:
    found = read(encoder, EVENT | {"stars": 4}, EVENT | {"stars": 3.5}, EVENT | {"stars": 4.5})
    assert found.label_E.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"user": None}, "needs `user`"),
        ({"item": None}, "needs `item`"),
        ({"time": None}, "needs `time`"),
        ({"item": -1}, "item: -1 cannot be an id"),
        ({"item": 1.7}, "item: 1.7 cannot be an id"),
        ({"item": True}, "item: True cannot be an id"),
        ({"item": 2**63}, "no value of a column"),
        ({"item": [1]}, "no value of a column"),
        ({"item": "text"}, "item: 'text' is str, ids of this log are whole numbers"),
        ({"user": 7}, "user: 7 is int, ids of this log are text"),
        ({"time": -(2**63)}, "is no time"),
        ({"time": "soon"}, "is no time"),
        ({"time": 1.5}, "is no time"),
        ({"time": True}, "is no time"),
        ({"time": MICROS}, "is no time"),
        ({"time": SECONDS + 2 * 86_400}, "is not between 1990-01-01 and 2026-01-03"),
        ({"time": 5}, "is not between 1990-01-01"),
        ({"depth": "deep"}, "depth: expected a finite number"),
        ({"depth": {"a": 1}}, "depth: .* is no value of a column"),
        ({"stars": [5]}, "stars: .* is no value of a column"),
        ({"stars": "many"}, "stars: expected a finite number"),
        ({str(i): i for i in range(70)}, "at most 64"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place_and_the_others_are_taken(
    encoder: Encoder, change: dict[str, Any], reason: str
) -> None:
    found = read(encoder, EVENT, EVENT | change, EVENT | {"user": "b"}, EVENT | change)
    assert found.users == ("a", "b") and found.label_E.tolist() == [1, 1]
    assert found.refused == 2
    assert found.reason is not None and found.reason.startswith("events[1]: ")
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(found.reason)


def test_the_first_reason_is_that_of_the_first_event_whatever_is_looked_at_first(encoder: Encoder) -> None:
    found = read(encoder, EVENT | {"stars": "many"}, EVENT | {"item": -1})
    assert found.refused == 2 and found.reason is not None and found.reason.startswith("events[0]: stars")


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"events": []}', b'{"events": {}}', b'{"events": [1], "more": 1}', b'{"event": [1]}']
)
def test_a_body_that_is_no_list_of_events_is_refused(encoder: Encoder, body: bytes) -> None:
    with pytest.raises(ConfigError, match="body"):
        EventReader(RequestEncoder(encoder), 5).read(body, NOW)


def test_too_many_events_are_refused_together(encoder: Encoder) -> None:
    assert len(read(encoder, *[EVENT] * 5).users) == 5
    with pytest.raises(ConfigError, match="6 entries, at most 5 are taken at once"):
        read(encoder, *[EVENT] * 6)


def of(encoder: Encoder, **changes: Any) -> Contract:
    content = encoder.contract.model_dump()
    return Contract.model_validate({**content, **changes})


@pytest.mark.parametrize(("value", "label"), [(1, 1.0), (0, 0.0), (True, 1.0), (False, 0.0), (None, None), (1.0, 1.0)])
def test_a_label_that_is_a_column(encoder: Encoder, tmp_path: Path, value: Any, label: float | None) -> None:
    plain = of(encoder, interactions=stars_contract(tmp_path, label="click-through").interactions.model_dump())
    found = read(encoder, EVENT | {"click-through": value}, contract=plain, columns={"click-through": pl.Int8})
    assert found.label_E.tolist() == [label] if label is not None else np.isnan(found.label_E).all()


@pytest.mark.parametrize("value", [2, -1, 0.5])
def test_a_label_is_0_or_1(encoder: Encoder, tmp_path: Path, value: float) -> None:
    plain = of(encoder, interactions=stars_contract(tmp_path, label="click-through").interactions.model_dump())
    found = read(
        encoder,
        EVENT | {"click-through": 1},
        EVENT | {"click-through": value},
        contract=plain,
        columns={"click-through": pl.Float64},
    )
    assert found.label_E.tolist() == [1]
    assert found.reason == f"events[1]: its label is {value:g}, expected 0 or 1."


def test_a_log_of_positives_has_no_other_label(encoder: Encoder, tmp_path: Path) -> None:
    positives = stars_contract(tmp_path).interactions.model_dump() | {"label": None, "negatives": {}}
    contract = of(encoder, interactions=positives, counters={}, history={"max_len": 3})
    assert read(encoder, EVENT, EVENT, contract=contract).label_E.tolist() == [1, 1]


def test_a_candidate_is_clicked_or_not(encoder: Encoder, tmp_path: Path) -> None:
    shown = stars_contract(tmp_path).interactions.model_dump()
    shown |= {"label": None, "candidates": {"column": "shown", "flag": "-"}}
    contract = of(encoder, interactions=shown, history={"max_len": 3, "events": "clicked == 1"})
    found = read(
        encoder,
        EVENT | {"clicked": 1},
        EVENT | {"_clicked": 0},
        EVENT,
        contract=contract,
        columns={"_clicked": pl.Int8},
    )
    assert found.label_E[:2].tolist() == [1, 0] and np.isnan(found.label_E[2])
    assert found.is_event_E.tolist() == [True, False, False]


def test_what_no_history_could_hold_is_refused(tmp_path: Path) -> None:
    """Kept as a past, such an event would have each later request of its user refused."""
    contract = stars_contract(tmp_path).model_dump()
    contract["history"]["columns"] = {
        "depth": {"type": "numeric"},
        "page": {"type": "categorical"},
        "pages": {"type": "categorical", "source": "page * 2"},
    }
    stars_log().with_columns(page=pl.int_range(120) % 3).write_parquet(tmp_path / "log.parquet")
    built_of = build_feature_set(Contract.model_validate(contract), tmp_path / "out").feature_set
    paged = Encoder.load(built_of.path)
    found = read(paged, EVENT | {"page": 2}, EVENT | {"page": "2"}, EVENT | {"page": None}, EVENT | {"page": 2**40})
    assert [event.columns["page"] for event in found.events] == [2, None, 2**40]
    assert found.reason is not None
    assert found.reason.startswith("events[1]: page: '2' is of the wrong type: values of this column are whole numbers")
    request = parse_request({"user": "a", "time": SECONDS + 60, "history": [], "candidates": [101]}, paged.contract)
    encoded = RequestEncoder(paged).encode(request, found.events)
    assert encoded.history == (101, 101, 101)


def test_a_filter_may_name_the_label(encoder: Encoder) -> None:
    liked = of(encoder, history={"max_len": 3, "events": "label == 1 AND depth > 1"})
    found = read(encoder, EVENT, EVENT | {"stars": 1}, EVENT | {"depth": 1}, EVENT | {"stars": None}, contract=liked)
    assert found.is_event_E.tolist() == [True, False, False, False]


def test_the_contract_says_until_when_a_time_is_one(encoder: Encoder) -> None:
    contract = of(encoder, checks={"latest": "2030-01-01"})
    assert read(encoder, EVENT | {"time": "2029-12-31T23:59:59"}, contract=contract).refused == 0
    assert read(encoder, EVENT | {"time": "2030-01-02"}, contract=contract).refused == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.dictionaries(st.sampled_from(["user", "item", "time", "stars", "depth", "x"]), JSON) | JSON,
        min_size=1,
        max_size=4,
    )
)
def test_no_json_ends_in_another_error(encoder: Encoder, events: list[Any]) -> None:
    body = json.dumps({"events": events}).encode()
    found = EventReader(RequestEncoder(encoder), 5).read(body, NOW)
    assert found.refused + len(found.users) == len(events)
