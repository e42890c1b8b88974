"""The cost of a day: adding one to a windowed feature set, beside building the whole window."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.bench_features import ROWS_A_USER
from benchmarks.harness.measured import Measured, measure, medians
from benchmarks.harness.report import Report, size_name

COLUMNS = {"name": "build", "rows": "rows", "seconds": "seconds", "peak_mib": "peak MiB"}


def run(work: Path, say: Callable[[str], object], *, rows: int, window: int, repeats: int) -> Report:
    """Measure both on the same log of one file a day, each call in a fresh process; figures are medians.

    Args:
        work: folder for the raw log and what is built of it.
        say: told what goes on.
        rows: of six weeks.
        window: days of the feature set.
        repeats: calls of each.

    Raises:
        RuntimeError: a call failed, or an old day's files were not the earlier version's, byte for byte.
    """
    raw = str(work / "raw")
    say(f"simulating {rows:,} rows, one file a day")
    written = measure("benchmarks.jobs.daily:simulate_days", out=raw, rows=rows, users=rows // ROWS_A_USER)
    before, last = written.result[-2:]
    added, whole = [], []
    for number in range(1, repeats + 1):
        ours, fresh = str(work / f"added-{number}"), str(work / f"whole-{number}")
        measure("benchmarks.jobs.daily:build", raw=raw, out=ours, as_of=before, window=window)
        added.append(measure("benchmarks.jobs.daily:build", raw=raw, out=ours, as_of=last, window=window))
        whole.append(measure("benchmarks.jobs.daily:build", raw=raw, out=fresh, as_of=last, window=window))
        say(f"{number} of {repeats}: a day added {added[-1].seconds:.1f} s, whole window {whole[-1].seconds:.1f} s")
        kept = measure("benchmarks.jobs.daily:equal_files", folder=ours).result
        if kept != 2 * (window - 1) * added[-1].result["shards"]:
            raise RuntimeError(f"{kept} files of old days are equal, expected those of {window - 1} days")
    results = [_result("a day added", added), _result("whole window", whole)]
    ratio = results[0]["seconds"] / results[1]["seconds"]
    return Report(results, {f"day_over_window_{window}d_{size_name(rows)}": round(ratio, 3)}, COLUMNS)


def _result(name: str, runs: list[Measured]) -> dict[str, object]:
    seconds, peak = medians(runs)
    rows = runs[-1].result["rows"]
    return {"name": name, "rows": rows, "seconds": round(seconds, 3), "rows_per_s": rows / seconds, "peak_mib": peak}
