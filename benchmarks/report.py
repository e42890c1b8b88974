"""What a benchmark hands back: rows for programs, one table for people, and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Report:
    """The outcome of one benchmark.

    Args:
        results: one mapping a measured thing, with `name` and e.g. `rows_per_s`, `p50_ms`, `p99_ms`, `peak_mib`.
        ratios: by name, such as `ours_over_pandas`: what is claimed, since no time means anything alone.
        columns: the table for people: keys of `results` and their headings.
        figures: by file name without suffix.
    """

    results: list[dict[str, Any]]
    ratios: dict[str, float]
    columns: Mapping[str, str]
    figures: Mapping[str, Figure] = field(default_factory=dict)

    def cells(self) -> list[list[str]]:
        """The table's cells as text, a row a result; empty where a result has no such value."""
        return [[_text(result.get(key)) for key in self.columns] for result in self.results]

    def markdown(self) -> str:
        """Table and ratios as Markdown."""
        lines = [_line(list(self.columns.values())), _line(["---", *["---:"] * (len(self.columns) - 1)])]
        lines += [_line(row) for row in self.cells()]
        lines += ["", _line(["ratio", ""]), _line(["---", "---:"])]
        lines += [_line([name, _text(value)]) for name, value in self.ratios.items()]
        return "\n".join(lines) + "\n"


def size_name(rows: int) -> str:
    """A row count in short: `50k`, `1m`, `2.5m`."""
    return f"{rows / 1e6:g}m" if rows >= 1_000_000 else f"{rows / 1e3:g}k"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
