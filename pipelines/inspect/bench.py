"""Run one benchmark of the checkout: write its table, ratios and figures, and one JSON summary."""

from __future__ import annotations

import json
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console

from features.errors import ConfigError
from features.progress import say
from features.store.atomic import write_text
from pipelines.cells import narrow_table
from pipelines.checkout import checkout

FEWEST_ROWS = 1_000


def run_bench(name: str, console: Console, out: Path | None, work: Path | None, **arguments: Any) -> dict[str, Any]:
    """Measure, write `<name>.json`, `<name>.md` and the figures, print the table; returns the JSON summary.

    Args:
        name: of a module `benchmarks/bench_<name>.py`, whose `run(work, say, **arguments)` returns a
            `benchmarks.harness.report.Report`.
        console: for the table.
        out: where results are written; default `benchmarks/results/<name>/`.
        work: folder for temporary raw data and builds; default the system's temporary folder.
        arguments: of the benchmark.

    Raises:
        ConfigError: not run from a checkout; `out` or `work` cannot be written; no memory for such a size.
    """
    root = checkout(f"bench_{name}", f"quadrank bench {name}")
    from benchmarks.harness.machine import describe
    from ctr.reporting.figures import save_png

    out = out or root / "benchmarks" / "results" / name
    for folder in (out, *([work] if work else [])):
        _make(folder)
    with tempfile.TemporaryDirectory(prefix="quadrank-bench-", dir=work) as scratch:
        # Absolute: what is measured runs in processes that start in the checkout.
        report = import_module(f"benchmarks.bench_{name}").run(Path(scratch).resolve(), say, **arguments)
    payload = {"bench": name, "machine": describe(), "results": report.results, "ratios": report.ratios}
    if report.sections:
        payload["sections"] = {section.title: section.results for section in report.sections}
    write_text(out / f"{name}.json", json.dumps(payload, indent=1))
    write_text(out / f"{name}.md", report.markdown())
    for file, figure in report.figures.items():
        save_png(figure, out / f"{file}.png")
    _print(console, name, report)
    console.print(f"  written to {out}")
    return payload


def parse_sizes(text: str) -> list[int]:
    """Rows of `1,10,40`, which are millions. Raises ConfigError for what is no such list."""
    try:
        sizes = [round(float(part) * 1_000_000) for part in text.split(",")]
    except (ValueError, OverflowError):
        raise ConfigError(f"--sizes {text!r}: write millions of rows, e.g. 1,10,40.") from None
    if min(sizes) < FEWEST_ROWS:
        raise ConfigError(f"--sizes {text!r}: measure at least {FEWEST_ROWS:,} rows, which is 0.001.")
    return sorted(set(sizes))


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error}") from None


def _print(console: Console, name: str, report: Any) -> None:
    from benchmarks.harness.report import cells

    for part in (report, *report.sections):
        table = narrow_table(getattr(part, "title", name))
        for place, heading in enumerate(part.columns.values()):
            table.add_column(heading, justify="right" if place else "left", no_wrap=True)
        for row in cells(part):
            table.add_row(*row)
        console.print(table)
    for ratio, value in report.ratios.items():
        console.print(f"  {ratio} {value:.3g}")
