"""What a benchmark hands back: rows for programs, one table for people, and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from matplotlib.figure import Figure


@dataclass(frozen=True)
class Section:
    """A further table of a benchmark, with a title of its own.

    Args:
        title: e.g. `where a step's time goes`.
        results, ratios, columns, figures: as of a `Report`.
    """

    title: str
    results: list[dict[str, Any]]
    columns: Mapping[str, str]
    ratios: dict[str, float] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """The outcome of one benchmark.

    Args:
        results: one mapping a measured thing, with `name` and e.g. `rows_per_s`, `p50_ms`, `p99_ms`, `peak_mib`.
        ratios: by name, such as `ours_over_pandas`: what is claimed, since no time means anything alone.
        columns: the table for people: keys of `results` and their headings.
        figures: by file name without suffix.
        sections: further tables.
    """

    results: list[dict[str, Any]]
    ratios: dict[str, float]
    columns: Mapping[str, str]
    figures: Mapping[str, Figure] = field(default_factory=dict)
    sections: tuple[Section, ...] = ()

    def with_section(self, section: Section) -> Report:
        """This report and one table more, its ratios and figures among those of the report."""
        return replace(
            self,
            ratios={**self.ratios, **section.ratios},
            figures={**self.figures, **section.figures},
            sections=(*self.sections, section),
        )

    def markdown(self) -> str:
        """Tables and ratios as Markdown."""
        lines = _table(self)
        for section in self.sections:
            lines += ["", f"**{section.title}**", "", *_table(section)]
        lines += ["", _line(["ratio", ""]), _line(["---", "---:"])]
        lines += [_line([name, _text(value)]) for name, value in self.ratios.items()]
        return "\n".join(lines) + "\n"


def cells(part: Report | Section) -> list[list[str]]:
    """A table's cells as text, a row a result; empty where a result has no such value."""
    return [[_text(result.get(key)) for key in part.columns] for result in part.results]


def size_name(rows: int) -> str:
    """A row count in short: `50k`, `1m`, `2.5m`."""
    return f"{rows / 1e6:g}m" if rows >= 1_000_000 else f"{rows / 1e3:g}k"


def _table(part: Report | Section) -> list[str]:
    head = [_line(list(part.columns.values())), _line(["---", *["---:"] * (len(part.columns) - 1)])]
    return head + [_line(row) for row in cells(part)]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
