"""The form of numbers in all tables: headings of metrics, a number, an interval, a difference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from rich import box
from rich.table import Table

from ctr.evaluation.bootstrap import Interval

HEADINGS = {
    "auc": "AUC",
    "interval": "95 % interval",
    "gauc_by_samples": "GAUC",
    "log_loss": "log loss",
    "normalized_entropy": "NE",
    "calibration_ratio": "calibration",
    "ece": "ECE",
    "group_auc": "list AUC",
    "mrr": "MRR",
    "ndcg_5": "nDCG@5",
    "ndcg_10": "nDCG@10",
}
# Metrics of ranked lists: rows have them where the log names the request of each row.
LIST_METRICS = ("group_auc", "mrr", "ndcg_5", "ndcg_10")


def narrow_table(title: str) -> Table:
    """A table without frames, for columns of numbers that are to be whole on a terminal of 80 columns."""
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )


class Estimate(Protocol):
    """A value with the low and the high end of its 95 % interval."""

    @property
    def value(self) -> float:
        """The estimate."""

    @property
    def low(self) -> float:
        """Its low end."""

    @property
    def high(self) -> float:
        """Its high end."""


def number(value: float | None) -> str:
    """`0.7123`; empty where there is no value."""
    return "" if value is None else f"{value:.4f}"


def span(low: float | None, high: float | None) -> str:
    """`0.7000 – 0.7200`; empty where there is no interval."""
    return "" if low is None or high is None else f"{low:.4f} – {high:.4f}"


def estimate(found: Estimate) -> str:
    """`0.7123 (0.7000 – 0.7200)`."""
    return f"{number(found.value)} ({span(found.low, found.high)})"


def metric_cell(metrics: Mapping[str, float], key: str) -> str:
    """The cell of a column of `HEADINGS`; empty where the metric was not measured. `interval` is that of AUC."""
    if key == "interval":
        return span(metrics.get("auc_low"), metrics.get("auc_high"))
    return number(metrics.get(key))


def metric_with_interval(metrics: Mapping[str, float], key: str) -> str:
    """A metric with its interval, if it has one."""
    if f"{key}_low" not in metrics:
        return number(metrics.get(key))
    return estimate(Interval(metrics[key], metrics[f"{key}_low"], metrics[f"{key}_high"]))


def signed(found: Estimate, resolved: bool = False) -> str:
    """A difference with its interval, `+0.0020 (+0.0010 to +0.0030)`; a star if it is significant."""
    return f"{found.value:+.4f} ({signed_span(found)}){' *' if resolved else ''}"


def signed_span(found: Estimate) -> str:
    """`+0.0010 to +0.0030`."""
    return f"{found.low:+.4f} to {found.high:+.4f}"
