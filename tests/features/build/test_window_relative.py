"""Request-relative columns of windowed builds: a day added is a day built at once, and prices of kept days are true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features.build.build import build_feature_set
from features.encoding.encoder import Encoder
from features.store.feature_set import SPLITS, FeatureSet
from tests.features.build.days import build, day_of_log, kept_files, without_device, write_days
from tests.listed import ALL

PRICED: dict[str, Any] = {
    "interactions": {"request": "page"},
    "items": {"columns": {"price": {"type": "numeric", "scale": "none", "relative": ALL}}},
}
COUNTED: dict[str, Any] = {
    "counters": {"rate": {"of": "item", "value": "count", "relative": ALL}, "shown": {"of": "item", "value": "rate"}}
}


def write_pages(folder: Path, days: range, dear: int = 0) -> None:
    """Days whose requests are a user's rows of twelve hours; some run over midnight."""
    write_days(folder, days)
    for number in days:
        log = day_of_log(number).with_columns(page=(pl.col("time") + 21_600) // 43_200)
        log.write_parquet(folder / f"log/day-{number:02d}.parquet")
    items = pl.read_parquet(folder / "items.parquet")
    price = pl.when(pl.col("item") == dear).then(99.0).otherwise(pl.col("item") % 7)
    items.with_columns(price=price).write_parquet(folder / "items.parquet")


def numbers(built: FeatureSet) -> np.ndarray:
    """Relative columns before scaling, and what a difference is in the counter's own unit, by row."""
    encoder, found = Encoder.load(built.path), []
    deviation = getattr(encoder.candidate.get("rate"), "deviation", 1.0)
    for split in SPLITS:
        for rows in built.rows(split):
            for i in range(len(rows["user"])):
                key = [encoder.users.value(rows["user"][i]), encoder.items.value(rows["item"][i]), rows["time"][i]]
                values = {name: one.raw_value(rows[name][i]) for name, one in encoder.relative.items()}
                if "rate_difference" in values:
                    values["rate_difference"] *= deviation
                found.append([*map(float, key), *(np.nan if one is None else one for one in values.values())])
    return np.array(sorted(found, key=lambda row: row[:3]))


def test_days_one_after_the_other_are_days_at_once(tmp_path: Path) -> None:
    over = PRICED | COUNTED
    write_pages(tmp_path, range(9))
    before = build(without_device(tmp_path, over), 8)
    write_pages(tmp_path, range(10))
    after, whole = build(without_device(tmp_path, over), 9), build(without_device(tmp_path, over), 9, out="whole")
    assert kept_files(before, after) and not kept_files(before, whole)
    np.testing.assert_allclose(numbers(after), numbers(whole), rtol=1e-4, atol=1e-4)
    assert after.manifest.list_sizes == whole.manifest.list_sizes
    # A request over midnight is one on each day, in a build at once as well.
    plain = build_feature_set(without_device(tmp_path, over), tmp_path / "plain", as_of="2026-03-10").feature_set
    last = {tuple(row[:3]): row[3:] for row in numbers(plain)}
    for row in numbers(whole):
        np.testing.assert_allclose(row[[3, 5, 6, 8, 9]], last[tuple(row[:3])][[0, 2, 3, 5, 6]], rtol=1e-4, atol=1e-4)


def test_without_counters_the_scale_of_the_kept_days_goes_on(tmp_path: Path) -> None:
    """Such a build reads the new days alone, which would have another mean."""
    write_pages(tmp_path, range(9))
    before = build(without_device(tmp_path, PRICED), 8)
    write_pages(tmp_path, range(10))
    after = build(without_device(tmp_path, PRICED), 9)
    assert kept_files(before, after)
    learned = [Encoder.load(built.path).relative for built in (before, after)]
    for name in learned[0]:
        assert vars(learned[0][name]) == vars(learned[1][name])
    whole = build(without_device(tmp_path, PRICED), 9, out="whole")
    np.testing.assert_allclose(numbers(after), numbers(whole), rtol=1e-4, atol=1e-4)
    assert after.manifest.list_sizes == whole.manifest.list_sizes


def test_a_changed_price_makes_every_day_again(tmp_path: Path) -> None:
    write_pages(tmp_path, range(10))
    before = build(without_device(tmp_path, PRICED), 8)
    write_pages(tmp_path, range(10), dear=110)
    after = build(without_device(tmp_path, PRICED), 9)
    assert kept_files(before, after) == set()
    whole = build(without_device(tmp_path, PRICED), 9, out="whole")
    np.testing.assert_allclose(numbers(after), numbers(whole), rtol=1e-4, atol=1e-4)


def test_a_price_that_begins_today_keeps_the_days_before(tmp_path: Path) -> None:
    over = {**PRICED, "items": {**PRICED["items"], "valid_from": "begins"}}
    write_pages(tmp_path, range(9))
    items = pl.read_parquet(tmp_path / "items.parquet").with_columns(begins=0)
    items.write_parquet(tmp_path / "items.parquet")
    before = build(without_device(tmp_path, over), 8)
    write_pages(tmp_path, range(10))
    now = pl.read_parquet(tmp_path / "items.parquet").with_columns(
        price=pl.col("price") * 2 + 1.0, begins=int(day_of_log(9)["time"].min() or 0) // 86_400 * 86_400
    )
    pl.concat([items, now], how="vertical_relaxed").write_parquet(tmp_path / "items.parquet")
    after = build(without_device(tmp_path, over), 9)
    assert len(kept_files(before, after)) == 12
    whole = build(without_device(tmp_path, over), 9, out="whole")
    np.testing.assert_allclose(numbers(after), numbers(whole), rtol=1e-4, atol=1e-4)
