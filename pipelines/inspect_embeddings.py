"""Before any training: which vector sets deserve to be used. A table, pictures, and one sentence of advice each."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from ctr.plots import BLUE, GREY, ORANGE, save_png
from features.atomic import write_text
from features.contract import Contract
from features.encoder import Encoder
from features.errors import ConfigError
from features.vectors.advice import advise
from features.vectors.embeddings import read_vectors
from features.vectors.inspection import Inspection, Interval, SetReport, inspect
from pipelines.build import build
from pipelines.workspace import Workspace

PICTURED = ("random_cosines", "pair_cosines", "variance", "norm_sample")


def inspect_embeddings(contract: Contract, workspace: Workspace, out: Path | None, console: Console) -> dict[str, Any]:
    """Inspect every vector set of a contract; writes `inspection.json` and `inspection.png`, returns the JSON summary.

    Args:
        contract: whose clicks and item columns vectors are held against; its feature set is built or reused.
        workspace: where feature sets lie.
        out: folder of the results; default `inspections/<name>/` of the workspace.
        console: where people read.

    Raises:
        ConfigError: the contract has no vectors.
    """
    if not contract.embeddings:
        raise ConfigError(f"{contract.name}: has no `embeddings` to inspect. Declare a vector set in the contract.")
    feature_set = build(contract, workspace).feature_set
    items = Encoder.load(feature_set.path).items
    found = inspect(feature_set, [read_vectors(name, contract, items) for name in contract.embeddings])
    advice = advise(found)
    out = out or workspace.root / "inspections" / contract.name
    out.mkdir(parents=True, exist_ok=True)
    payload = _payload(found, advice)
    write_text(out / "inspection.json", json.dumps(payload, indent=1))
    save_png(picture(found, contract.name), out / "inspection.png")
    console.print(_table(found, contract.name))
    for report in found.sets:
        console.print(f"  {report.name}: {advice[report.name]}")
    console.print(f"  {advice['']}")
    console.print(f"  written to {out}")
    return {"status": "done", "exit_code": 0, **payload}


def picture(found: Inspection, name: str) -> Figure:
    """Recall of what is clicked next on top; below, for each set, cosines, variance and lengths."""
    figure = Figure(figsize=(10, 2.6 + 2.5 * len(found.sets)), layout="constrained")
    figure.suptitle(f"{name}: do near items get clicked together?", x=0.01, ha="left", fontsize=12)
    halves: Any = figure.subfigures(2, 1, height_ratios=(2.2, 2.5 * len(found.sets)))
    top, below = halves
    _recalls(top.subplots(), found)
    grid = below.subplots(len(found.sets), 3, squeeze=False)
    for row, report in zip(grid, found.sets, strict=True):
        edges = np.linspace(-1, 1, 81)
        row[0].hist(report.random_cosines, edges, density=True, color=GREY, alpha=0.6, label="random pairs")
        if len(report.pair_cosines):
            row[0].hist(report.pair_cosines, edges, density=True, histtype="step", color=BLUE, label="clicked next")
        row[0].set(title=f"{report.name}: cosine", yticks=[])
        row[0].legend(frameon=False, fontsize=8)
        row[1].plot(np.arange(1, len(report.variance) + 1), report.variance, color=BLUE)
        row[1].axvline(
            report.effective_dimension, color=ORANGE, linestyle="--", linewidth=1, label="effective dimension"
        )
        row[1].set(title=f"{report.name}: variance explained", xlabel="principal axes", ylim=(0, 1.02), xscale="log")
        row[1].legend(frameon=False, fontsize=8, loc="lower right")
        row[2].hist(report.norm_sample, np.linspace(0, 1.05 * max(report.norm_sample.max(), 1e-6), 41), color=GREY)
        row[2].set(title=f"{report.name}: lengths as given", yticks=[])
        for axes in row:
            axes.spines[["top", "right"]].set_visible(False)
    return figure


def _recalls(axes: Any, found: Inspection) -> None:
    bars: list[tuple[str, Interval, str]] = []
    for report in found.sets:
        if report.recall and report.centred_recall:
            bars.append((report.name, report.recall, BLUE))
            bars.append((f"{report.name}, centred", report.centred_recall, BLUE))
    for name, value in (("10 most clicked", found.popular_recall), ("10 random", found.random_recall)):
        bars.append((name, Interval(value, value, value), GREY))
    places = np.arange(len(bars))[::-1]
    values = [one.value for _, one, _ in bars]
    spread = np.array([[one.value - one.low for _, one, _ in bars], [one.high - one.value for _, one, _ in bars]])
    axes.barh(places, values, xerr=np.maximum(spread, 0), color=[colour for *_, colour in bars], height=0.65)
    axes.set_yticks(places, [name for name, *_ in bars])
    axes.set_xlabel(f"share of the item clicked next among the 10 nearest ({found.pairs:,} pairs, 95 % interval)")
    axes.spines[["top", "right"]].set_visible(False)


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
        ("length, 5 to 95 %", [f"{one.norms[1]:.3g} – {one.norms[3]:.3g}" for one in sets]),
        ("dead dimensions", [f"{one.dead_dimensions}" for one in sets]),
        ("effective dimensions", [f"{one.effective_dimension:.1f}" for one in sets]),
        ("mean cosine of random pairs", [f"{one.anisotropy:.3f}" for one in sets]),
        ("items with a twin", [f"{one.duplicates:.1%}" for one in sets]),
        ("next click in 10 nearest", [_interval(one.recall) for one in sets]),
        ("the same, centred", [_interval(one.centred_recall) for one in sets]),
        ("  10 most clicked items", [f"{found.popular_recall:.4f}"] * len(sets)),
        ("  10 random items", [f"{found.random_recall:.4f}"] * len(sets)),
    ]
    for column in dict.fromkeys(name for one in sets for name in one.probe):
        lines.append(
            (f"tells {column} (AUC)", [f"{one.probe[column]:.3f}" if column in one.probe else "" for one in sets])
        )
    for (one, other), share in found.overlap.items():
        lines.append((f"neighbours of {one} that {other} has too", [f"{share:.1%}", *[""] * (len(sets) - 1)]))
    return lines


def _interval(one: Interval | None) -> str:
    return f"{one.value:.4f} ({one.low:.4f} – {one.high:.4f})" if one else "no pairs"


def _payload(found: Inspection, advice: dict[str, str]) -> dict[str, Any]:
    return {
        "items": found.items,
        "pairs": found.pairs,
        "random_recall": found.random_recall,
        "popular_recall": found.popular_recall,
        "sets": [_numbers(report) | {"advice": advice[report.name]} for report in found.sets],
        "overlap": [{"sets": list(pair), "share": share} for pair, share in found.overlap.items()],
        "advice": advice[""],
    }


def _numbers(report: SetReport) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(report).items() if name not in PICTURED}
