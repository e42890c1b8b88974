"""Write the simulated log, or keep the one that the same arguments already made."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from features.progress import progress
from features.simulator.simulate import FILES, simulate
from features.store.atomic import write_text
from pipelines.json_text import json_text

RECORD = "simulation.json"


def simulate_once(out: Path, rows: int, users: int, items: int, seed: int, console: Console) -> dict[str, Any]:
    """Simulate into `out` unless it holds the log of the same arguments; returns the JSON summary."""
    arguments = {"rows": rows, "users": users, "items": items, "seed": seed}
    record = out / RECORD
    made = _made(out)
    if {key: made.get(key) for key in arguments} == arguments:
        console.print(f"raw log {out} (reused): {rows:,} impressions")
        return {"status": "reused", "exit_code": 0, **made}
    record.unlink(missing_ok=True)
    with progress("simulating", total=rows, unit="rows") as bar:
        summary = simulate(out, **arguments, progress=bar.advance_to)
    made = {**asdict(summary), "seed": seed, "out": str(out)}
    write_text(record, json_text(made, indent=2))
    has_both = not math.isnan(summary.optimal_auc)
    optimum = f"{summary.optimal_auc:.4f}" if has_both else "none, since all rows have one label"
    console.print(
        f"raw log {out}: {summary.rows:,} impressions, {summary.users:,} users, {summary.items:,} items, "
        f"click rate {summary.click_rate:.3f}, optimal AUC {optimum}, {summary.seconds:.1f} s"
    )
    return {"status": "done", "exit_code": 0, **made}


def _made(out: Path) -> dict[str, Any]:
    """What the record of a whole log says; nothing where a file is gone, or the record was broken."""
    try:
        found = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and all((out / name).is_file() for name in FILES) else {}
