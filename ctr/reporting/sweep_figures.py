"""Figures of a sweep: how the best came about, which settings matter, where good trials lie, two objectives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from ctr.reporting.figures import BLUE, GREY, ORANGE, name_rows, plain

ROW_INCHES = 0.3
PANELS_A_ROW = 3


@dataclass(frozen=True)
class TrialPoint:
    """One trial of a sweep.

    Args:
        number: of the trial.
        value: of the metric; None where it did not end with one.
        complete: whether it was trained to its end.
        params: its drawn values.
    """

    number: int
    value: float | None
    complete: bool
    params: Mapping[str, object]


def history(trials: Sequence[TrialPoint], metric: str, maximize: bool) -> Figure:
    """Value of each trial in their order, and the best so far."""
    figure = Figure(figsize=(7.6, 3.4), layout="constrained")
    axes = figure.subplots()
    ended = _values([one for one in trials if not one.complete])
    done = _values([one for one in trials if one.complete])
    axes.plot(list(ended), list(ended.values()), "x", color=GREY, label="ended early")
    axes.plot(list(done), list(done.values()), "o", color=BLUE, markersize=4, label="complete")
    best = np.maximum.accumulate if maximize else np.minimum.accumulate
    if done:
        axes.step(list(done), best(list(done.values())), where="post", color=ORANGE, label="best so far")
    axes.set(xlabel="trial", ylabel=f"validation {metric}")
    axes.legend(frameon=False, fontsize=9)
    plain(axes)
    return figure


def importances(shares: Mapping[str, float]) -> Figure:
    """The share of each setting in what tells good trials from the others, the largest on top."""
    ranked = sorted(shares.items(), key=lambda one: -one[1])
    figure = Figure(figsize=(7.6, 0.9 + ROW_INCHES * len(ranked)), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(ranked)), [share for _, share in ranked], color=BLUE, alpha=0.85, height=0.6)
    name_rows(axes, [name for name, _ in ranked])
    axes.set_xlabel("share of importance (PED-ANOVA)")
    return figure


def slices(trials: Sequence[TrialPoint], metric: str, logarithmic: Sequence[str]) -> Figure:
    """Value of each complete trial over each setting, a panel a setting; darker trials came later.

    Args:
        trials: of the sweep.
        metric: name of the value.
        logarithmic: settings that were drawn on a logarithmic scale.
    """
    done = [one for one in trials if one.complete and one.value is not None]
    names = list(dict.fromkeys(name for one in done for name in one.params))
    rows = max(1, math.ceil(len(names) / PANELS_A_ROW))
    figure = Figure(figsize=(9, 2.5 * rows), layout="constrained")
    panels = figure.subplots(rows, PANELS_A_ROW, squeeze=False, sharey=True).flatten()
    for axes, name in zip(panels, names, strict=False):
        shown = [one for one in done if name in one.params]
        numbers = all(_is_number(one.params[name]) for one in shown)
        where = [one.params[name] if numbers else str(one.params[name]) for one in shown]
        axes.scatter(where, [one.value for one in shown], c=[one.number for one in shown], cmap="Blues", s=18,
                     edgecolors=GREY, linewidths=0.4)  # fmt: skip
        if name in logarithmic:
            axes.set_xscale("log")
        axes.set_xlabel(name, fontsize=9)
        axes.tick_params(labelsize=8)
        plain(axes)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    figure.supylabel(f"validation {metric}", fontsize=9)
    return figure


def parallel_coordinates(
    trials: Sequence[TrialPoint], metric: str, logarithmic: Sequence[str], maximize: bool
) -> Figure:
    """A line a complete trial through its settings, each on a scale of its own; the best tenth in colour."""
    done = sorted((one for one in trials if one.complete and one.value is not None), key=lambda one: one.value or 0.0)
    done = done if maximize else done[::-1]
    names = list(dict.fromkeys(name for one in done for name in one.params))
    figure = Figure(figsize=(max(7.6, 1.1 * len(names)), 4), layout="constrained")
    axes = figure.subplots()
    places = {name: _places(name, done, name in logarithmic) for name in names}
    shown = len(done) - max(1, len(done) // 10)
    for rank, one in enumerate(done):
        known = [(column, places[name][one.number]) for column, name in enumerate(names) if name in one.params]
        colour, width, above = (ORANGE, 1.8, 3) if rank >= shown else (BLUE, 0.7, 2)
        axes.plot(
            *zip(*known, strict=True), color=colour, linewidth=width, alpha=0.9 if above == 3 else 0.35, zorder=above
        )
    axes.set_xticks(range(len(names)), [_below(name, done) for name in names], fontsize=8)
    axes.set_yticks([])
    axes.set_title(f"orange: the best tenth by validation {metric}", fontsize=10)
    plain(axes, "x")
    axes.spines["left"].set_visible(False)
    return figure


def pareto(points: Sequence[tuple[float, float]], front: Sequence[tuple[float, float]], metric: str) -> Figure:
    """Each trial by time to rank a request and metric; those that no other betters in both are joined.

    Args:
        points: (metric, milliseconds) of each complete trial.
        front: those of the front.
        metric: name of the first.
    """
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([time for _, time in points], [value for value, _ in points], "o", color=GREY, markersize=4)
    joined = sorted(front, key=lambda one: one[1])
    axes.plot([time for _, time in joined], [value for value, _ in joined], "o-", color=ORANGE, label="not bettered")
    axes.set(xlabel="milliseconds to rank 100 candidates", ylabel=f"validation {metric}")
    axes.legend(frameon=False, fontsize=9)
    plain(axes)
    return figure


def _values(trials: Sequence[TrialPoint]) -> dict[int, float]:
    """Value by number, of the trials that have one."""
    return {one.number: one.value for one in trials if one.value is not None}


def _places(name: str, done: Sequence[TrialPoint], logarithmic: bool) -> dict[int, float]:
    """Where each trial lies on the axis of one setting, from 0 to 1."""
    known = {one.number: one.params[name] for one in done if name in one.params}
    if all(_is_number(value) for value in known.values()):
        numbers = {number: float(value) for number, value in known.items()}  # type: ignore[arg-type]
        if logarithmic:
            numbers = {number: math.log(value) for number, value in numbers.items()}
    else:
        order = sorted({str(value) for value in known.values()})
        numbers = {number: float(order.index(str(value))) for number, value in known.items()}
    low, high = min(numbers.values()), max(numbers.values())
    return {number: (value - low) / (high - low) if high > low else 0.5 for number, value in numbers.items()}


def _below(name: str, done: Sequence[TrialPoint]) -> str:
    """The label of an axis: the setting, and what its ends are."""
    known = [one.params[name] for one in done if name in one.params]
    section, _, key = name.rpartition(".")
    if all(_is_number(value) for value in known):
        low, high = min(map(float, known)), max(map(float, known))  # type: ignore[arg-type]
        ends = f"{low:.3g} to {high:.3g}"
    else:
        ends = ", ".join(sorted({str(value)[:8] for value in known})[:3])
    return f"{key}\n({section})\n{ends}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
