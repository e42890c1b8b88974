"""Before any training: which vector sets deserve to be used. A table, pictures, and one sentence of advice each."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.console import Console
from rich.table import Table

from ctr.reporting.figures import BLUE, GREEN, GREY, ORANGE, save_png
from features.encoding.encoder import Encoder
from features.errors import ConfigError
from features.store.atomic import write_text
from features.vectors.inspection.advice import advise, times_random
from features.vectors.inspection.next_clicks import Interval
from features.vectors.inspection.report import Inspection, SetReport, inspect
from features.vectors.read import read_vectors
from pipelines.job.build import build
from pipelines.source import Source
from pipelines.workspace import Workspace

TITLE_WIDTH = 105  # characters of the title's size in the width of the figure


def inspect_embeddings(source: Source, workspace: Workspace, out: Path | None, console: Console) -> dict[str, Any]:
    """Inspect every vector set of a contract; writes `inspection.json` and `inspection.png`, returns the JSON summary.

    Args:
        source: contract and days whose clicks and item columns vectors are held against; its feature set is built
            or reused.
        workspace: where feature sets lie.
        out: folder of the results; default `inspections/<name>/` of the workspace.
        console: where people read.

    Raises:
        ConfigError: the contract has no vectors.
        DataError: as `read_vectors` and `inspect`.
    """
    contract = source.contract
    if not contract.embeddings:
        raise ConfigError(f"{contract.name}: has no `embeddings` to inspect. Declare a vector set in the contract.")
    feature_set = build(source, workspace).feature_set
    items = Encoder.load(feature_set.path).items
    found = inspect(feature_set, [read_vectors(name, contract, items) for name in contract.embeddings])
    advice = advise(found)
    out = out or workspace.root / "inspections" / contract.name
    out.mkdir(parents=True, exist_ok=True)
    payload = _payload(found, advice)
    write_text(out / "inspection.json", json.dumps(payload, indent=1))
    save_png(picture(found, f"{contract.name}: {advice['']}"), out / "inspection.png")
    console.print(_table(found, contract.name))
    for report in found.sets:
        console.print(f"  {report.name}: {advice[report.name]}", soft_wrap=True)
    console.print(f"  {advice['']}", soft_wrap=True)
    console.print(f"  written to {out}", soft_wrap=True)
    return {"status": "done", "exit_code": 0, **payload}


def picture(found: Inspection, title: str) -> Figure:
    """Recall of what is clicked next on top; below, a row a set: its cosines, its variance and its lengths.

    Args:
        found: what was measured.
        title: the finding, in a sentence.
    """
    sets = len(found.sets)
    heights = (1.5 + 0.65 * sets, 2.5 * sets)
    figure = Figure(figsize=(10, sum(heights)), layout="constrained")
    figure.suptitle(textwrap.fill(title, TITLE_WIDTH), x=0.01, ha="left", fontsize=12)
    halves: Any = figure.subfigures(2, 1, height_ratios=heights)
    _recalls(halves[0].subplots(), found)
    grid = halves[1].subplots(sets, 3, squeeze=False)
    for (cosine_axes, variance_axes, length_axes), report in zip(grid, found.sets, strict=True):
        _cosines(cosine_axes, report)
        _variance(variance_axes, report)
        _lengths(length_axes, report)
    return figure


def _recalls(axes: Axes, found: Inspection) -> None:
    for place, report in enumerate(found.sets):
        for shift, one, colour in ((-0.18, report.recall, BLUE), (0.18, report.centred_recall, GREEN)):
            if one is None:
                continue
            whiskers = [[max(one.value - one.low, 0)], [max(one.high - one.value, 0)]]
            axes.barh(place + shift, one.value, height=0.32, color=colour, alpha=0.85)
            axes.errorbar(one.value, place + shift, xerr=whiskers, color="black", capsize=3, linewidth=1)
            times = f"{one.value / report.random_recall:.1f} × chance"
            axes.annotate(
                times, (one.high, place + shift), xytext=(6, 0), textcoords="offset points", va="center", fontsize=9
            )
        axes.vlines(report.random_recall, place - 0.4, place + 0.4, color=ORANGE, linewidth=2)
        axes.plot(report.popular_recall, place, "D", color=GREY, markersize=6)
    axes.set_yticks(range(len(found.sets)), [f"{one.name}\n{one.pairs:,} pairs" for one in found.sets])
    axes.set_ylim(len(found.sets) - 0.5, -0.5)
    shown = [one.high for report in found.sets for one in (report.recall, report.centred_recall) if one]
    axes.set_xlim(0, 1.15 * max([*shown, *(report.popular_recall for report in found.sets), 1e-6]))
    axes.set_xlabel("share of items clicked next that are among the 10 nearest (whiskers: 95 % interval)")
    legend = [
        Line2D([], [], color=BLUE, linewidth=8, label="vectors as given"),
        Line2D([], [], color=GREEN, linewidth=8, label="centred"),
        Line2D([], [], color=ORANGE, linewidth=2, label="10 random items"),
        Line2D([], [], color=GREY, marker="D", linestyle="", label="10 most clicked items"),
    ]
    axes.legend(handles=legend, frameon=False, fontsize=9, ncols=4, loc="lower left", bbox_to_anchor=(0, 1))
    _plain(axes)


def _cosines(axes: Axes, report: SetReport) -> None:
    random, pair = report.samples.random_cosines, report.samples.pair_cosines
    both = np.concatenate([random, pair])
    low, high = (float(both.min()), float(both.max())) if len(both) else (-1.0, 1.0)
    edges = np.linspace(low - 0.01, high + 0.01, 61).tolist()
    axes.set(title=f"{report.name}: cosines", yticks=[], xlabel="cosine of two items")
    if len(random):
        axes.hist(random, edges, density=True, color=GREY, alpha=0.5, label="random pairs")
    if len(pair):
        axes.hist(pair, edges, density=True, histtype="step", linewidth=1.4, color=BLUE, label="clicked next")
    if len(both):
        left_is_empty = both.mean() > (low + high) / 2
        axes.legend(frameon=False, fontsize=8, loc="upper left" if left_is_empty else "upper right")
    _plain(axes)


def _variance(axes: Axes, report: SetReport) -> None:
    within_W = report.samples.variance_W
    axes.plot(np.arange(1, len(within_W) + 1), within_W, color=BLUE)
    label = f"effective dimension {report.effective_dimension:.1f}"
    axes.axvline(max(report.effective_dimension, 1), color=ORANGE, linestyle="--", linewidth=1)
    axes.set(title=f"{report.name}: {label}", xlabel="principal axes", ylabel="variance explained", ylim=(0, 1.02))
    _plain(axes)


def _lengths(axes: Axes, report: SetReport) -> None:
    # A set of zeros has a length too.
    longest = float(np.max(report.samples.lengths)) or 1.0
    axes.hist(report.samples.lengths, np.linspace(0, 1.05 * longest, 41).tolist(), color=GREY)
    axes.set(title=f"{report.name}: lengths as given", yticks=[], xlabel="Euclidean norm of a vector")
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis="x", color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.title.set_fontsize(10)


def _table(found: Inspection, name: str) -> Table:
    table = Table(title=f"{name}: vector sets on {found.items:,} items", title_justify="left", title_style="bold")
    table.add_column("")
    for report in found.sets:
        table.add_column(report.name, justify="right")
    for label, cells in _lines(found):
        table.add_row(label, *cells)
    return table


def _lines(found: Inspection) -> list[tuple[str, list[str]]]:
    sets = found.sets
    lines = [
        ("width", [f"{one.width}" for one in sets]),
        ("items with a vector", [f"{one.items_covered:.1%}" for one in sets]),
        ("clicks on them", [f"{one.clicks_covered:.1%}" for one in sets]),
        ("length, mean ± deviation", [f"{one.norms[0]:.3g} ± {one.norms[1]:.2g}" for one in sets]),
        ("length, least – greatest", [f"{one.norms[2]:.3g} – {one.norms[-1]:.3g}" for one in sets]),
        ("dead dimensions", [f"{one.dead_dimensions}" for one in sets]),
        ("effective dimensions", [f"{one.effective_dimension:.1f}" for one in sets]),
        ("mean cosine of random pairs", [f"{one.anisotropy:.3f}" for one in sets]),
        ("items with a twin", [f"{one.duplicates:.1%}" for one in sets]),
        ("items with a near twin", [f"{one.near_duplicates:.1%}" for one in sets]),
        ("next click in 10 nearest", [_interval(one.recall) for one in sets]),
        ("the same, centred", [_interval(one.centred_recall) for one in sets]),
        ("  10 random items", [f"{one.random_recall:.4f}" for one in sets]),
        ("  10 most clicked items", [f"{one.popular_recall:.4f}" for one in sets]),
        ("times as good as chance", [f"{times_random(one):.1f}" for one in sets]),
    ]
    for column in dict.fromkeys(name for one in sets for name in one.probe):
        lines.append(
            (f"tells {column} (AUC)", [f"{one.probe[column]:.3f}" if column in one.probe else "" for one in sets])
        )
    for one in sets if len(sets) > 1 else ():
        shares = [_shared(found, one.name, other.name) for other in sets]
        lines.append((f"neighbours shared with {one.name}", shares))
    return lines


def _shared(found: Inspection, one: str, other: str) -> str:
    share = found.overlap.get((one, other), found.overlap.get((other, one)))
    return "" if share is None else f"{share:.1%}"


def _interval(one: Interval | None) -> str:
    return f"{one.value:.4f} ({one.low:.4f} – {one.high:.4f})" if one else "not judged"


def _payload(found: Inspection, advice: dict[str, str]) -> dict[str, Any]:
    return {
        "items": found.items,
        "sets": [_numbers(report) | {"advice": advice[report.name]} for report in found.sets],
        "overlap": [{"sets": list(pair), "share": share} for pair, share in found.overlap.items()],
        "advice": advice[""],
    }


def _numbers(report: SetReport) -> dict[str, Any]:
    numbers = dataclasses.asdict(dataclasses.replace(report, samples=None))  # type: ignore[arg-type]
    return {name: value for name, value in numbers.items() if name != "samples"}
