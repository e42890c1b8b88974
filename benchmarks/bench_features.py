"""The cost of a feature build: rows a second, peak memory and bytes on disk as a simulated log grows, beside pandas."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness.growth import growth
from benchmarks.harness.measured import Measured, measure, medians
from benchmarks.harness.report import Report, size_name
from benchmarks.jobs.feature_build import MAX_LEN, MOST_ITEMS

ROWS_A_USER = 50  # 200,000 users at 10 million rows
ROWS_AN_ITEM, FEWEST_ITEMS = 20, 30

OURS = "ours"
PEERS = {
    "pandas": "benchmarks.peers.pandas_features:build",
    "pandas_numpy": "benchmarks.peers.pandas_features:build_with_numpy",
}
LAYOUTS = ("copied", "copied_with_time", "padded")
COLUMNS = {
    "name": "build",
    "rows": "rows",
    "seconds": "seconds",
    "rows_per_s": "rows/s",
    "peak_mib": "peak MiB",
    "bytes_per_row": "bytes/row",
    "copied_bytes_per_row": "copied",
    "copied_with_time_bytes_per_row": "and times",
    "padded_bytes_per_row": "padded",
}

Result = dict[str, Any]
Say = Callable[[str], object]


def run(work: Path, say: Say, *, sizes: Sequence[int], pandas_rows: int, repeats: int) -> Report:
    """Measure our build at each size, and the builds of the same features with pandas at one of them.

    All take turns on the same raw files, each call in a fresh process; figures are medians.

    Args:
        work: folder for raw logs and what is built of them.
        say: told what goes on.
        sizes: rows of the logs; 50 a user.
        pandas_rows: rows at which pandas is run; added to the sizes if it is not one.
        repeats: calls of each.

    Raises:
        ConfigError: a process was killed.
        RuntimeError: a call failed, or pandas made other features than we did.
    """
    results: list[Result] = []
    for rows in sorted({*sizes, pandas_rows}):
        folder = work / str(rows)
        results += _at_size(folder, say, rows, repeats, PEERS if rows == pandas_rows else {})
        shutil.rmtree(folder)
    ours = [result for result in results if result["build"] == OURS]
    peers = [result for result in results if result["build"] != OURS]
    return Report(results, ratios(ours, peers), COLUMNS, {"growth": growth(ours)})


def ratios(ours: Sequence[Result], peers: Sequence[Result]) -> dict[str, float]:
    """What is claimed of the results.

    Args:
        ours: by rising rows. Bytes are compared at the last size but one (of 1, 10 and 40 million: 10), and growth of
            memory from there to the last; growth of time from the first to the last.
        peers: at one of those sizes.
    """
    found = {}
    for peer in peers:
        beside = next(result for result in ours if result["rows"] == peer["rows"])
        found[f"ours_over_{peer['build']}"] = beside["rows_per_s"] / peer["rows_per_s"]
        found[f"peak_{peer['build']}_over_ours"] = peer["peak_mib"] / beside["peak_mib"]
    first, usual, last = ours[0], ours[max(len(ours) - 2, 0)], ours[-1]
    if len(ours) > 1:
        grown = f"{size_name(last['rows'])}_over_{size_name(usual['rows'])}"
        found[f"peak_{grown}"] = last["peak_mib"] / usual["peak_mib"]
        grown = f"{size_name(last['rows'])}_over_{size_name(first['rows'])}"
        found[f"seconds_per_row_{grown}"] = first["rows_per_s"] / last["rows_per_s"]
    for layout in LAYOUTS:
        found[f"bytes_{layout}_over_ours"] = usual[f"{layout}_bytes_per_row"] / usual["bytes_per_row"]
    return {name: round(value, 3) for name, value in found.items()}


def _at_size(folder: Path, say: Say, rows: int, repeats: int, peers: dict[str, str]) -> list[Result]:
    size, raw = size_name(rows), str(folder / "raw")
    users, items = max(rows // ROWS_A_USER, 1), min(max(rows // ROWS_AN_ITEM, FEWEST_ITEMS), MOST_ITEMS)
    say(f"{size}: simulating {rows:,} rows, {users:,} users, {items:,} items")
    measure("benchmarks.jobs.feature_build:simulate", out=raw, rows=rows, users=users, items=items)
    targets = {OURS: "benchmarks.jobs.feature_build:build", **peers}
    runs: dict[str, list[Measured]] = {build: [] for build in targets}
    for number in range(1, repeats + 1):
        for build, target in targets.items():
            out = folder / build
            shutil.rmtree(out, ignore_errors=True)
            done = measure(target, raw=raw, out=str(out), max_len=MAX_LEN)
            runs[build].append(done)
            speed = f"{done.seconds:.1f} s, {rows / done.seconds:,.0f} rows/s, {done.peak_mib:,.0f} MiB"
            say(f"{size}: {build} {number} of {repeats}: {speed}")
    built = runs[OURS][-1].result["path"]
    weight = measure("benchmarks.peers.copied_histories:bytes_per_row", feature_set=built).result
    results = [_result(OURS, rows, runs[OURS]) | _stages(runs[OURS]) | {"bytes_per_row": weight["ours"]}]
    results[0] |= {f"{layout}_bytes_per_row": weight[layout] for layout in LAYOUTS}
    for peer in peers:
        compared = measure("benchmarks.peers.agreement:compare", ours=built, theirs=str(folder / peer), raw=raw).result
        say(f"{size}: {peer} made the same features ({compared:,} rows compared)")
        results.append(_result(peer, rows, runs[peer]) | {"rows_compared": compared})
    return results


def _result(build: str, rows: int, runs: Sequence[Measured]) -> Result:
    seconds, peak = medians(runs)
    return {
        "name": f"{build}_{size_name(rows)}",
        "build": build,
        "rows": rows,
        "seconds": round(seconds, 3),
        "all_seconds": [round(run.seconds, 3) for run in runs],
        "rows_per_s": round(rows / seconds),
        "peak_mib": peak,
    }


def _stages(runs: Sequence[Measured]) -> Result:
    stages = runs[0].result["stages"]
    return {"stages": {stage: round(median(run.result["stages"][stage] for run in runs), 3) for stage in stages}}
