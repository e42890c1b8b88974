"""Write the simulated log, or keep the one that the same arguments already made."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from features.progress import progress
from features.simulator.simulate import simulate
from features.store.atomic import write_text

RECORD = "simulation.json"


def simulate_once(out: Path, rows: int, users: int, items: int, seed: int, console: Console) -> dict[str, Any]:
    """Simulate into `out` unless it holds the log of the same arguments; returns the JSON summary."""
    arguments = {"rows": rows, "users": users, "items": items, "seed": seed}
    record = out / RECORD
    if record.is_file():
        made = json.loads(record.read_text(encoding="utf-8"))
        if {key: made.get(key) for key in arguments} == arguments:
            console.print(f"raw log {out} (reused): {rows:,} impressions")
            return {"status": "reused", "exit_code": 0, **made}
        record.unlink()
    with progress("simulating", total=rows, unit="rows") as bar:
        summary = simulate(out, **arguments, progress=bar.advance_to)
    made = {**asdict(summary), "seed": seed, "out": str(out)}
    write_text(record, json.dumps(made, indent=2))
    console.print(
        f"raw log {out}: {summary.rows:,} impressions, {summary.users:,} users, {summary.items:,} items, "
        f"click rate {summary.click_rate:.3f}, optimal AUC {summary.optimal_auc:.4f}, {summary.seconds:.1f} s"
    )
    return {"status": "done", "exit_code": 0, **made}
