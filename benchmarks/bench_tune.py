"""Schedules of a sweep beside each other: how good a winner is, over the training rows read; what a sweep costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.harness.measured import measure
from benchmarks.harness.report import Report, Section
from ctr.reporting.figures import BLUE, GREEN, GREY, ORANGE

SCHEDULES = ("screen", "median", "hyperband", "none")
COLOURS = dict(zip(SCHEDULES, (BLUE, GREEN, ORANGE, GREY), strict=True))
MARKS = {"screen": 6, "median": 10, "hyperband": 6, "none": 6}  # points: median and hyperband often lie on each other
COLUMNS = {
    "name": "schedule",
    "repetition": "rep.",
    "rows": "rows read",
    "share": "share",
    "interval": "AUC of the winner",
    "gain_interval": "over the current settings",
}
OVERHEAD = {"name": "trials", "processor_ms": "processor ms a trial", "wall_ms": "wall ms a trial"}
OVERHEAD_TRIALS, OVERHEAD_EVALUATIONS = 100, 12


@dataclass(frozen=True)
class TuneBench:
    """What is compared.

    Args:
        data: contract.
        root: of its raw files; None as it says.
        model: preset, which is the current settings.
        space: search space; what its schedules need is that of conf/tune.yaml.
        trials: of each study.
        repetitions: studies of each schedule, each with a seed of its own.
        seeds: trainings of each winner that judge it.
        assignments: `--set` values.
    """

    data: Path
    root: str | None
    model: Path
    space: Path
    trials: int
    repetitions: int
    seeds: int
    assignments: tuple[str, ...] = ()


def run(work: Path, say: Callable[[str], object], *, settings: TuneBench) -> Report:
    """Run each schedule as often as asked, train its winners anew, and compare them on the same rows.

    Args:
        work: folder of feature sets, runs and stores.
        say: told what goes on.
        settings: what is compared.

    Raises:
        RuntimeError: a study or a training failed.
    """
    shared = {
        "data": str(settings.data.resolve()),
        "root": settings.root,
        "model": str(settings.model.resolve()),
        "assignments": list(settings.assignments),
    }
    found = {}
    for repetition in range(1, settings.repetitions + 1):
        for schedule in SCHEDULES:
            study = measure(
                "benchmarks.jobs.tune:sweep", **shared, work=str(work / "sweeps"), space=str(settings.space.resolve()),
                schedule=schedule, trials=settings.trials, seed=repetition,
            ).result  # fmt: skip
            found[schedule, repetition] = study
            say(f"{schedule}, repetition {repetition}: {study['rows']:,} rows, {study['seconds']:.0f} s")
    candidates = {"current": {}} | {f"{name} {number}": one["params"] for (name, number), one in found.items()}
    say(f"training {len(candidates)} settings with {settings.seeds} seeds each")
    judged = measure(
        "benchmarks.jobs.tune:judge", **shared, work=str(work), candidates=candidates, seeds=settings.seeds
    ).result
    results = []
    for (name, number), one in found.items():
        told = judged[f"{name} {number}"]
        results.append({
            "name": name, "repetition": number, "rows": one["rows"],
            "share": f"{one['rows'] / found['none', number]['rows']:.0%}", "seconds": round(one["seconds"], 1),
            "auc": round(told["auc"], 4), "gain": round(told["gain"], 4),
            "interval": f"{told['auc']:.4f} ({told['auc_low']:.4f} – {told['auc_high']:.4f})",
            "gain_interval": f"{told['gain']:+.4f} ({told['gain_low']:+.4f} to {told['gain_high']:+.4f})",
        })  # fmt: skip
    rows = {
        name: sum(found[name, number]["rows"] for number in range(1, settings.repetitions + 1)) for name in SCHEDULES
    }
    ratios = {f"rows_of_{name}_over_none": round(rows[name] / rows["none"], 3) for name in SCHEDULES if name != "none"}
    say("measuring the tuner itself")
    cost = measure("benchmarks.jobs.tune:overhead", trials=OVERHEAD_TRIALS, evaluations=OVERHEAD_EVALUATIONS).result
    seconds = sum(one["seconds"] for one in found.values()) / (len(found) * settings.trials)
    section = Section(
        "the tuner itself, with trials that do nothing",
        [{"name": OVERHEAD_TRIALS, "processor_ms": round(1e3 * cost["processor"], 1),
          "wall_ms": round(1e3 * cost["wall"], 1)}],
        OVERHEAD,
        {"tuner_over_trial": round(cost["wall"] / seconds, 4)},
    )  # fmt: skip
    figure = figure_of(results, {name: one for name, one in judged.items() if name != "current"})
    return Report(results, ratios, COLUMNS, {"schedules": figure}, sections=(section,))


def figure_of(results: list[dict[str, Any]], judged: Mapping[str, Mapping[str, float]]) -> Figure:
    """What each winner gains over the current settings, with its interval, over the training rows that were read."""
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axes = figure.subplots()
    for one in results:
        told = judged[f"{one['name']} {one['repetition']}"]
        error = [[told["gain"] - told["gain_low"]], [told["gain_high"] - told["gain"]]]
        axes.errorbar(
            one["rows"] / 1e6,
            told["gain"],
            yerr=error,
            fmt="o",
            color=COLOURS[one["name"]],
            markersize=MARKS[one["name"]],
        )
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set(xlabel="training rows read, millions", ylabel="AUC of the winner\nless that of the current settings")
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    marks = [
        Line2D([], [], marker="o", linestyle="", color=colour, markersize=MARKS[name], label=name)
        for name, colour in COLOURS.items()
    ]
    figure.legend(handles=marks, loc="outside right upper", frameon=False)
    return figure
