"""Rows a second of training at the paper's sizes: the literal equations, FuxiCTR and ours, in one run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness.measured import ROOT, Measured, measure
from benchmarks.harness.report import Report
from benchmarks.profiling.scaling import scaling
from benchmarks.profiling.step_profile import profile
from features.errors import ConfigError

# As many rows a user that most of their histories are full.
ROWS_A_USER_AND_POSITION = 4
DEFAULT_VENV = ROOT / ".bench" / "fuxictr"
Result = dict[str, Any]
Say = Callable[[str], object]

COLUMNS = {
    "name": "training",
    "rows_per_s": "rows/s",
    "step_s": "step s",
    "peak_mib": "peak MiB",
    "step_mib": "of it the steps",
    "loss": "loss",
}
LITERAL, FUXICTR = "literal", "fuxictr_din"
HALF = {"train": {"precision": "bf16"}}
MERGED = {"model": {"merge_rows": True}}
OURS: dict[str, dict[str, Any]] = {
    "ours_fp32": {},
    "ours_fp32_merged": MERGED,
    "ours_bf16": HALF,
    "ours_bf16_merged": {**HALF, **MERGED},
}


@dataclass(frozen=True)
class TrainBench:
    """What is measured, and how often.

    Args:
        rows: of the log, in the shape of MM-CTR (`benchmarks.inputs.mmctr_shaped`).
        items: of the catalogue.
        max_len: events of a history.
        batch_size: rows a step.
        steps: steps timed in each call, after two that are not (one for the peers).
        repeats: calls of each.
        venv: folder of FuxiCTR's environment, made where it is not there; None for `.bench/fuxictr` of the checkout.
        peers: false measures ours alone.
        half: false leaves out half precision, which takes minutes a step on a processor without products of it.
        with_profile: also where a step's time goes, beside the roofline of this machine.
        with_scaling: also rows a second over batch size, history length and items.
        preset: model and training settings over those of conf/model/qin_paper.yaml, for all but FuxiCTR's own parts.
    """

    rows: int
    items: int
    max_len: int
    batch_size: int
    steps: int
    repeats: int
    venv: Path | None
    peers: bool
    half: bool
    with_profile: bool
    with_scaling: bool
    preset: dict[str, Any] = field(default_factory=dict)


def run(work: Path, say: Say, settings: TrainBench) -> Report:
    """Train each way for a few steps, in turns, each in a fresh process; figures are medians.

    Args:
        work: folder for the log and its feature set.
        say: told what goes on.
        settings: sizes, and what is measured.

    Raises:
        ConfigError: too few rows for the items; a process was killed.
        RuntimeError: a call failed.
    """
    rows, items, max_len = settings.rows, settings.items, settings.max_len
    say(f"simulating {rows:,} rows of {items:,} items, histories of up to {max_len}")
    folder = work / "mmctr"
    users = max(1, rows // (ROWS_A_USER_AND_POSITION * max_len))
    shape = measure(
        "benchmarks.inputs.mmctr_shaped:build", out=str(folder), rows=rows, users=users, items=items, max_len=max_len
    ).result
    say(f"{shape['rows']:,} training rows, {shape['mean_history']:.1f} events of history on average")
    calls = _calls(folder, shape["feature_set"], settings)
    runs: dict[str, list[Measured]] = {name: [] for name in calls}
    for number in range(1, settings.repeats + 1):
        for name, call in list(calls.items()):
            try:
                runs[name].append(call())
            except ConfigError as error:
                if name != FUXICTR:
                    raise
                say(f"{name} is left out: {error}")
                del calls[name], runs[name]
                continue
            say(f"{number} of {settings.repeats}, {name}: {runs[name][-1].result['rows_per_s']:,.0f} rows/s")
    results = [_result(name, of_name) for name, of_name in runs.items()]
    report = Report(results, _ratios(results), COLUMNS)
    if settings.with_profile:
        report = report.with_section(
            profile(shape["feature_set"], settings.batch_size, settings.preset, settings.half, say)
        )
    if settings.with_scaling:
        report = report.with_section(scaling(work, say, settings.preset))
    return report


def _calls(folder: Path, feature_set: str, settings: TrainBench) -> dict[str, Callable[[], Measured]]:
    preset, shared = settings.preset, {"batch_size": settings.batch_size, "steps": settings.steps}
    calls: dict[str, Callable[[], Measured]] = {}
    if settings.peers:
        venv = str(settings.venv or DEFAULT_VENV)
        given = {"folder": str(folder), "warmup": 1, "preset": preset, **shared}
        calls[LITERAL] = lambda: measure("benchmarks.jobs.literal:train", **given)
        calls[FUXICTR] = lambda: measure("benchmarks.peers.fuxictr_peer:train", venv=venv, **given)
    for name, own in OURS.items():
        if "train" in own and not settings.half:
            continue
        both = {part: {**preset.get(part, {}), **own.get(part, {})} for part in ("model", "train")}
        calls[name] = lambda both=both: measure(  # type: ignore[misc]
            "benchmarks.jobs.train:train", feature_set=feature_set, warmup=2, preset=both, **shared
        )
    return calls


def _result(name: str, runs: list[Measured]) -> Result:
    results = [one.result for one in runs]
    peak = median(one["peak_mib"] for one in results)
    return {
        "name": name,
        "rows_per_s": median(one["rows_per_s"] for one in results),
        "step_s": round(median(median(one["step_seconds"]) for one in results), 3),
        "peak_mib": peak,
        "step_mib": round(median(one["peak_mib"] - one["before_mib"] for one in results), 1),
        "loss": round(results[-1]["loss"], 4) if "loss" in results[-1] else None,
        "parameters": results[-1].get("parameters"),
        "all_rows_per_s": [round(one["rows_per_s"], 1) for one in results],
    }


def _ratios(results: list[Result]) -> dict[str, float]:
    by_name = {result["name"]: result for result in results}
    measured = [name for name in OURS if name in by_name]
    ratios = {}
    for peer in (LITERAL, FUXICTR):
        if peer in by_name:
            for ours in measured:
                speed = by_name[ours]["rows_per_s"] / by_name[peer]["rows_per_s"]
                ratios[f"{ours}_over_{peer}"] = round(speed, 2)
    # Memory that a process held before its steps can hide theirs; then there is nothing to compare with.
    if LITERAL in by_name and by_name[LITERAL]["step_mib"]:
        for ours in measured:
            memory = by_name[ours]["step_mib"] / by_name[LITERAL]["step_mib"]
            ratios[f"step_memory_{ours}_over_{LITERAL}"] = round(memory, 3)
    return ratios
