"""Policies of daily training on a log that drifts: quality a day and compute, beside training from nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.harness.measured import measure
from benchmarks.harness.report import Report
from ctr.evaluation.bootstrap import UserDraws, percentile_interval
from ctr.evaluation.metrics import RankedRows
from ctr.reporting.figures import BLUE, GREEN, GREY, ORANGE
from features.errors import ConfigError

Settings = dict[str, Any]
Day = dict[str, Any]

COLUMNS = {
    "name": "policy",
    "says": "",
    "auc_shown": "AUC",
    "auc_beside": "AUC less scratch's (95 %)",
    "log_loss_beside": "log loss less scratch's (95 %)",
    "row_passes": "rows trained",
    "compute": "of scratch's",
    "seconds": "seconds",
}
COLOURS = (
    GREY,
    BLUE,
    ORANGE,
    GREEN,
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#882255",
    "#117733",
    "#999933",
    "#332288",
    "#661100",
    "#88CCEE",
    "#DDCC77",
)


@dataclass(frozen=True)
class Policy:
    """How a day's model comes to be.

    Args:
        says: what it does, in words.
        warm: whether it goes on from the day before; else it is trained from nothing on the whole window.
        train: overrides of the training settings.
        full_every: every so many days are trained from nothing all the same; 0 for none.
    """

    says: str
    warm: bool = True
    train: Settings = field(default_factory=dict)
    full_every: int = 0


def _warm(**settings: Any) -> Settings:
    """At the whole rate, where it does not say otherwise: one thing is changed at a time."""
    return {"warm_start": {"rate": 1.0} | settings}


SCRATCH = "scratch"
POLICIES = {
    SCRATCH: Policy("from nothing on the whole window", warm=False),
    "scratch_1_epoch": Policy("the same, one epoch", warm=False, train={"epochs": 1}),
    "keep": Policy("moments go on, a quarter of the older rows again", train=_warm()),
    "keep_rate_half": Policy("at half the rate", train=_warm(rate=0.5)),
    "keep_rate_quarter": Policy("at a quarter of the rate", train=_warm(rate=0.25)),
    "keep_rewarm": Policy("the rate rises over 20 steps", train=_warm(rewarm_steps=20)),
    "decay": Policy("second moments count half", train=_warm(accumulators="decay")),
    "reset": Policy("moments begin anew", train=_warm(accumulators="reset")),
    "reset_rewarm": Policy(
        "moments begin anew, the rate rises over 20 steps", train=_warm(accumulators="reset", rewarm_steps=20)
    ),
    "no_replay": Policy("new rows alone", train=_warm(replay=0.0)),
    "replay_all": Policy("the whole window, one epoch", train=_warm(replay=1.0)),
    "unknown_rows": Policy("new items begin as the unknown one", train=_warm(new_rows="unknown")),
    "zero_for_new": Policy("new rows have no second moments", train=_warm(new_accumulators="zero")),
    "full_every_7": Policy("each seventh day from nothing", train=_warm(), full_every=7),
}


@dataclass(frozen=True)
class WarmBench:
    """What is measured.

    Args:
        rows: of the simulated log of six weeks.
        users, items: of it.
        days: how many are trained one after the other.
        window: days that a model is trained on, before the one that validates and the one that judges it.
        drift: how far tastes have gone when the six weeks end, 0 to 1.
        policies: names in `POLICIES`; scratch is always among them.
        seeds: how many, from 1.
    """

    rows: int
    users: int
    items: int
    days: int
    window: int
    drift: float
    policies: tuple[str, ...]
    seeds: int = 1


def run(work: Path, say: Callable[[str], object], *, settings: WarmBench) -> Report:
    """Train each policy through the same days, each in a fresh process.

    Every policy begins with the same full training of the day before the first one, and is judged on the day that comes
    after the one that validates it: rows that nothing was fitted on.

    Args:
        work: folder for the raw log, feature sets and runs.
        say: told what goes on.
        settings: what to measure.

    Raises:
        ConfigError: no such policy, or fewer days in the log than are asked for.
        RuntimeError: a training failed.
    """
    names = [SCRATCH, *(name for name in settings.policies if name != SCRATCH)]
    if unknown := [name for name in names if name not in POLICIES]:
        raise ConfigError(f"--policies {unknown[0]!r}: choose among {', '.join(POLICIES)}.")
    raw, sets = str(work / "raw"), str(work / "feature_sets")
    days = measure(
        "benchmarks.jobs.warm:simulate_days",
        out=raw,
        rows=settings.rows,
        users=settings.users,
        items=settings.items,
        drift=settings.drift,
    ).result
    needed = settings.window + 2 + settings.days
    if len(days) < needed:
        raise ConfigError(
            f"--days {settings.days} --window {settings.window}d: need {needed} days, the log has {len(days)}."
        )
    built = measure(
        "benchmarks.jobs.warm:build",
        raw=raw,
        out=sets,
        days=days[-settings.days - 1 :],
        window=settings.window + 2,
    )
    say(f"{settings.rows:,} rows, {len(built.result)} feature sets in {built.seconds:.0f} s")
    runs: dict[str, list[list[Day]]] = {name: [] for name in names}
    for seed in range(1, settings.seeds + 1):
        first = str(work / f"first-{seed}")
        measure(
            "benchmarks.jobs.warm:start", feature_set=built.result[0], folder=first, model={}, training={}, seed=seed
        )
        for name in names:
            policy = POLICIES[name]
            done = measure(
                "benchmarks.jobs.warm:follow",
                feature_sets=built.result,
                folder=str(work / name / str(seed)),
                first=first,
                model={},
                training=policy.train,
                warm=policy.warm,
                full_every=policy.full_every,
                seed=seed,
            )
            runs[name].append(done.result)
            aucs = [day["auc"] for day in done.result]
            say(f"seed {seed} {name}: AUC {mean(aucs):.4f}, {sum(d['seconds'] for d in done.result):.0f} s")
    scores = {
        name: [_scored(work / name / str(seed + 1), settings.days) for seed in range(settings.seeds)] for name in names
    }
    results = [_result(name, runs, scores) for name in names]
    ratios = {f"compute_{one['name']}_over_scratch": one["compute"] for one in results[1:]}
    ratios |= {f"auc_{one['name']}_minus_scratch": one["auc_difference"] for one in results[1:]}
    return Report(results, ratios, COLUMNS, {"warm": figure_of(results, runs)})


def paired_by_user(
    days: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]], seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """Mean over days of a day's metric of one model less that of another, with the 95 % interval over users.

    A user is drawn for all days at once: what the same person does on two days is not independent.

    Args:
        days: of each, labels [N], scores of the one and of the other [N], and users [N], comparable over days.
        seed: of the draws.

    Returns:
        Of `auc` and `log_loss`: difference, low, high.
    """
    ends = np.cumsum([0, *(len(labels) for labels, *_ in days)])
    ranked = [(RankedRows(labels, one), RankedRows(labels, other)) for labels, one, other, _ in days]
    losses = [_losses(labels, one) - _losses(labels, other) for labels, one, other, _ in days]

    def differences(weights_N: np.ndarray) -> tuple[float, float]:
        parts = [weights_N[start:end] for start, end in pairwise(ends)]
        aucs = [one.auc(part) - other.auc(part) for (one, other), part in zip(ranked, parts, strict=True)]
        lost = [float(np.average(loss, weights=part)) for loss, part in zip(losses, parts, strict=True) if part.any()]
        return float(np.nanmean(aucs)), mean(lost)

    users_N = np.concatenate([users for *_, users in days])
    drawn = np.array([differences(times_N) for times_N in UserDraws(users_N).by_row(seed)])
    low, high = percentile_interval(drawn)
    exact = differences(np.ones(len(users_N)))
    return {
        name: (exact[place], float(low[place]), float(high[place])) for place, name in enumerate(("auc", "log_loss"))
    }


def figure_of(results: Sequence[Mapping[str, Any]], runs: Mapping[str, Sequence[Sequence[Day]]]) -> Figure:
    """Quality over compute, with intervals, beside AUC less that of scratch from day to day."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    trade, by_day = figure.subplots(1, 2)
    scratch = _by_day(runs[SCRATCH])
    for result, colour in zip(results, COLOURS, strict=False):
        name = result["name"]
        error = [[result["auc_difference"] - result["auc_low"]], [result["auc_high"] - result["auc_difference"]]]
        trade.errorbar(result["compute"], result["auc_difference"], yerr=error, fmt="o", color=colour, label=name)
        days = _by_day(runs[name]) - scratch
        by_day.plot(np.arange(1, len(days) + 1), days, "o-", markersize=3, color=colour)
    trade.axhline(0, color=GREY, linewidth=0.8)
    trade.set(xlabel="rows trained, scratch = 1", ylabel="AUC less that of scratch", xscale="log")
    by_day.set(xlabel="day", ylabel="AUC less that of scratch")
    for axes in (trade, by_day):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, color="#e5e5e5", linewidth=0.8)
    figure.legend(*trade.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _losses(labels_N: np.ndarray, scores_N: np.ndarray) -> np.ndarray:
    """Log loss of each row, [N]."""
    clipped_N = np.clip(scores_N.astype(np.float64), 1e-7, 1 - 1e-7)
    return -np.log(np.where(labels_N > 0, clipped_N, 1 - clipped_N))


def _by_day(seeds: Sequence[Sequence[Day]]) -> np.ndarray:
    days: np.ndarray = np.mean([[day["auc"] for day in one] for one in seeds], axis=0)
    return days


def _scored(folder: Path, days: int) -> list[dict[str, np.ndarray]]:
    return [dict(np.load(folder / str(number) / "test.npz")) for number in range(1, days + 1)]


def _result(
    name: str, runs: Mapping[str, list[list[Day]]], scores: Mapping[str, list[list[dict[str, np.ndarray]]]]
) -> dict[str, Any]:
    ours, theirs = scores[name], scores[SCRATCH]
    # Seeds are further days of the same users.
    pairs = [pair for one, other in zip(ours, theirs, strict=True) for pair in zip(one, other, strict=True)]
    paired = paired_by_user([(one["labels"], one["scores"], other["scores"], one["users"]) for one, other in pairs])
    passes, of_scratch = (sum(day["row_passes"] for seed in runs[key] for day in seed) for key in (name, SCRATCH))
    seeds = len(runs[name])
    found = {
        "name": name,
        "says": POLICIES[name].says,
        "auc": round(float(_by_day(runs[name]).mean()), 4),
        "row_passes": passes // seeds,
        "compute": round(passes / of_scratch, 4),
        "seconds": round(sum(day["seconds"] for seed in runs[name] for day in seed) / seeds, 1),
        "by_day": _by_day(runs[name]).round(5).tolist(),
    }
    found["auc_shown"] = f"{found['auc']:.4f}"
    for metric, (difference, low, high) in paired.items():
        found |= {
            f"{metric}_beside": "" if name == SCRATCH else f"{difference:+.4f} ({low:+.4f} to {high:+.4f})",
            f"{metric}_difference": round(difference, 5),
            f"{metric}_low": round(low, 5),
            f"{metric}_high": round(high, 5),
        }
    return found
