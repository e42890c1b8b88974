"""How training grows: rows a second and a step's memory over batch size, history length and items of the catalogue."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from benchmarks.harness.measured import measure
from benchmarks.harness.report import Section
from ctr.reporting.figures import BLUE, ORANGE

BATCH_SIZES = (512, 2048, 8192)
LENGTHS = (16, 64, 256, 512)
ITEMS = (10_000, 100_000, 1_000_000, 5_000_000)
STEPS, WARMUP = 2, 2
SMALL_BATCH = 2048  # for lengths and items, so that the longest history fits
USUAL_LENGTH, USUAL_ITEMS = 64, 91_717
# Rows that lie in one table of this many items leave no room for two moments of each.
SPARSE = {"precision": "bf16", "table_optimizer": "rowwise_adagrad"}
AXES = {"batch_size": "rows of a batch", "max_len": "events of a history", "items": "items of the catalogue"}
COLUMNS = {
    "name": "what grows",
    "batch_size": "batch",
    "max_len": "history",
    "items": "items",
    "rows_per_s": "rows/s",
    "before_mib": "MiB before",
    "step_mib": "MiB of the steps",
    "mapped_mib": "and mapped",
}

Result = dict[str, Any]


def scaling(
    work: Path,
    say: Callable[[str], object],
    preset: dict[str, Any],
    batch_sizes: Sequence[int] = BATCH_SIZES,
    lengths: Sequence[int] = LENGTHS,
    items: Sequence[int] = ITEMS,
) -> Section:
    """Ours in bf16, one size varied at a time; tables are moved by row where the number of items grows.

    `step_memory_items` is the memory of the steps at the most items over that at the fewest: 1 is flat.
    """
    cases = [("batch_size", size, USUAL_LENGTH, USUAL_ITEMS) for size in batch_sizes]
    cases += [("max_len", SMALL_BATCH, length, USUAL_ITEMS) for length in lengths]
    cases += [("items", SMALL_BATCH, USUAL_LENGTH, count) for count in items]
    results: list[Result] = []
    for axis, batch_size, max_len, count in cases:
        training = SPARSE if axis == "items" else {"precision": "bf16"}
        results.append(_one(work / "scaling", axis, batch_size, max_len, count, training, preset))
        last = results[-1]
        say(f"{AXES[axis]} {last[axis]:,}: {last['rows_per_s']:,.0f} rows/s, {last['step_mib']:,.0f} MiB")
    of_items = [result["step_mib"] for result in results if result["name"] == "items"]
    ratios = {"step_memory_items": round(of_items[-1] / of_items[0], 3)}
    return Section("how it grows", results, COLUMNS, ratios, {"scaling": figure(results)})


def figure(results: Sequence[Result]) -> Figure:
    """Three panels, one an axis: rows a second and, on the right, MiB of the steps; all logarithmic."""
    drawn = Figure(figsize=(12, 3.8), layout="constrained")
    for axes, (axis, label) in zip(drawn.subplots(1, len(AXES)), AXES.items(), strict=True):
        of_axis = [result for result in results if result["name"] == axis]
        sizes = [result[axis] for result in of_axis]
        memory = axes.twinx()
        axes.loglog(sizes, [result["rows_per_s"] for result in of_axis], "o-", color=BLUE, markersize=4)
        memory.loglog(sizes, [result["step_mib"] for result in of_axis], "s--", color=ORANGE, markersize=4)
        axes.set_xlabel(label)
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylabel("rows a second", color=BLUE)
        memory.set_ylabel("MiB of the steps", color=ORANGE)
        for side, key in ((axes, "rows_per_s"), (memory, "step_mib")):
            values = [result[key] for result in of_axis]
            # Room on both sides: the eye must not make a mountain of a tenth.
            side.set_ylim(min(values) / 3, max(values) * 3)
            side.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            side.yaxis.set_minor_formatter(NullFormatter())
            side.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        axes.spines[["top"]].set_visible(False)
        memory.spines[["top"]].set_visible(False)
        axes.grid(True, color="#e5e5e5", linewidth=0.8)
    return drawn


def _one(
    folder: Path, axis: str, batch_size: int, max_len: int, items: int, training: dict[str, Any], preset: dict[str, Any]
) -> Result:
    rows = max(int(items * 1.3), 3 * batch_size * (STEPS + WARMUP))
    shape = measure(
        "benchmarks.inputs.mmctr_shaped:build",
        out=str(folder),
        rows=rows,
        users=max(1, min(2_000, rows // (4 * max_len))),
        items=items,
        max_len=max_len,
    ).result
    both = {"model": preset.get("model", {}), "train": {**preset.get("train", {}), **training}}
    done = measure(
        "benchmarks.jobs.train:train",
        feature_set=shape["feature_set"],
        batch_size=batch_size,
        steps=STEPS,
        warmup=WARMUP,
        preset=both,
    ).result
    shutil.rmtree(folder)
    return {
        "name": axis,
        "batch_size": batch_size,
        "max_len": max_len,
        "items": items,
        "rows_per_s": done["rows_per_s"],
        "before_mib": done["before_mib"],
        "step_mib": round(done["peak_mib"] - done["before_mib"] - done["mapped_mib"], 1),
        "mapped_mib": done["mapped_mib"],
    }
