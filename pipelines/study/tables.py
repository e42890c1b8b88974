"""The tables of a study, narrow enough for a terminal of 100 columns, and the same in markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from pipelines.cells import HEADINGS, LIST_METRICS, metric_cell, number, signed, span
from pipelines.study.verdicts import Judged, Verdict

OF_ROWS = ("gauc_by_samples", "log_loss", "normalized_entropy", "ece")
FACTS = {"parameters": "parameters", "rows_per_second": "rows/s", "rank_ms": "rank ms"}


@dataclass(frozen=True)
class StudyTable:
    """A title, and a line of cells for each ranker below the head; the first column is its name."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def on_terminal(self) -> Table:
        """For a console."""
        table = Table(title=self.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        for place, heading in enumerate(self.head):
            # A long name is folded, and numbers stay whole.
            table.add_column(heading, justify="right" if place else "left", no_wrap=bool(place))
        for row in self.rows:
            table.add_row(*row)
        return table

    def as_markdown(self) -> str:
        """A heading and a pipe table."""
        lines = [_line(self.head), _line(["---", *("--:" for _ in self.head[1:])]), *map(_line, self.rows)]
        return f"### {self.title}\n\n" + "\n".join(lines) + "\n"


def study_tables(found: Mapping[str, Verdict], reference: str) -> list[StudyTable]:
    """AUC with its interval and the paired difference from the reference; other metrics and costs; metrics of lists.

    Args:
        found: by ranker, best first.
        reference: the ranker that differences are taken from.
    """
    names = {name: name + ("" if verdict.calibrated else " (uncalibrated)") for name, verdict in found.items()}
    ranking, others, lists, further = [], [], [], []
    measured = [key for key in LIST_METRICS[1:] if all(key in verdict.metrics for verdict in found.values())]
    for name, verdict in found.items():
        ranking.append([names[name], f"{len(verdict.rows.auc.by_seed)}", *_judged(verdict.rows)])
        others.append(
            [
                names[name],
                *(metric_cell(verdict.metrics, key) for key in OF_ROWS),
                *(_fact(verdict.facts, key) for key in FACTS),
            ]
        )
        lists.append([names[name], *(_judged(verdict.lists) if verdict.lists else ("", "", ""))])
        further.append([names[name], *(metric_cell(verdict.metrics, key) for key in measured)])
    tables = [
        StudyTable(
            "Ranking of all rows",
            ["ranker", "seeds", HEADINGS["auc"], HEADINGS["interval"], f"against {reference}"],
            ranking,
        ),
        StudyTable(
            "Other metrics, and costs", ["ranker", *(HEADINGS[key] for key in OF_ROWS), *FACTS.values()], others
        ),
    ]
    if measured:
        head = ["ranker", HEADINGS["group_auc"], HEADINGS["interval"], f"against {reference}"]
        tables.append(StudyTable("Ranking within requests", head, lists))
        heads = ["ranker", *(HEADINGS[key] for key in measured)]
        tables.append(StudyTable("Other metrics within requests", heads, further))
    return tables


def _judged(found: Judged) -> tuple[str, str, str]:
    own = found.auc.interval()
    against = "" if found.difference is None else signed(found.difference, found.resolved)
    return number(own.value), span(own.low, own.high), against


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _fact(facts: Mapping[str, float], key: str) -> str:
    value = facts.get(key)
    if value is None:
        return ""
    return f"{value:.2f}" if key == "rank_ms" else f"{value:,.0f}"
