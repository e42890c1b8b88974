"""Measure the vector sets of a contract before any training: a table, a figure, one line of advice for each set."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ctr.reporting.figures import save_png
from features.encoding.encoder import Encoder
from features.errors import ConfigError
from features.store.atomic import write_text
from features.vectors.inspection.advice import advise, times_random
from features.vectors.inspection.next_clicks import Interval
from features.vectors.inspection.report import Inspection, SetReport, inspect_sets
from features.vectors.read import read_vectors
from pipelines.cells import estimate
from pipelines.inspect.embeddings_figure import embeddings_figure
from pipelines.job.build import build
from pipelines.json_text import json_text
from pipelines.source import Source
from pipelines.workspace import Workspace


def inspect_embeddings(source: Source, workspace: Workspace, out: Path | None, console: Console) -> dict[str, Any]:
    """Inspect every vector set of a contract; writes `inspection.json` and `inspection.png`, returns the JSON summary.

    Args:
        source: contract and days whose clicks and item columns the vectors are compared with; its feature set is
            built or reused.
        workspace: where feature sets are.
        out: folder of the results; default `inspections/<name>/` of the workspace.
        console: where messages are printed.

    Raises:
        ConfigError: the contract has no vectors.
        DataError: as `read_vectors` and `inspect`.
    """
    contract = source.contract
    if not contract.embeddings:
        raise ConfigError(f"{contract.name}: has no `embeddings` to inspect. Declare a vector set in the contract.")
    feature_set = build(source, workspace).feature_set
    items = Encoder.load(feature_set.path).items
    sets = [read_vectors(name, contract, items, feature_set.path) for name in contract.embeddings]
    found = inspect_sets(feature_set, sets)
    advice = advise(found, contract.learned_sets)
    out = out or workspace.root / "inspections" / contract.name
    out.mkdir(parents=True, exist_ok=True)
    payload = _payload(found, advice)
    write_text(out / "inspection.json", json_text(payload, indent=1))
    save_png(embeddings_figure(found, f"{contract.name}: {advice['']}"), out / "inspection.png")
    console.print(_table(found, contract.name))
    for report in found.sets:
        console.print(f"  {report.name}: {advice[report.name]}", soft_wrap=True)
    console.print(f"  {advice['']}", soft_wrap=True)
    console.print(f"  written to {out}", soft_wrap=True)
    return {"status": "done", "exit_code": 0, **payload}


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
        ("width", [f"{report.width}" for report in sets]),
        ("items with a vector", [f"{report.items_covered:.1%}" for report in sets]),
        ("clicks on them", [f"{report.clicks_covered:.1%}" for report in sets]),
        ("length, mean ± deviation", [f"{report.norms[0]:.3g} ± {report.norms[1]:.2g}" for report in sets]),
        ("length, least – greatest", [f"{report.norms[2]:.3g} – {report.norms[-1]:.3g}" for report in sets]),
        ("dead dimensions", [f"{report.dead_dimensions}" for report in sets]),
        ("effective dimensions", [f"{report.effective_dimension:.1f}" for report in sets]),
        ("mean cosine of random pairs", [f"{report.anisotropy:.3f}" for report in sets]),
        ("items with a twin", [f"{report.duplicates:.1%}" for report in sets]),
        ("items with a near twin", [f"{report.near_duplicates:.1%}" for report in sets]),
        ("next click in 10 nearest", [_recall(report.recall) for report in sets]),
        ("the same, centred", [_recall(report.centred_recall) for report in sets]),
        ("  10 random items", [f"{report.random_recall:.4f}" for report in sets]),
        ("  10 most clicked items", [f"{report.popular_recall:.4f}" for report in sets]),
        ("times as good as chance", [f"{times_random(report):.1f}" for report in sets]),
    ]
    for column in dict.fromkeys(name for report in sets for name in report.probe):
        lines.append(
            (
                f"tells {column} (AUC)",
                [f"{report.probe[column]:.3f}" if column in report.probe else "" for report in sets],
            )
        )
    for report in sets if len(sets) > 1 else ():
        shares = [_shared(found, report.name, other.name) for other in sets]
        lines.append((f"neighbours shared with {report.name}", shares))
    return lines


def _shared(found: Inspection, first: str, other: str) -> str:
    share = found.overlap.get((first, other), found.overlap.get((other, first)))
    return "" if share is None else f"{share:.1%}"


def _recall(recall: Interval | None) -> str:
    return "too few pairs" if recall is None else estimate(recall)


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
