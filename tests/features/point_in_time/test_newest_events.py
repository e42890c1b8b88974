"""The newest events of each user, as the raw log has them."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from features.contract.contract import Contract
from features.contract.event_columns import event_columns
from features.errors import ConfigError
from features.point_in_time.newest_events import newest_events


def changed(contract: Contract, **sections: Any) -> Contract:
    return Contract.model_validate(contract.model_dump() | sections)


def written(folder: Path) -> Contract:
    pl.DataFrame(
        {
            "who": [1, 1, 1, 2, 1, 2, 1],
            "what": [10, 11, 12, 13, 14, 15, 16],
            "at": [datetime(2026, 1, 1, 0, 0, second) for second in (5, 4, 4, 3, 9, 9, 8)],
            "stars": [5.0, 1.0, 4.0, 3.5, 5.0, 4.5, None],
            "seen": [datetime(2026, 1, 1, hour).date() for hour in range(7)],
            "other": range(7),
        }
    ).write_parquet(folder / "log.parquet")
    return Contract.model_validate(
        {
            "name": "stars",
            "root": str(folder),
            "interactions": {
                "path": "log.parquet",
                "user": "who",
                "item": "what",
                "time": "at",
                "label": "stars >= 4",
            },
            "history": {
                "max_len": 3,
                "columns": {
                    "label": {"type": "categorical"},
                    "day": {"type": "date", "part": "weekday", "source": "seen"},
                },
            },
        }
    )


def listed(contract: Contract, keep: int, second: int = 59) -> list[tuple[Any, ...]]:
    until = int((datetime(2026, 1, 1, 0, 0, second) - datetime(1970, 1, 1)).total_seconds()) * 1_000_000
    return newest_events(contract, keep, until).select("_user", "_item").sort("_user", maintain_order=True).rows()


def test_the_newest_of_each_user_by_time_and_then_by_order_of_the_log(tmp_path: Path, monkeypatch: Any) -> None:
    contract = written(tmp_path)
    assert listed(contract, 9) == [(1, 11), (1, 12), (1, 10), (1, 16), (1, 14), (2, 13), (2, 15)]
    assert listed(contract, 2) == [(1, 16), (1, 14), (2, 13), (2, 15)]
    assert listed(contract, 2, second=8) == [(1, 10), (1, 16), (2, 13)]
    monkeypatch.setattr("features.sources.log.ROWS_A_CHUNK", 2)
    assert listed(contract, 2) == [(1, 16), (1, 14), (2, 13), (2, 15)]


def test_only_events_that_may_stand_in_a_history_are_kept(tmp_path: Path) -> None:
    contract = written(tmp_path)
    liked = changed(contract, history={"max_len": 3, "events": "label == 1"})
    assert listed(liked, 9) == [(1, 12), (1, 10), (1, 14), (2, 15)]
    nothing = changed(contract, history={"max_len": 3, "events": "stars > 9"})
    assert listed(nothing, 9) == []


def test_rows_of_the_quarantine_are_no_events(tmp_path: Path) -> None:
    """Rows without a label."""
    contract = changed(written(tmp_path), checks={"null": "quarantine", "max_quarantine": 1})
    assert listed(contract, 9) == [(1, 11), (1, 12), (1, 10), (1, 14), (2, 13), (2, 15)]


def test_a_log_that_brings_its_histories_has_no_events(tmp_path: Path) -> None:
    contract = written(tmp_path)
    given = changed(contract, history={"given": {"column": "other"}})
    with pytest.raises(ConfigError, match="no events in time"):
        newest_events(given, 5, 0)


def test_events_of_a_history_table_stand_with_those_of_the_log(tmp_path: Path) -> None:
    contract = written(tmp_path)
    pl.DataFrame(
        {
            "u": [1, 2],
            "i": [90, 91],
            "t": [datetime(2026, 1, 1), datetime(2026, 1, 1, 0, 0, 5)],
            "d": [datetime(2025, 12, 1).date(), None],
        }
    ).write_parquet(tmp_path / "earlier.parquet")
    table = {"path": "earlier.parquet", "user": "u", "item": "i", "time": "t", "columns": {"day": "d"}}
    history = contract.history.model_dump() | {"tables": [table]}
    both = changed(contract, history=history)
    found = newest_events(both, 9, 2 * 10**15)
    assert found.filter(pl.col("_user") == 2).select("_item", "_raw.seen").rows() == [
        (13, datetime(2026, 1, 1).date()), (91, None), (15, datetime(2026, 1, 1).date())
    ]  # fmt: skip
    assert found.filter(pl.col("_item") == 90)["_raw.seen"].to_list() == [datetime(2025, 12, 1).date()]


def test_which_columns_an_event_needs(tmp_path: Path) -> None:
    contract = written(tmp_path)
    assert event_columns(contract) - {"stars >= 4"} == {"stars", "seen"}
    liked = changed(contract, history={"max_len": 3, "events": "other > 3 AND label = 1"})
    assert {"other", "stars"} <= event_columns(liked) and "label" not in event_columns(liked)
    plain = changed(contract, interactions=contract.interactions.model_dump() | {"label": "label"})
    assert "label" in event_columns(plain)
    seen = {**contract.interactions.model_dump(), "label": None, "candidates": {"column": "shown", "flag": "-"}}
    assert {"clicked", "_clicked"} <= event_columns(changed(contract, interactions=seen))
