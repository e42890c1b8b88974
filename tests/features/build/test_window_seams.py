"""Days that bring less than others did: no row, no value, other types, new ids alone."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from features.build import build as build_module
from features.build.build import build_feature_set
from features.encoding.encoder import Encoder
from features.errors import DataError
from features.store.feature_set import FeatureSet
from features.store.schema import UNKNOWN
from tests.features.build.days import (
    FIRST,
    assert_equal,
    build,
    contract,
    day_of_log,
    kept_files,
    without_device,
    write_days,
)

NUMBERS: dict[str, Any] = {
    "interactions": {
        "context": {
            "load": {"type": "numeric", "scale": "standardise"},
            "bin": {"type": "buckets", "source": "load", "count": 4},
        }
    },
    "counters": {"mean_load": {"of": "item", "value": "mean", "number": "load"}},
}


def file_of(folder: Path, day: int) -> Path:
    return folder / f"log/day-{day:02d}.parquet"


def change(folder: Path, day: int, **columns: pl.Expr) -> None:
    day_of_log(day).with_columns(**columns).write_parquet(file_of(folder, day))


def as_csv(folder: Path) -> None:
    for file in sorted(folder.glob("log/*.parquet")):
        pl.read_parquet(file).write_csv(file.with_suffix(".csv"))
        file.unlink()


def scales(built: FeatureSet) -> dict[str, Any]:
    """What was learned of the columns of `NUMBERS`."""
    encoder = Encoder.load(built.path)
    learned = {**encoder.context, **encoder.candidate}
    return {
        "load": learned["load"].deviation,  # type: ignore[attr-defined]
        "bin": learned["bin"].edges.tolist(),  # type: ignore[attr-defined]
        "mean_load": learned["mean_load"].deviation,  # type: ignore[attr-defined]
    }


def header_only(folder: Path) -> Any:
    as_csv(folder)
    day_of_log(4).head(0).write_csv(folder / "log/day-04.csv")
    return {"interactions": {"path": "log/*.csv"}}


def without_types(folder: Path) -> Any:
    pl.DataFrame({name: [] for name in day_of_log(4).columns}).write_parquet(file_of(folder, 4))
    return {}


def blank_label(folder: Path) -> Any:
    for day in range(10):
        change(folder, day, dwell=pl.lit(None if day == 4 else 31, pl.Int64))
    as_csv(folder)
    return {"interactions": {"path": "log/*.csv", "labels": {"long": "dwell > 30"}}}


@pytest.mark.parametrize("without_values", [header_only, without_types, blank_label])
def test_a_file_without_values_stops_no_window(without_values: Any, tmp_path: Path) -> None:
    write_days(tmp_path, range(10))
    declared = contract(tmp_path, without_values(tmp_path))
    expected = 300 if without_values is blank_label else 240
    assert build(declared, 9).manifest.windows["train"].rows == expected


def test_a_file_whose_times_are_none_is_told(tmp_path: Path) -> None:
    write_days(tmp_path, range(10))
    change(tmp_path, 4, time=pl.lit("today"))
    with pytest.raises(DataError, match="time column 'time' holds String"):
        build(contract(tmp_path), 9)


def test_a_row_put_aside_for_its_time_moves_no_window(tmp_path: Path) -> None:
    write_days(tmp_path, range(10))
    late = day_of_log(9).head(1).with_columns(time=pl.lit(1_999_999_999, pl.Int64))
    pl.concat([day_of_log(9), late]).write_parquet(file_of(tmp_path, 9))
    declared = contract(tmp_path, {"checks": {"time_range": "quarantine"}})
    built = build_feature_set(declared, tmp_path / "out", window=7).feature_set
    assert max(built.manifest.days) == (FIRST + timedelta(days=9)).isoformat()
    assert built.manifest.windows["test"].rows == 60


def in_milliseconds(folder: Path) -> None:
    """Nine days in seconds, then one whose times are read as if they were."""
    write_days(folder, range(10))
    change(folder, 9, time=pl.col("time") * 1_000)


def test_a_day_in_another_unit_is_told(tmp_path: Path) -> None:
    in_milliseconds(tmp_path)
    with pytest.raises(DataError, match=r"time column 'time': 60 of 600 rows lie outside 1990-01-01 to .* read in 's'"):
        build_feature_set(contract(tmp_path), tmp_path / "out", window=7)


def test_a_day_in_another_unit_that_is_put_aside_moves_no_window(tmp_path: Path) -> None:
    in_milliseconds(tmp_path)
    declared = contract(tmp_path, {"checks": {"time_range": "quarantine", "max_quarantine": 0.5}})
    built = build_feature_set(declared, tmp_path / "out", window=7).feature_set
    assert max(built.manifest.days) == (FIRST + timedelta(days=8)).isoformat()
    assert built.manifest.windows["test"].rows == 60


def test_rows_after_the_window_that_are_put_aside_are_counted(tmp_path: Path) -> None:
    in_milliseconds(tmp_path)
    with pytest.raises(DataError, match="60 of 600 rows"):
        build_feature_set(contract(tmp_path, {"checks": {"time_range": "quarantine"}}), tmp_path / "out", window=7)


PUT_ASIDE: dict[str, Any] = {"null": "quarantine", "max_quarantine": 1.0}


@pytest.mark.parametrize(
    ("newest", "checks"),
    [(None, {}), (None, PUT_ASIDE), (pl.lit(None, pl.Int64), PUT_ASIDE)],
    ids=["no row", "no row, a quarantine", "all in quarantine"],
)
def test_a_newest_day_without_a_row_is_a_day(newest: pl.Expr | None, checks: dict[str, Any], tmp_path: Path) -> None:
    write_days(tmp_path, range(9))
    declared = without_device(tmp_path, {"split": {"test": 2}, "checks": checks})
    before = build(declared, 8)
    if newest is not None:
        change(tmp_path, 9, user=newest)
    after = build(declared, 9)
    assert kept_files(before, after)
    assert_equal(after, build(declared, 9, out="other"))


def test_a_day_after_one_without_rows_goes_on(tmp_path: Path) -> None:
    write_days(tmp_path, range(9))
    declared = without_device(tmp_path, {"split": {"test": 2}})
    for day in (8, 9):
        build(declared, day)
    day_of_log(10).write_parquet(file_of(tmp_path, 10))
    assert_equal(build(declared, 10), build(declared, 10, out="other"))


def test_a_day_of_items_that_the_table_does_not_list_yet(tmp_path: Path) -> None:
    write_days(tmp_path, range(9))
    declared = without_device(tmp_path)
    build(declared, 8)
    change(tmp_path, 9, item=pl.col("item") + 5_000)
    assert_equal(build(declared, 9), build(declared, 9, out="other"))


def test_ids_that_are_not_the_tables_are_refused_at_first(tmp_path: Path) -> None:
    write_days(tmp_path, range(9))
    for day in range(9):
        change(tmp_path, day, item=pl.col("item") + 5_000)
    with pytest.raises(DataError, match="They are not the same ids"):
        build(without_device(tmp_path), 8)


def test_ids_of_a_table_that_become_text_are_told(tmp_path: Path) -> None:
    write_days(tmp_path, range(10))
    items = pl.read_parquet(tmp_path / "items.parquet").with_columns(price=pl.col("item") * 1.5)
    items.write_parquet(tmp_path / "items.parquet")
    declared = without_device(
        tmp_path,
        {
            "items": {"columns": {"price": {"type": "numeric", "relative": ["rank"]}}},
            "interactions": {"request": "rating"},
        },
    )
    build(declared, 8)
    items.with_columns(pl.col("item").cast(pl.String)).write_parquet(tmp_path / "items.parquet")
    with pytest.raises(DataError, match="Write both with one type"):
        build(declared, 9)


@pytest.mark.parametrize("blank", [pl.lit(None), pl.lit(None, pl.String)], ids=["no type", "text"])
def test_a_category_that_first_had_no_value_gets_its_values(blank: pl.Expr, tmp_path: Path) -> None:
    write_days(tmp_path, range(10))
    for day in range(6):
        change(tmp_path, day, device=blank)
    declared = contract(tmp_path)
    devices = [Encoder.load(build(declared, day).path).context["device"] for day in (5, 6, 7, 8, 9)]
    assert [device.encode_one("phone").item() == UNKNOWN for device in devices] == [True, True, True, False, False]


def test_numbers_that_first_had_no_value_get_a_scale(tmp_path: Path) -> None:
    """In the first version's training days there is none; its newest days have some, and are built again later."""
    write_days(tmp_path, range(12))
    for day in range(7):
        change(tmp_path, day, load=pl.lit(None, pl.Float64))
    declared = without_device(tmp_path, NUMBERS)
    versions = [build(declared, day) for day in range(7, 12)]
    assert set(Encoder.load(versions[0].path).blank_columns) == {"load", "bin", "mean_load"}
    # The third is the first whose training days have some: it learns what a build at once does, and the others keep it.
    at_once = scales(build(declared, 9, out="other"))
    assert at_once["load"] == pytest.approx(day_of_log(7)["load"].std(ddof=0))
    assert [scales(version) for version in versions[2:]] == [at_once] * 3
    assert kept_files(versions[3], versions[4])


def test_a_number_that_is_always_the_same_is_learned_once(tmp_path: Path) -> None:
    """It would otherwise count as one without a value, and each day would be built anew."""
    write_days(tmp_path, range(10))
    for day in range(10):
        change(tmp_path, day, load=pl.lit(0.5))
    declared = without_device(tmp_path, NUMBERS)
    before = build(declared, 8)
    assert Encoder.load(before.path).blank_columns == ()
    assert kept_files(before, build(declared, 9))


def test_an_item_column_that_first_had_no_value_gets_a_scale(tmp_path: Path) -> None:
    write_days(tmp_path, range(10))
    items = pl.read_parquet(tmp_path / "items.parquet")
    items.with_columns(price=pl.lit(None, pl.Float64)).write_parquet(tmp_path / "items.parquet")
    declared = without_device(tmp_path, {"items": {"columns": {"price": {"type": "numeric"}}}})
    assert Encoder.load(build(declared, 8).path).blank_columns == ("price",)
    items.with_columns(price=pl.col("item") * 1.5).write_parquet(tmp_path / "items.parquet")
    assert Encoder.load(build(declared, 9).path).blank_columns == ()


def test_a_log_that_grew_is_divided_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counters let the whole log pass: memory holds one piece of it, not one of what the first version had."""
    write_days(tmp_path, range(10))
    declared = without_device(tmp_path, {"counters": {"seen": {"of": "user", "value": "count"}}})
    small = build(declared, 8)
    monkeypatch.setattr(build_module, "ROWS_A_SHARD", 150)
    grown = build(declared, 9)
    assert kept_files(small, grown)
    assert (small.manifest.shards, grown.manifest.shards) == (1, 4)
    assert_equal(grown, build(declared, 9, out="other"))


@pytest.mark.parametrize("pattern", ["rows/*/*.arrow", "history_tails/*", "vocabularies/*", "encoder.json"])
@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_nothing_is_taken_from_a_version_that_lacks_a_part_of_itself(tmp_path: Path, pattern: str, harm: Any) -> None:
    write_days(tmp_path, range(7))
    declared = without_device(tmp_path)
    sound = build(declared, 4)
    broken = build(declared, 5)
    # The day that only this version has; those of the one before are the same files in both.
    harm(max(broken.path.glob(pattern)))
    after = build(declared, 6)
    after.verify()
    assert kept_files(sound, after)
    assert_equal(after, build(declared, 6, out="other"))


@pytest.mark.parametrize("pattern", ["history_tails/*", "vocabularies/*", "encoder.json", "users.arrow", "counters/*"])
def test_nothing_is_learned_from_a_version_of_which_a_part_has_changed(tmp_path: Path, pattern: str) -> None:
    """Of the same size, as a disk leaves a file whose content it lost."""
    write_days(tmp_path, range(8))
    counters = {"rate": {"of": "item", "value": "rate"}} if pattern == "counters/*" else {}
    declared = contract(tmp_path, {"counters": counters})
    broken = build(declared, 7)
    changed = max(broken.path.glob(pattern))
    changed.write_bytes(bytes(changed.stat().st_size))
    write_days(tmp_path, range(9))
    again = build(declared, 8)
    assert not kept_files(broken, again)
    assert_equal(again, build(declared, 8, out="other"))


def test_a_day_whose_ids_have_no_sign_goes_on(tmp_path: Path) -> None:
    """What holds both has 128 bits, which numpy does not know."""
    write_days(tmp_path, range(6))
    declared = without_device(tmp_path)
    before = build(declared, 4)
    file = file_of(tmp_path, 5)
    pl.read_parquet(file).with_columns(pl.col("user", "item").cast(pl.UInt64)).write_parquet(file)
    after = build(declared, 5)
    assert kept_files(before, after)
    assert_equal(after, build(declared, 5, out="other"))
