"""What `benchmarks.bench_daily` measures, each a function that runs in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.jobs.feature_build import CONTRACT, MOST_ITEMS
from features.build.build import build_feature_set
from features.contract.contract import load_contract
from features.simulator.simulate import simulate
from features.store.feature_set import FeatureSet


def simulate_days(out: str, rows: int, users: int) -> list[str]:
    """Write a raw log of one file a day; returns the days that are whole."""
    folder = Path(out)
    simulate(folder, rows=rows, users=users, items=min(MOST_ITEMS, max(rows // 20, 30)), seed=1)
    return write_days(folder)


def write_days(folder: Path) -> list[str]:
    """Write `log/`, a file a day, of the simulated log in a folder; returns the days that are whole."""
    log = pl.read_parquet(folder / "interactions.parquet").with_columns(day=pl.col("timestamp").dt.date())
    (folder / "log").mkdir()
    days = []
    for (day,), part in log.group_by(["day"]):
        part.drop("day").write_parquet(folder / "log" / f"{day}.parquet")
        days.append(str(day))
    return sorted(days)[:-1]  # the simulator's last hours reach into one day more


def build(raw: str, out: str, as_of: str, window: int) -> dict[str, Any]:
    """Build the feature set of the window that ends with a day; returns its rows and shards."""
    over = {
        "interactions": {"path": "log/*.parquet"},
        "split": {"by": "days", "valid": 1, "test": 1},
    }
    contract = load_contract(CONTRACT, over, root=raw)
    manifest = build_feature_set(contract, Path(out), as_of=as_of, window=window).feature_set.manifest
    return {"rows": sum(one.rows for one in manifest.windows.values()), "shards": manifest.shards}


def equal_files(folder: str) -> int:
    """How many files of rows and events the two versions in a folder share by name and content."""
    old, new = (FeatureSet.open(path.parent) for path in sorted(Path(folder).glob("*/*/MANIFEST.json")))
    new.verify()
    files = {name: entry for name, entry in new.manifest.files.items() if name.startswith(("rows/", "events/"))}
    return sum(name in old.manifest.files and old.manifest.files[name] == entry for name, entry in files.items())
