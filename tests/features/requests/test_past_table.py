"""Histories of a table of events: worked out by hand, and as a request of the same user and time gets them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.encoding.encoder import Encoder
from features.encoding.past import Past
from features.errors import ConfigError, DataError
from features.requests.past_columns import RequestEncoder
from features.requests.past_table import PastTable
from tests.trained import built_feature_set

SECOND = 1_000_000


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    built_feature_set(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(shop: Path) -> Encoder:
    return Encoder.load(next(path.parent for path in sorted(shop.glob("feature_sets/**/encoder.json"))))


def with_history(encoder: Encoder, **rules: Any) -> Encoder:
    """The encoder of a contract with other rules of histories."""
    from dataclasses import replace

    record = encoder.contract.model_dump(mode="json")
    record["history"] |= rules
    return replace(encoder, contract=type(encoder.contract).model_validate(record))


def asked(table: PastTable, user: str | None, second: int) -> tuple[list[int], dict[str, list[float]]]:
    """Raw items of one history, and its event columns."""
    found = table.histories(pl.Series([user], dtype=pl.String), np.array([second * SECOND]))
    chosen = slice(found.end_R[0] - found.length_R[0], found.end_R[0])
    items = [table.encoder.items.value(row) for row in found.item_E[chosen]]
    return items, {name: values[chosen].tolist() for name, values in found.columns.items()}


@pytest.fixture
def events(tmp_path: Path) -> Path:
    """Out of order; u1 has 101 at 10 s, 102 at 20 s twice, 103 at 300 s; u9 is unknown to the bundle."""
    pl.DataFrame(
        {
            "user": ["u1", "u9", "u1", "u1", "u1", None],
            "item": [103, 105, 101, 102, 102, 104],
            "time": [300, 15, 10, 20, 20, 5],
            "clicked": [1, 0, 0, 1, None, 1],
            "item_rate": [0.25, None, None, 0.5, None, None],
        }
    ).write_parquet(tmp_path / "events.parquet")
    return tmp_path / "events.parquet"


def test_a_history_is_what_was_strictly_before(events: Path, encoder: Encoder) -> None:
    table = PastTable.read(events, encoder)
    assert asked(table, "u1", 10)[0] == []
    assert asked(table, "u1", 20)[0] == [101]
    assert asked(table, "u1", 21)[0] == [101, 102, 102]
    assert asked(table, "u1", 301)[0] == [101, 102, 102, 103]
    assert asked(table, "u9", 301)[0] == [105]
    assert asked(table, "u2", 301)[0] == asked(table, None, 301)[0] == []


def test_event_columns_are_computed_of_the_raw_ones(events: Path, encoder: Encoder) -> None:
    _, columns = asked(PastTable.read(events, encoder), "u1", 301)
    names = encoder.event["label"].vocabulary  # type: ignore[attr-defined]
    assert columns["label"] == [names.index(0), names.index(1), 1, names.index(1)]
    rate = float(encoder.snapshot.items["item_rate"][encoder.items.index(101)])
    assert columns["residual"] == pytest.approx([-rate, 0.5, float("nan"), 0.75], nan_ok=True)
    # Missing; 10 s lie in the bucket from 8 to 16, 0 s below 2, 280 s from 256 to 512.
    assert columns["pause"] == [1, 2 + 3, 2, 2 + 8]


def test_only_the_newest_events_are_read(tmp_path: Path, encoder: Encoder) -> None:
    pl.DataFrame(
        {"user": ["u1"] * 9, "item": list(range(101, 110)), "time": list(range(9)), "clicked": [1] * 9}
    ).write_parquet(tmp_path / "events.parquet")
    assert asked(PastTable.read(tmp_path / "events.parquet", encoder), "u1", 50)[0] == list(range(104, 110))


RULES = [
    {},
    {"within": "1d"},
    {"session_gap": "8h"},
    {"delay": "1h"},
    {"repeats": "first"},
    {"repeats": "consecutive", "events": "label == 1"},
    {"events": "load > 2 and device <> 'tv'"},
]


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_histories_are_those_of_requests(shop: Path, encoder: Encoder, rules: dict[str, str]) -> None:
    encoder = with_history(encoder, **rules)
    log = pl.read_parquet(shop / "raw/log.parquet")
    draw = np.random.default_rng(3)
    user_R = [f"u{user}" for user in draw.integers(0, 20, 40)]
    time_R = draw.integers(0, 10**6, 40) * SECOND
    found = PastTable.read(shop / "raw/log.parquet", encoder).histories(pl.Series(user_R), time_R)
    assert found.length_R.max() > 1
    requests = RequestEncoder(encoder)
    for place, (user, moment) in enumerate(zip(user_R, time_R.tolist(), strict=True)):
        raw = log.filter(pl.col("user") == user)
        past = Past(
            tuple(raw["item"].to_list()),
            raw["time"].to_numpy() * SECOND,
            tuple(raw.select("clicked", "device", "load").to_dicts()),
        )
        wanted = requests.history(past, moment, user=user)
        chosen = slice(found.end_R[place] - found.length_R[place], found.end_R[place])
        assert found.item_E[chosen].tolist() == wanted.rows.tolist()
        for name, values in wanted.events.items():
            np.testing.assert_allclose(found.columns[name][chosen], values, rtol=0, atol=1e-6)


def test_times_that_are_none_are_told_and_missing_ones_left_out(tmp_path: Path, encoder: Encoder) -> None:
    """Events without a time were none in the log; one in another form was, and its history would lack it."""
    from dataclasses import replace

    log = encoder.contract.interactions.model_copy(update={"time_format": "%d/%m/%Y"})
    encoder = replace(encoder, contract=encoder.contract.model_copy(update={"interactions": log}))
    path = tmp_path / "events.parquet"
    table = pl.DataFrame({"user": ["u1"] * 3, "item": [101, 102, 103], "time": ["02/01/1970", None, "1970-01-03"]})
    table.with_columns(clicked=1).write_parquet(path)
    with pytest.raises(
        DataError,
        match=r"events\.parquet: column 'time': 1 of 3 rows are no time, e\.g\. '1970-01-03'\. Write times as",
    ):
        PastTable.read(path, encoder)
    table.head(2).with_columns(clicked=1).write_parquet(path)
    assert asked(PastTable.read(path, encoder), "u1", 3 * 86_400)[0] == [101]


def test_a_column_of_another_type_is_named(events: Path, encoder: Encoder) -> None:
    pl.read_parquet(events).with_columns(clicked=pl.lit("yes")).write_parquet(events)
    with pytest.raises((DataError, ConfigError), match="clicked"):
        PastTable.read(events, encoder)
    pl.read_parquet(events).with_columns(clicked=1, user=7).write_parquet(events)
    with pytest.raises(DataError, match="'user': holds Int32 where text"):
        PastTable.read(events, encoder)
