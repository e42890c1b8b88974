"""Which keys a counter may have, what each value needs, and several half-lives at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from features.contract.contract import Contract
from features.contract.settings import validate
from features.errors import ConfigError
from tests.features.rich_counters import contract

COUNT = {"of": "item", "value": "count"}


def refused(counter: dict[str, Any], **changes: Any) -> str:
    content = contract(Path(), {}).model_dump(mode="json") | {"counters": {"x": counter}}
    for name, change in changes.items():
        content[name] = content[name] | change
    with pytest.raises(ConfigError) as caught:
        validate(Contract, content, "data.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("counter", "words"),
    [
        (COUNT | {"of": "colour"}, "counters.x.of: no column 'colour'; a key is made of `item`, `user` and columns of"),
        (COUNT | {"of": []}, "name each column once"),
        (COUNT | {"of": ["user", "user"]}, "['user', 'user']: name each column once, e.g. [user, category]"),
        (COUNT | {"value": "mean"}, "number: `sum` and `mean` need it, e.g. `number: read_time`"),
        (COUNT | {"number": "read"}, "and nothing else takes it"),
        (COUNT | {"label": "likes"}, "label: only a rate has one"),
        (COUNT | {"value": "rate", "label": "love"}, "'love' is none of `interactions.labels` (likes)"),
        (COUNT | {"value": "age", "half_life": "1d"}, "half_life: hours do not fade; remove it"),
        (COUNT | {"half_life": ["1d", "soon"]}, "'soon' is no duration"),
    ],
)
def test_what_no_counter_can_be(counter: dict[str, Any], words: str) -> None:
    assert words in refused(counter)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"type": "tags"}, "'shade' has several values a row (tags), and a row has one key. Declare a categorical"),
        ({"type": "numeric"}, "'shade' is a number. Declare it as `buckets`"),
    ],
)
def test_columns_of_which_a_row_has_no_one_index(spec: dict[str, Any], words: str) -> None:
    assert words in refused(COUNT | {"of": ["user", "shade"]}, items={"columns": {"shade": spec}})


def test_a_name_on_two_sides_and_a_column_that_changes() -> None:
    said = refused(COUNT | {"of": "device"}, items={"columns": {"device": {"type": "categorical"}}})
    assert "'device' is a column of items.columns and interactions.context; rename one" in said
    assert "'kind' changes with time (valid_from of its table)" in refused(
        COUNT | {"of": "kind"}, items={"valid_from": "at"}
    )
    # That of the item itself does not change.
    content = contract(Path(), {"x": COUNT}).model_dump(mode="json")
    content["items"]["valid_from"] = "at"
    assert validate(Contract, content, "data.yaml").counters["x"].of == "item"


def test_a_list_of_half_lives_is_a_counter_each() -> None:
    declared = contract(Path(), {"n": COUNT | {"half_life": ["90m", "1d"]}, "m": COUNT})
    assert {name: one.half_life for name, one in declared.counters.items()} == {
        "n_90m": 90 * 60 * 1_000_000,
        "n_1d": 86_400 * 1_000_000,
        "m": None,
    }
    # As it is stored in a feature set and a bundle.
    again = validate(Contract, declared.model_dump(mode="json"), "encoder.json")
    assert again.counters == declared.counters and again.fingerprint() == declared.fingerprint()
    assert "'n_1d' is declared twice" in refused_two({"n_1d": COUNT, "n": COUNT | {"half_life": ["1d"]}})


def refused_two(counters: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        validate(Contract, contract(Path(), {}).model_dump(mode="json") | {"counters": counters}, "data.yaml")
    return str(caught.value)


def test_one_column_in_a_list_is_that_column() -> None:
    declared = contract(Path(), {"n": COUNT | {"of": ["item"]}, "k": COUNT | {"of": ["user", "kind"]}})
    assert declared.counters["n"].of == "item" and declared.counters["k"].keys == ("user", "kind")
    assert declared.counter_sides == {"item": "item", "user": "user", "kind": "item"}
    assert set(declared.candidate_columns) == {"n", "k"}


def test_a_residual_reads_a_rate_of_the_item_by_the_label() -> None:
    columns = {"columns": {"surprise": {"type": "residual", "counter": "x"}}}
    for counter in (
        COUNT,
        COUNT | {"value": "rate", "label": "likes"},
        COUNT | {"of": "kind", "value": "rate"},
        COUNT | {"of": ["item", "device"], "value": "rate"},
    ):
        assert "counter 'x' is no item rate declared under `counters`" in refused(counter, history=columns)
