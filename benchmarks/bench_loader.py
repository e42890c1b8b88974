"""Rows a second of the loader, beside a row-wise one on pandas as public training code has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks.bench_train import ROWS_A_USER_AND_POSITION
from benchmarks.harness.measured import measure
from benchmarks.harness.report import Report

COLUMNS = {"name": "loader", "rows_per_s": "rows/s"}
LITERAL_BATCHES = 3  # as many as are enough to see its rate


def run(
    work: Path,
    say: Callable[[str], object],
    *,
    rows: int,
    items: int,
    max_len: int,
    batch_size: int,
    batches: int,
    repeats: int,
) -> Report:
    """Load batches with both, in turns, each in a fresh process; figures are medians.

    Args:
        work: folder for the log and its feature set.
        say: told what goes on.
        rows: of the log, in the shape of MM-CTR (`benchmarks.inputs.mmctr_shaped`).
        items: of the catalogue.
        max_len: events of a history.
        batch_size: rows of a batch.
        batches: loaded in each call, several epochs where need be.
        repeats: calls of each.
    """
    say(f"simulating {rows:,} rows of {items:,} items, histories of up to {max_len}")
    folder = work / "mmctr"
    users = max(1, rows // (ROWS_A_USER_AND_POSITION * max_len))
    shape = measure(
        "benchmarks.inputs.mmctr_shaped:build", out=str(folder), rows=rows, users=users, items=items, max_len=max_len
    ).result
    rates: dict[str, list[float]] = {"row_wise": [], "ours": []}
    for number in range(1, repeats + 1):
        row_wise = measure(
            "benchmarks.jobs.literal:loader", folder=str(folder), batch_size=batch_size, batches=LITERAL_BATCHES
        )
        ours = measure(
            "benchmarks.jobs.train:loader", feature_set=shape["feature_set"], batch_size=batch_size, batches=batches
        )
        for name, call in (("row_wise", row_wise), ("ours", ours)):
            rates[name].append(call.result["rows_per_s"])
            say(f"{number} of {repeats}, {name}: {rates[name][-1]:,.0f} rows/s")
    rate = {name: median(of_name) for name, of_name in rates.items()}
    results = [{"name": name, "rows_per_s": value} for name, value in rate.items()]
    return Report(results, {"ours_over_row_wise": round(rate["ours"] / rate["row_wise"], 2)}, COLUMNS)
