"""The raw log of the month: what arrives each day, and what is wrong with it on a bad one."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl

from features.calendar import DAY, first_instant

TABLES = ("items.parquet", "users.parquet", "text.parquet", "image.parquet")
BOT_USER = 1  # below every simulated id


@dataclass
class Arrivals:
    """Brings each day's file of a clean log into the folder that the job reads.

    Args:
        clean: raw log of one file a day, as it happened.
        live: the same as the job gets to see it; made here.
        bot_rows: events of a bot on its day.
        late: files that come a day after their own.
    """

    clean: Path
    live: Path
    bot_rows: int
    late: list[str] = field(default_factory=list)

    def begin(self, days: list[str]) -> None:
        """The tables, and the days before the month."""
        (self.live / "log").mkdir(parents=True)
        for table in TABLES:
            shutil.copyfile(self.clean / table, self.live / table)
        for day in days:
            self._bring(day)

    def bring(self, day: str, trouble: str | None) -> None:
        """What arrives in the night after a day: its file and those that are late, or what a trouble makes of it.

        Args:
            day: e.g. `2025-03-12`.
            trouble: one of `missing`, `late`, `flipped`, `half`, `bot`, `encoder`; any other leaves the file whole.
        """
        for late in self.late:
            self._bring(late)
        self.late = []
        shutil.copyfile(self.clean / "text.parquet", self.live / "text.parquet")
        if trouble == "late":
            self.late = [day]
        if trouble in ("late", "missing"):
            return
        rows = pl.read_parquet(self.clean / "log" / f"{day}.parquet").sort("timestamp", maintain_order=True)
        if trouble == "flipped":
            rows = rows.with_columns(clicked=(1 - pl.col("clicked")).cast(pl.Int8))
        if trouble == "half":
            rows = rows.head(len(rows) // 2)
        if trouble == "bot":
            rows = pl.concat([rows, bot_events(rows, day, self.bot_rows)])
        if trouble == "encoder":
            other_encoder(self.clean / "text.parquet").write_parquet(self.live / "text.parquet")
        rows.write_parquet(self.live / "log" / f"{day}.parquet")

    def _bring(self, day: str) -> None:
        shutil.copyfile(self.clean / "log" / f"{day}.parquet", self.live / "log" / f"{day}.parquet")


def bot_events(rows: pl.DataFrame, day: str, count: int) -> pl.DataFrame:
    """Events of one user over the whole day, who opens what others saw and clicks on all of it.

    Args:
        rows: of the day.
        day: which.
        count: events, at most one a microsecond.
    """
    start = first_instant(datetime.fromisoformat(day).replace(tzinfo=UTC).date())
    at = start + np.arange(count, dtype=np.int64) * (DAY // count)
    drawn = rows[np.random.default_rng(0).integers(len(rows), size=count)]
    return drawn.with_columns(
        user_id=pl.lit(BOT_USER, dtype=rows.schema["user_id"]),
        timestamp=pl.Series(at).cast(pl.Datetime("us", "UTC")),
        hour=pl.Series((at // (DAY // 24) % 24).astype(np.int8)),
        clicked=pl.lit(1, dtype=pl.Int8),
    ).select(rows.columns)


def other_encoder(path: Path) -> pl.DataFrame:
    """A file of vectors as another encoder makes them: turned by a random rotation, so that all is said otherwise."""
    table = pl.read_parquet(path)
    vectors = np.stack(table["vector"].to_numpy())
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(vectors.shape[1],) * 2))
    turned = (vectors @ turn).astype(np.float32)
    return table.with_columns(pl.Series("vector", turned.tolist(), dtype=table.schema["vector"]))
