"""What arrives on good and on bad days, of a clean log of three days with four rows each."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.month.log import BOT_USER, TABLES, Arrivals, bot_events, other_encoder

DAYS = ["2025-03-10", "2025-03-11", "2025-03-12"]


def rows_of(day: str) -> pl.DataFrame:
    start = datetime.fromisoformat(day).replace(tzinfo=UTC)
    return pl.DataFrame(
        {
            "user_id": [7, 8, 7, 9],
            "item_id": [1, 2, 3, 4],
            "timestamp": pl.Series([start + timedelta(hours=hour) for hour in (20, 3, 9, 1)]).cast(
                pl.Datetime("us", "UTC")
            ),
            "hour": pl.Series([20, 3, 9, 1], dtype=pl.Int8),
            "clicked": pl.Series([1, 0, 0, 1], dtype=pl.Int8),
        }
    )


@pytest.fixture
def arrivals(tmp_path: Path) -> Arrivals:
    clean = tmp_path / "clean"
    (clean / "log").mkdir(parents=True)
    for day in DAYS:
        rows_of(day).write_parquet(clean / "log" / f"{day}.parquet")
    for table in TABLES:
        vectors = pl.Series("vector", [[3.0, 4.0], [1.0, 0.0]], dtype=pl.List(pl.Float32))
        pl.DataFrame({"item_id": [1, 2], "vector": vectors}).write_parquet(clean / table)
    found = Arrivals(clean, tmp_path / "live", bot_rows=48)
    found.begin(DAYS[:1])
    return found


def live(arrivals: Arrivals, day: str) -> pl.DataFrame:
    return pl.read_parquet(arrivals.live / "log" / f"{day}.parquet")


def there(arrivals: Arrivals) -> list[str]:
    return sorted(path.stem for path in (arrivals.live / "log").iterdir())


def test_a_month_begins_with_the_tables_and_the_days_before(arrivals: Arrivals) -> None:
    assert there(arrivals) == DAYS[:1] and all((arrivals.live / table).is_file() for table in TABLES)


def test_a_good_day_comes_whole(arrivals: Arrivals) -> None:
    arrivals.bring(DAYS[1], "mlflow")
    assert live(arrivals, DAYS[1]).equals(rows_of(DAYS[1]).sort("timestamp"))


def test_a_missing_day_never_comes(arrivals: Arrivals) -> None:
    arrivals.bring(DAYS[1], "missing")
    arrivals.bring(DAYS[2], None)
    assert there(arrivals) == [DAYS[0], DAYS[2]]


def test_a_late_day_comes_with_the_next_one(arrivals: Arrivals) -> None:
    arrivals.bring(DAYS[1], "late")
    assert there(arrivals) == DAYS[:1]
    arrivals.bring(DAYS[2], None)
    assert there(arrivals) == DAYS and arrivals.late == []


def test_flipped_labels_stay_flipped(arrivals: Arrivals) -> None:
    arrivals.bring(DAYS[1], "flipped")
    arrivals.bring(DAYS[2], None)
    # By hour 1, 3, 9, 20 the clicks are 1, 0, 0, 1.
    assert live(arrivals, DAYS[1])["clicked"].to_list() == [0, 1, 1, 0]


def test_half_a_day_is_its_first_half(arrivals: Arrivals) -> None:
    arrivals.bring(DAYS[1], "half")
    assert live(arrivals, DAYS[1])["hour"].to_list() == [1, 3]


def test_a_bot_comes_beside_the_rows_of_the_day(arrivals: Arrivals) -> None:
    arrivals.bring(DAYS[1], "bot")
    rows = live(arrivals, DAYS[1])
    assert len(rows) == 4 + 48 and len(rows.filter(user_id=BOT_USER)) == 48


def test_a_bot_clicks_on_all_it_opens_over_the_whole_day() -> None:
    events = bot_events(rows_of(DAYS[1]), DAYS[1], 48)
    assert set(events["user_id"]) == {BOT_USER} and events["clicked"].sum() == 48
    assert events["hour"].to_list() == [half // 2 for half in range(48)]
    assert events["timestamp"].dt.hour().cast(pl.Int8).equals(events["hour"], check_names=False)
    assert events.schema == rows_of(DAYS[1]).schema


def test_another_encoder_is_there_for_a_day(arrivals: Arrivals) -> None:
    clean = (arrivals.clean / "text.parquet").read_bytes()
    arrivals.bring(DAYS[1], "encoder")
    assert (arrivals.live / "text.parquet").read_bytes() != clean
    arrivals.bring(DAYS[2], None)
    assert (arrivals.live / "text.parquet").read_bytes() == clean


def test_another_encoder_keeps_lengths_and_angles_and_nothing_else(arrivals: Arrivals) -> None:
    turned = np.stack(other_encoder(arrivals.clean / "text.parquet")["vector"].to_numpy())
    assert np.linalg.norm(turned, axis=1) == pytest.approx([5.0, 1.0])
    assert turned[0] @ turned[1] == pytest.approx(3.0)
    assert not np.allclose(turned, [[3.0, 4.0], [1.0, 0.0]], atol=0.1)
