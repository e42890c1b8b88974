"""Requests as they come from JSON: what is refused, in which words, and what is legal."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.contract.contract import Contract
from features.contract.settings import merge, validate
from features.encoding.category import CategoricalEncoder
from features.encoding.registry import encode_values
from features.encoding.request import Limits, Request, parse_request
from features.encoding.vocabulary import Vocabulary
from features.errors import ConfigError
from tests.features.raw import CONTENT

MORE = {
    "users": {"columns": {"age": {"type": "numeric"}, "likes": {"type": "tags"}}},
    "history": {"columns": {"device": {"type": "categorical"}}},
}
CONTRACT = validate(Contract, merge(CONTENT, MORE), "raw")
NAN, INF = float("nan"), float("inf")


def parse(**raw: Any) -> Request:
    return parse_request({"candidates": [101, 102], **raw}, CONTRACT, Limits(max_candidates=5, max_history=4))


def test_a_full_request() -> None:
    history = [3, {"item": 5, "rating": 4.0, "device": "tv"}, {"item": 2**63 - 1}]
    user_columns = {"segment": "s1", "age": 30, "likes": ["a", None, 7]}
    request = parse(user=7, history=history, context={"hour": 3, "load": None}, user_columns=user_columns)
    assert request == Request(
        candidates=(101, 102),
        history=(3, 5, 2**63 - 1),
        history_events={"rating": (None, 4, None), "device": (None, "tv", None)},
        user=7,
        user_columns={"segment": "s1", "age": 30.0, "likes": ["a", None, 7]},
        context={"hour": 3, "load": None},
    )


COUNTED = validate(
    Contract,
    merge(
        CONTENT,
        {
            "counters": {
                "item_rate": {"of": "item", "value": "rate"},
                "item_count": {"of": "item", "value": "count"},
                "user_rate": {"of": "user", "value": "rate"},
            },
            "history": {"columns": {"residual": {"type": "residual", "counter": "item_rate"}}},
        },
    ),
    "counted",
)


def test_candidates_may_bring_counters_and_history_its_residuals() -> None:
    raw = {
        "candidates": [101, {"item": 102, "item_rate": 1}, {"item": 101, "item_count": 7, "item_rate": None}],
        "history": [3, {"item": 5, "residual": -0.25}],
        "context": {"user_rate": 0.5},
    }
    assert parse_request(raw, COUNTED) == Request(
        candidates=(101, 102, 101),
        candidate_columns={"item_rate": (None, 1.0, None), "item_count": (None, None, 7.0)},
        history=(3, 5),
        history_events={"residual": (None, -0.25)},
        context={"user_rate": 0.5},
        absent=("user",),
    )


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"candidates": [1, {"item": 2, "item_rat": 1}]}, "candidates[1]: unknown key 'item_rat'. Did you mean"),
        ({"candidates": [{"item": 2, "user_rate": 1}]}, "candidates[0]: unknown key 'user_rate'."),
        ({"candidates": [{"item_rate": 1}]}, "candidates[0]: needs `item`"),
        ({"candidates": [{"item": -2}]}, "candidates[0].item: -2 cannot be an id"),
        ({"candidates": [1, {"item": 2, "item_rate": NAN}]}, "candidates[1].item_rate: expected a finite number"),
        ({"candidates": [{"item": 2, "item_rate": True}]}, "candidates[0].item_rate: expected a finite number"),
        ({"history": [3, {"item": 2, "residual": "low"}]}, "history[1].residual: expected a finite number, got 'low'"),
        ({"context": {"item_rate": 1}}, "context: unknown key 'item_rate'. Did you mean 'user_rate'?"),
        ({"context": {"user_rate": [1]}}, "context.user_rate: expected a finite number, got [1]"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_counters_that_are_refused(raw: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_request({"candidates": [101], **raw}, COUNTED)
    assert words in str(caught.value)


def test_counters_do_not_lift_the_limits() -> None:
    entries = [{"item": item, "item_rate": 0.5} for item in range(6)]
    with pytest.raises(ConfigError, match="candidates: 6 entries, at most 5"):
        parse_request({"candidates": entries}, COUNTED, Limits(max_candidates=5))


def test_the_shortest_request() -> None:
    shortest = Request(candidates=(101, 102), absent=("user", "history"))
    assert parse() == shortest
    # `null` says that there is no user and no past; a key that is not there says nothing.
    assert parse(user=None, history=None, context=None, user_columns=None) == replace(shortest, absent=())
    assert parse(candidates=["a", "b"], user="").candidates == ("a", "b")


BAD_IDS = [-1, -(2**70), 2**63, 1.0, 1.5, NAN, True, False, [1]]
PLACES = [
    ("candidates[1]", lambda bad: {"candidates": [1, bad]}),
    ("history[0]", lambda bad: {"history": [bad]}),
    ("history[1].item", lambda bad: {"history": [1, {"item": bad}]}),
    ("user", lambda bad: {"user": bad}),
]


@pytest.mark.parametrize("bad", BAD_IDS, ids=repr)
@pytest.mark.parametrize(("place", "put"), PLACES, ids=[place for place, _ in PLACES])
def test_what_cannot_be_an_id(bad: Any, place: str, put: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(**put(bad))
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith(f"{place}: {bad!r} cannot be an id") and "whole numbers from 0" in str(
        caught.value
    )


@pytest.mark.parametrize("place", ["candidates", "history"])
def test_none_is_an_anonymous_user_but_no_item(place: str) -> None:
    with pytest.raises(ConfigError, match=rf"{place}\[0\]: None cannot be an id"):
        parse(**{place: [None]})


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"candidate": [1]}, "request: unknown key 'candidate'. Did you mean 'candidates'?"),
        ({"zzz": 1}, "unknown key 'zzz'. Valid keys: candidates, context, history, time, user, user_columns."),
        ({"context": {"hours": 1}}, "context: unknown key 'hours'. Did you mean 'hour'?"),
        ({"user_columns": {"segmnt": 1}}, "user_columns: unknown key 'segmnt'. Did you mean 'segment'?"),
        ({"history": [{"item": 1, "ratin": 2}]}, "history[0]: unknown key 'ratin'. Did you mean 'rating'?"),
        ({"history": [1, {"rating": 2}]}, "history[1]: needs `item`"),
        ({"candidates": []}, "`candidates` is empty or missing"),
        ({"candidates": None}, "`candidates` is empty or missing"),
        ({"candidates": 5}, "candidates: expected a list, got 5"),
        ({"history": "abc"}, "history: expected a list, got 'abc'"),
        ({"candidates": [1] * 6}, "candidates: 6 entries, at most 5 are allowed"),
        ({"history": [1] * 5}, "history: 5 entries, at most 4 are allowed"),
        ({"context": [1]}, "context: expected an object"),
        ({"context": []}, "context: expected an object"),
        ({"user_columns": False}, "user_columns: expected an object"),
        ({"context": {"load": NAN}}, "context.load: expected a finite number, got nan"),
        ({"context": {"load": -INF}}, "context.load: expected a finite number, got -inf"),
        ({"context": {"load": 10**400}}, "context.load: expected a finite number, got 1000"),
        ({"context": {"load": True}}, "context.load: expected a finite number, got True"),
        ({"context": {"load": "3"}}, "context.load: expected a finite number, got '3'"),
        ({"context": {"hour": 1.5}}, "context.hour: expected text or a whole number, got 1.5"),
        ({"context": {"hour": INF}}, "context.hour: expected text or a whole number, got inf"),
        ({"context": {"hour": [1]}}, "context.hour: expected text or a whole number, got [1]"),
        ({"history": [{"item": 1, "rating": {}}]}, "history[0].rating: expected text or a whole number, got {}"),
        ({"user_columns": {"likes": "a"}}, "user_columns.likes: tags are a list, got 'a'"),
        ({"user_columns": {"likes": [["a"]]}}, "user_columns.likes: expected text or a whole number, got ['a']"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_what_is_refused(raw: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(**raw)
    assert words in str(caught.value)


@pytest.mark.parametrize("raw", [None, [], "rank", 3])
def test_a_request_is_an_object(raw: Any) -> None:
    with pytest.raises(ConfigError, match=r"expected a JSON object, got .*candidates"):
        parse_request(raw, CONTRACT)


def test_columns_nobody_declared() -> None:
    bare = CONTRACT.model_copy(update={"users": None})
    with pytest.raises(ConfigError, match=r"unknown key 'age'. None are declared"):
        parse_request({"candidates": [1], "user_columns": {"age": 3}}, bare)


def test_limits_have_defaults() -> None:
    assert len(parse_request({"candidates": list(range(1000))}, CONTRACT).candidates) == 1000
    with pytest.raises(ConfigError, match="1001 entries, at most 1000"):
        parse_request({"candidates": list(range(1001))}, CONTRACT)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["item", "rating", "hour", "load", "likes", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["user", "user_columns", "context", "history", "candidates"]), anything))
def test_any_json_is_parsed_or_explained(raw: dict[str, Any]) -> None:
    """Nothing but a ConfigError ever comes out, and what is accepted has ids only."""
    try:
        request = parse_request(raw, CONTRACT)
    except ConfigError:
        return
    for value in (*request.candidates, *request.history):
        assert isinstance(value, str) or (type(value) is int and 0 <= value < 2**63)


def test_the_example_in_the_message_is_legal(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_request([], CONTRACT)
    text = str(caught.value)
    assert parse_request(json.loads(text[text.index("{") : text.rindex("}") + 1]), CONTRACT).user == 7


def test_an_error_in_a_column_whose_name_has_braces_names_it():
    check = CategoricalEncoder(Vocabulary(pl.Series([1, 2])))
    with pytest.raises(ConfigError, match=re.escape("history[4].a{0}{b}: 'x'")):
        encode_values("history[{}].a{0}{b}", check, [1, "x"], first=3)
