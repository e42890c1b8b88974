"""What encoders are fitted on: events for the columns of events, and rows drawn at random where there are many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from features import draws
from features.build.build import build_feature_set
from features.contract.contract import Contract
from features.encoding.encoder import Encoder
from features.errors import DataError
from features.sources import log
from tests.features.raw import ROWS, START, Tables, raw_log

CLICKS = {"columns": {"seconds": {"type": "buckets", "count": 2}}, "events": "label == 1"}


def built(folder: Path, change: Any, over: Any) -> Encoder:
    return Encoder.load(build_feature_set(raw_log(folder, change, over), folder / "out").feature_set.path)


def one_click_in_twenty(tables: Tables) -> None:
    """Clicks lasted 10, 20, 30, … seconds; other rows 0. Of the 6 clicks, 5 train (rows 0, 20, 40, 60, 80)."""
    row = pl.int_range(ROWS)
    tables["log"] = tables["log"].with_columns(
        rating=pl.when(row % 20 == 0).then(5).otherwise(1),
        seconds=pl.when(row % 20 == 0).then((row // 20 + 1) * 10).otherwise(0),
    )


def test_event_columns_are_fitted_on_events(tmp_path: Path) -> None:
    """The median of 10, 20, 30, 40, 50 is 30; that of all rows is 0, the least, which is no edge."""
    encoder = built(tmp_path, one_click_in_twenty, {"history": CLICKS})
    assert encoder.event["seconds"].edges.tolist() == [30.0]


def visits(user: list[int], day: list[int], shop: list[Any]) -> pl.DataFrame:
    """Earlier events: so many days after (or before) the log's first instant."""
    time = [START + 86_400 * one for one in day]
    return pl.DataFrame({"user_id": user, "item_id": [101] * len(user), "time": time, "shop": shop})


OF_A_TABLE = {
    "history": {
        "columns": {"shop": {"type": "categorical"}},
        "tables": [
            {
                "path": "visits.parquet",
                "user": "user_id",
                "item": "item_id",
                "time": "time",
                "columns": {"shop": "shop"},
            }
        ],
    }
}


def with_visits(table: pl.DataFrame) -> Any:
    def change(tables: Tables) -> None:
        tables["log"] = tables["log"].with_columns(shop=pl.lit("here"))
        tables["visits"] = table

    return change


def test_event_columns_are_fitted_on_the_events_of_history_tables_too(tmp_path: Path) -> None:
    """What a training row can look back on: nothing after the training window, nobody who does not train."""
    table = visits([1, 1, 999], [-1, 5, -1], ["before", "later", "of a stranger"])
    encoder = built(tmp_path, with_visits(table), OF_A_TABLE)
    assert encoder.event["shop"].vocabulary.values.to_list() == ["before", "here"]


def test_a_history_table_whose_column_is_of_another_type_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"visits\.parquet: column 'shop' holds Int64, .*log\.parquet it holds String"):
        built(tmp_path, with_visits(visits([1], [-1], [7])), OF_A_TABLE)


def pages(tables: Tables) -> None:
    """Pages of six rows in the order of their slots."""
    row = pl.int_range(ROWS)
    tables["log"] = tables["log"].with_columns(time=START + row, position=row % 6 + 1)


PAGES = {"interactions": {"context": {"position": {"type": "buckets", "count": 3}}}}


def test_pages_in_slot_order_are_fitted_on_all_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """84 training rows, of which 14 are drawn: every sixth row is the first of its page."""
    monkeypatch.setattr(draws, "MOST_FITTED", 14)
    assert len(built(tmp_path, pages, PAGES).context["position"].edges) == 2


@pytest.mark.parametrize("rows_a_chunk", [7, 1000])
def test_chunks_of_any_size_fit_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_a_chunk: int) -> None:
    monkeypatch.setattr(draws, "MOST_FITTED", 14)
    whole = built(tmp_path / "a", pages, {})
    monkeypatch.setattr(log, "ROWS_A_CHUNK", rows_a_chunk)
    assert built(tmp_path / "b", pages, {}).context["load"].mean == whole.context["load"].mean


def catalogue_of_pasts(folder: Path, given: Any, checks: Any) -> list[int]:
    """Item ids of a build whose rows all have the given history 101, -1."""

    def change(tables: Tables) -> None:
        tables["log"] = tables["log"].with_columns(past=pl.lit([101, -1], pl.List(pl.Int64)))

    content = raw_log(folder, change, {}).model_dump(exclude_unset=True)
    history = {"max_len": 5, "given": {"column": "past", **given}}
    declared = Contract.model_validate(content | {"history": history, "checks": checks})
    found: list[int] = Encoder.load(build_feature_set(declared, folder / "out").feature_set.path).items.values.to_list()
    return found


def test_ids_below_zero_in_given_histories_are_told(tmp_path: Path) -> None:
    """A bundle proves itself by requests of its items, and none can name these."""
    message = r"log\.parquet: column 'past': holds ids below 0, e\.g\. -1\. No request .* `history\.given\.padding: -1`"
    with pytest.raises(DataError, match=message):
        catalogue_of_pasts(tmp_path, {}, {})


def test_padding_below_zero_is_no_id(tmp_path: Path) -> None:
    assert -1 not in catalogue_of_pasts(tmp_path, {"padding": -1}, {})


def test_ids_below_zero_that_are_warned_of_stay(tmp_path: Path) -> None:
    assert -1 in catalogue_of_pasts(tmp_path, {}, {"negative_id": "warn"})


def with_unknown_item(tables: Tables) -> None:
    first = tables["items"].head(1).with_columns(item_id=pl.lit(-1, pl.Int64))
    tables["items"] = pl.concat([tables["items"].cast({"item_id": pl.Int64}), first])


def test_an_item_table_with_ids_below_zero_is_told(tmp_path: Path) -> None:
    message = r"items\.parquet: item id 'item_id': 1 of \d+ rows are negative ids, e\.g\. -1\. No request can name"
    with pytest.raises(DataError, match=message):
        built(tmp_path, with_unknown_item, {})


def test_rows_of_an_item_table_with_ids_below_zero_are_left_out(tmp_path: Path) -> None:
    encoder = built(tmp_path, with_unknown_item, {"checks": {"negative_id": "quarantine"}})
    assert -1 not in encoder.items.values.to_list()


def test_rows_of_an_item_table_with_ids_below_zero_that_are_warned_of_stay(tmp_path: Path) -> None:
    encoder = built(tmp_path, with_unknown_item, {"checks": {"negative_id": "warn"}})
    assert -1 in encoder.items.values.to_list()


def test_a_catalogue_of_ids_below_zero_alone_is_told_though_they_are_warned_of(tmp_path: Path) -> None:
    def negate(tables: Tables) -> None:
        for name in ("log", "items", "text"):
            tables[name] = tables[name].with_columns(item_id=-pl.col("item_id").cast(pl.Int64))

    message = r"log\.parquet: column 'item_id': all 12 item ids are below 0, e\.g\. -112\. No request can name"
    with pytest.raises(DataError, match=message):
        built(tmp_path, negate, {"checks": {"negative_id": "warn"}})


def test_an_item_table_of_ids_below_zero_alone_is_told_whatever_the_policy(tmp_path: Path) -> None:
    def negate(tables: Tables) -> None:
        tables["items"] = tables["items"].with_columns(item_id=-pl.col("item_id").cast(pl.Int64) - 1)

    with pytest.raises(DataError, match=r"items\.parquet: item id 'item_id': (\d+) of \1 rows are negative ids"):
        built(tmp_path, negate, {"checks": {"negative_id": "quarantine"}})
