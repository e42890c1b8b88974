"""A month of nightly jobs without a hand: bad days, their exit codes, and the champion on the day after."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmarks.harness.measured import measure
from benchmarks.harness.report import Report, Section
from benchmarks.month.calendar import SERVED, promised
from benchmarks.month.checks import broken, mib_of, success_of, untold
from benchmarks.month.following import CONTRACT
from benchmarks.month.log import Arrivals
from benchmarks.month.night import Nights
from benchmarks.month.server import MlflowServer
from ctr.evaluation.significance import holm
from ctr.reporting.figures import BLUE, GREEN, GREY, ORANGE, plain
from features.errors import ConfigError
from pipelines.gate.pointers import current_name, registered_name
from pipelines.stages.basis import flat
from pipelines.workspace import Workspace

NAME = "simulated"
LEVEL = 0.05
WIDTH_OF_INTERVAL = 2 * 1.96  # standard errors
# A model of seconds; guards as a scheduled job has them.
SETTINGS: Mapping[str, dict[str, Any]] = {
    "data": {
        "interactions": {"path": "log/*.parquet"},
        "split": {"by": "days", "valid": 1, "test": 1},
        "truth": None,
        "history": {"max_len": 16},
        "checks": {
            "newest_day": "error",
            "day_rows": [0.7, 3.0],
            "max_age": "36h",
            "bot": "cap",
            "max_rows_per_user": 100,
        },
    },
    "model": {"attention_dim": 16, "vector_dim": 8, "cross_cells": 0},
    "train": {
        "batch_size": 256,
        "epochs": 3,
        "device": "cpu",
        "controls": "never",
        "checkpoint": {"steps": 3, "minutes": 5},
    },
}
COLUMNS = {
    "name": "day",
    "trouble": "trouble",
    "codes_shown": "exit",
    "status": "status",
    "auc_shown": "champion's AUC on the next day (95 %)",
    "beside_shown": "less the champion's before",
    "optimum_shown": "optimum",
    "fresh_shown": "trained anew",
    "disk_mib": "disk MiB",
    "seconds": "seconds",
}


@dataclass(frozen=True)
class MonthBench:
    """What the month is like.

    Args:
        rows, users, items: of the simulated log of six weeks.
        drift: how far tastes have gone when the six weeks end, 0 to 1.
        days: nights in sequence.
        window: days of a feature set: all but two train, one validates, the newest judges.
        calendar: troubles by number of the day, from 1.
        bot_rows: events of the bot.
        keep: of `quadrank gc`, every night.
        disk_mib: bound of the workspace and MLflow's store together, after each night's cleaning.
        fresh_every: every so many nights a model is trained from nothing beside.
    """

    rows: int
    users: int
    items: int
    drift: float
    days: int
    window: int
    calendar: Mapping[int, str]
    bot_rows: int
    keep: int
    disk_mib: int
    fresh_every: int


def run(work: Path, say: Callable[[str], object], *, settings: MonthBench) -> Report:
    """Run every night's job as a process of its own, then score what was served on the day after.

    Args:
        work: folder for the raw log, the workspace and MLflow's store.
        say: told what goes on.
        settings: of the month.

    Raises:
        ConfigError: fewer days in the log than are asked for; the first night promotes nothing.
        RuntimeError: MLflow's server does not start.
    """
    clean = work / "clean"
    dates = measure(
        "benchmarks.jobs.warm:simulate_days",
        out=str(clean),
        rows=settings.rows,
        users=settings.users,
        items=settings.items,
        drift=settings.drift,
    ).result
    first = settings.window - 1
    if len(dates) < first + settings.days + 1:
        raise ConfigError(
            f"--days {settings.days} --window {settings.window}d: need {first + settings.days + 1} days, the log has "
            f"{len(dates)}."
        )
    arrivals = Arrivals(clean, work / "live", settings.bot_rows)
    arrivals.begin(dates[:first])
    with MlflowServer(work / "mlflow") as server:
        month = _Month(settings, arrivals, server, work)
        for number in range(1, settings.days + 1):
            say(_line(month.night(number, dates[first + number - 1])))
            if month.champion is None:
                raise ConfigError(
                    f"--rows {settings.rows}: night {number} promoted nothing and nothing served before: so few rows "
                    f"teach too little: {_line(month.nights[-1])}. Simulate more."
                )
    scored = measure(
        "benchmarks.month.following:score_nights",
        clean=str(clean),
        work=str(work / "following"),
        nights=[
            {"next_day": dates[first + place + 1], "champion": night["champion"], "before": night["before"]}
            for place, night in enumerate(month.nights)
        ],
        window=settings.window,
        fresh_every=settings.fresh_every,
        settings=SETTINGS,
    )
    nights = [_shown({**night, **one}) for night, one in zip(month.nights, scored.result, strict=True)]
    held = checks_of(nights, settings.disk_mib)
    ratios = {"checks_failed": float(sum(check["held"] == "no" for check in held))}
    report = Report(nights, ratios, COLUMNS, {"month": figure_of(nights, settings.disk_mib)})
    return report.with_section(
        Section("what was checked", held, {"name": "check", "held": "held", "nights": "nights that failed"})
    )


class _Month:
    """The nights so far, and what the next one finds."""

    def __init__(self, settings: MonthBench, arrivals: Arrivals, server: MlflowServer, work: Path) -> None:
        self.settings, self.arrivals, self.server, self.work = settings, arrivals, server, work
        self.workspace = Workspace(work / "workspace")
        self.nights: list[dict[str, Any]] = []
        self.champion: str | None = None
        place = ["--root", str(arrivals.live), "--work", str(self.workspace.root), "--window", f"{settings.window}d"]
        job = ["run", "--data", str(CONTRACT), *place, "--warm-start", "champion", *_set_options()]
        self.workspace.root.mkdir()
        self._nights = Nights(job, self.workspace.root, server.uri, settings.keep)

    def night(self, number: int, day: str) -> dict[str, Any]:
        """What a night came to."""
        trouble = self.settings.calendar.get(number)
        self.arrivals.bring(day, trouble)
        self.server.stop() if trouble == "mlflow" else self.server.start()
        success = success_of(self.workspace, NAME)
        ended = self._nights.run(day, trouble)
        code = ended.codes[-1]
        lost = untold(self.workspace, NAME, code, ended.last_line, success)
        cleaned = self._nights.clean()
        alias = None if trouble == "mlflow" else self.server.champion(registered_name(NAME))
        before, self.champion = self.champion, self._kept_aside()
        found = {
            "name": str(number),
            "day": day,
            "trouble": trouble or "",
            "codes": list(ended.codes),
            "promised": list(promised(number, self.settings.calendar)),
            "status": _status(ended.summary),
            "error": ended.summary.get("error"),
            "refused_by": refused_by(ended.summary),
            "promoted": self.champion != before,
            "champion": self.champion,
            "before": before if before is not None and before != self.champion else None,
            "untold": lost,
            "broken": broken(self.workspace, NAME, alias),
            "gc": cleaned,
            "disk_mib": mib_of(self.workspace.root, self.server.folder),
            "seconds": ended.seconds,
        }
        self.nights.append(found)
        return found

    def _kept_aside(self) -> str | None:
        """A copy of the bundle that serves, which a later night's cleaning must not take from the comparison."""
        current = current_name(self.workspace.bundles(NAME))
        if current is None:
            return None
        kept = self.work / "served" / current
        if not kept.exists():
            shutil.copytree(self.workspace.bundles(NAME) / current, kept)
        return str(kept)


def checks_of(nights: Sequence[Mapping[str, Any]], disk_mib: int) -> list[dict[str, Any]]:
    """What must hold in every night, and the numbers of the nights in which it did not.

    Args:
        nights: scored.
        disk_mib: bound.
    """
    failed = {
        "the exit code is the one that is promised for the trouble": [
            night["name"] for night in nights if night["codes"][-1] not in night["promised"]
        ],
        "a bundle is promoted where the code says so, and only there": [
            night["name"]
            for night in nights
            if night["promoted"] != (night["codes"][-1] in SERVED and night["status"] != "nothing new")
        ],
        "outcome.json, LAST_SUCCESS, textfile and stderr tell of it": [n["name"] for n in nights if n["untold"]],
        "pointers and alias name whole things, the same": [n["name"] for n in nights if n["broken"]],
        f"after the cleaning at most {disk_mib} MiB": [n["name"] for n in nights if n["disk_mib"] > disk_mib],
        "what is promoted is not below the champion before it on the next day, beyond noise": worse(nights),
    }
    return [
        {"name": name, "held": "no" if found else "yes", "nights": ", ".join(found)} for name, found in failed.items()
    ]


def worse(nights: Sequence[Mapping[str, Any]]) -> list[str]:
    """Numbers of the nights whose promotion is below the champion before it, in AUC or log loss.

    Beyond noise is significant at 5 % for all promotions and both metrics together (Holm), one-sided.
    """
    chances = {}
    for night in nights:
        for metric, sign in (("auc", 1), ("log_loss", -1)) if night["beside"] else ():
            value, low, high = night["beside"][metric]
            error = (high - low) / WIDTH_OF_INTERVAL
            chances[night["name"], metric] = (
                NormalDist().cdf(sign * value / error) if error else float(sign * value >= 0)
            )
    adjusted = holm({f"{name} {metric}": chance for (name, metric), chance in chances.items()})
    found = {name for name, metric in chances if adjusted[f"{name} {metric}"] < LEVEL}
    return sorted(found, key=int)


def figure_of(nights: Sequence[Mapping[str, Any]], disk_mib: int) -> Figure:
    """AUC a day of the champion beside a fresh training and the optimum, with troubles and promotions; disk below."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    quality, disk = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    days = [int(night["name"]) for night in nights]
    quality.plot(days, [night["optimum"] for night in nights], "--", color=GREY, label="true probabilities")
    fresh = [(int(night["name"]), night["fresh"]) for night in nights if night["fresh"] is not None]
    quality.plot(*zip(*fresh, strict=True), "s-", color=GREEN, markersize=4, label="trained anew on a clean log")
    aucs = [night["auc"] for night in nights]
    quality.fill_between(
        days, [n["auc_low"] for n in nights], [n["auc_high"] for n in nights], color=BLUE, alpha=0.15, linewidth=0
    )
    quality.plot(days, aucs, "-", color=BLUE, label="champion, 95 % interval")
    promoted = [(day, night["auc"]) for day, night in zip(days, nights, strict=True) if night["promoted"]]
    if promoted:
        quality.plot(*zip(*promoted, strict=True), "^", color=BLUE, label="promoted that night")
    low = min(night["auc_low"] for night in nights)
    for day, night in zip(days, nights, strict=True):
        if night["trouble"]:
            quality.axvline(day, color=ORANGE, linewidth=1, linestyle=":")
            text = f"{night['trouble']} ({night['codes'][-1]})"
            quality.text(day, low, text, rotation=90, color=ORANGE, fontsize=8, ha="right", va="bottom")
    quality.set(ylabel="AUC on the next day")
    figure.legend(*quality.get_legend_handles_labels(), frameon=False, fontsize=9, loc="outside upper center", ncols=4)
    disk.bar(days, [night["disk_mib"] for night in nights], color=GREY)
    disk.axhline(disk_mib, color=ORANGE, linewidth=1)
    disk.set(xlabel="night", ylabel="disk, MiB")
    disk.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (quality, disk):
        plain(axes)
    return figure


def _set_options() -> list[str]:
    options = []
    for name, value in flat(SETTINGS, "").items():
        text = "null" if value is None else str(value)
        options += ["--set", f"{name}={text}"]
    return options


def _status(summary: Mapping[str, Any]) -> str:
    return str(summary.get("status") or "killed")


def refused_by(summary: Mapping[str, Any]) -> list[str]:
    """Rules of the gate that refused a bundle, by the JSON line of its job."""
    findings = (summary.get("gate") or {}).get("findings", [])
    return sorted({str(one["rule"]) for one in findings if one["refuses"] and not one["passed"]})


def _line(night: Mapping[str, Any]) -> str:
    codes = ", ".join(map(str, night["codes"]))
    reason = "; ".join([*night["refused_by"], *night["untold"], *night["broken"]]) or (night["error"] or "")[:160]
    told = f"night {night['name']} {night['trouble']}: exit {codes} {night['status']}, {night['seconds']:.0f} s"
    return f"{told}, {night['disk_mib']:.0f} MiB {reason}"


def _shown(night: dict[str, Any]) -> dict[str, Any]:
    """A night with what the table shows."""
    codes = ", ".join("killed" if code < 0 else str(code) for code in night["codes"])
    refused = f": {', '.join(night['refused_by'])}" if night["refused_by"] else ""
    beside = night["beside"]
    return {
        **night,
        "codes_shown": codes,
        "status": f"{night['status']}{refused}",
        "auc_shown": f"{night['auc']:.4f} ({night['auc_low']:.4f} to {night['auc_high']:.4f})",
        "beside_shown": "{:+.4f} ({:+.4f} to {:+.4f})".format(*beside["auc"]) if beside else "",
        "optimum_shown": f"{night['optimum']:.4f}",
        "fresh_shown": "" if night["fresh"] is None else f"{night['fresh']:.4f}",
    }
