"""Which vector sets are worth using, before any training: a table, a figure, and one line of advice for each."""

from __future__ import annotations

import dataclasses
import json
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
from pipelines.source import Source
from pipelines.workspace import Workspace


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
    found = inspect_sets(feature_set, [read_vectors(name, contract, items) for name in contract.embeddings])
    advice = advise(found)
    out = out or workspace.root / "inspections" / contract.name
    out.mkdir(parents=True, exist_ok=True)
    payload = _payload(found, advice)
    write_text(out / "inspection.json", json.dumps(payload, indent=1))
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
        ("next click in 10 nearest", [_recall(one.recall) for one in sets]),
        ("the same, centred", [_recall(one.centred_recall) for one in sets]),
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


def _recall(one: Interval | None) -> str:
    return "too few pairs" if one is None else estimate(one)


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
