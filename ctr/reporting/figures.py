"""Figures of a training run: learning curve, reliability, baselines; and parts that all figures share."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ctr.evaluation.bootstrap import Interval
from ctr.evaluation.metrics import FEWEST_ROWS_OF_ECE, ece, reliability

# Colours of Okabe and Ito: told apart by colour-blind readers and in grey print.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#767676"


def learning_curve(curve: Sequence[Mapping[str, float]]) -> Figure:
    """Validation AUC and log loss over training steps, the best evaluation of each marked.

    Args:
        curve: one mapping an evaluation, with `step`, `auc`, `log_loss` and, if known, `train_click_loss`. (The
            training loss itself may have terms that the validation loss lacks.)
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    auc_axes, loss_axes = figure.subplots(1, 2)
    steps = [one["step"] for one in curve]
    _line(auc_axes, steps, [one["auc"] for one in curve], "validation", BLUE, np.argmax)
    _line(loss_axes, steps, [one["log_loss"] for one in curve], "validation", BLUE, np.argmin)
    trained = [one for one in curve if "train_click_loss" in one]
    if trained:
        points = [one["train_click_loss"] for one in trained]
        loss_axes.plot([one["step"] for one in trained], points, "--", color=GREY, label="training")
    auc_axes.set(title="AUC: higher is better", ylabel="AUC")
    loss_axes.set(title="Log loss: lower is better", ylabel="log loss (nats a row)")
    for axes in (auc_axes, loss_axes):
        axes.set_xlabel("optimizer steps")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.legend(frameon=False, fontsize=9)
        plain(axes)
    return figure


def reliability_diagram(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> Figure:
    """Predicted against observed click rate in bins of equal mass, above a histogram of the scores.

    Args:
        labels: 0 or 1, [N].
        scores: probabilities, [N].
        weights: row weights, [N]; none means ones.
    """
    figure = Figure(figsize=(5, 5.6), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    table = reliability(labels, scores, weights=weights)
    # Binomial error of a bin's mean label; a bin of 0 or all positives still gets a bar.
    shrunk = (table.label * table.count + 2) / (table.count + 4)
    error = 1.96 * np.sqrt(shrunk * (1 - shrunk) / (table.count + 4))
    # The axis covers nearly all rows; a single high score must not compress the others.
    limit = float(min(1.0, 1.05 * max((table.label + error).max(), np.quantile(scores, 0.999))))
    axes.plot([0, limit], [0, limit], "--", color=GREY, linewidth=1, label="perfect calibration")
    axes.errorbar(
        table.score,
        table.label,
        error,
        fmt="o-",
        color=BLUE,
        markersize=4,
        linewidth=1,
        label="bins, 95 % interval",
    )
    measured = f" (ECE {ece(labels, scores, weights=weights):.4f})" if len(labels) >= FEWEST_ROWS_OF_ECE else ""
    axes.set(
        title=f"Reliability{measured}",
        ylabel="observed positive rate",
        xlim=(0, limit),
        ylim=(0, limit),
    )
    axes.title.set_fontsize(10)
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    below.hist(scores, bins=50, range=(0, limit), color=BLUE)
    below.set(xlabel="predicted probability", ylabel="rows")
    plain(axes)
    plain(below)
    return figure


def control_bars(results: Mapping[str, Mapping[str, float]]) -> Figure:
    """AUC of the model (the first entry) beside its baselines, with 95 % intervals where given.

    Args:
        results: metrics by ranker; `auc`, and `auc_low` and `auc_high` for the interval.
    """
    names = list(results)
    figure = Figure(figsize=(7, 1.2 + 0.5 * len(names)), layout="constrained")
    axes = figure.subplots()
    for place, (name, metrics) in enumerate(results.items()):
        value = metrics["auc"]
        low, high = metrics.get("auc_low", value), metrics.get("auc_high", value)
        colour = BLUE if place == 0 else GREEN if name == "optimum" else GREY
        axes.barh(place, value - 0.5, left=0.5, color=colour, alpha=0.85, height=0.6)
        # Around the middle of the interval: the value itself may lie outside of it, where users are few.
        axes.errorbar((low + high) / 2, place, xerr=(high - low) / 2, color="black", capsize=3, linewidth=1)
        axes.annotate(f"{value:.4f}", (max(high, 0.5), place), xytext=(6, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(names)), [name.replace("_", "-") for name in names])
    axes.invert_yaxis()
    axes.axvline(0.5, color="black", linewidth=1)
    axes.margins(x=0.15)
    axes.set(title="AUC of the model and its baselines", xlabel="AUC (0.5 is chance; whiskers: 95 % interval)")
    plain(axes)
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG at 150 dots an inch, making its folder; a sign that the font lacks is an empty box."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # One a sign, each with a line of our source.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(path, dpi=150, format="png")


def plain(axes: Axes, grid: Literal["both", "x", "y"] = "both") -> None:
    """Remove the frame above and on the right; draw a light grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis=grid, color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)


def whisker(axes: Axes, row: float, value: Interval, colour: str) -> None:
    """One row of a forest plot: an interval as a line, its estimate as a point."""
    axes.plot([value.low, value.high], [row, row], color=colour, linewidth=2, solid_capstyle="butt")
    axes.plot(value.value, row, "o", color=colour, markersize=4.5)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows of a forest plot, the first on top. Names are cut at 40 characters."""
    axes.set_yticks(range(len(names)), [as_written(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    plain(axes, "x")
    axes.spines["left"].set_visible(False)


def as_written(text: str, longest: int = 40) -> str:
    """A text as it is: matplotlib reads dollar signs as mathematics. One of more characters than `longest` is cut."""
    cut = text if len(text) <= longest else f"{text[: longest - 1]}…"
    return cut.replace("$", r"\$")


def _line(axes: Axes, steps: Sequence[float], values: Sequence[float], label: str, colour: str, best: Any) -> None:
    axes.plot(steps, values, "o-", color=colour, markersize=3, label=label)
    if steps:
        place = int(best(values))
        found = f"best {values[place]:.4f} at {steps[place]:,.0f}"
        axes.plot(steps[place], values[place], "*", color=ORANGE, markersize=13, label=found)
