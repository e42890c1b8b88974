"""The tables that a job prints."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from pipelines.job.summary import Summary, print_results


@pytest.mark.parametrize(
    ("best", "line"),
    [
        (0.8, "  50.0% of the optimal AUC lift over 0.5 (the optimum knows the true probabilities)"),
        (0.5, None),
    ],
)
def test_of_an_optimum_that_is_not_above_chance_no_share_is_printed(best: float, line: str | None) -> None:
    console = Console(file=io.StringIO(), width=100)
    controls = {"optimum": {"auc": best, "log_loss": 0.6}}
    print_results(
        console, "test", Summary(metrics={"test": {"auc": 0.65, "log_loss": 0.6}}, controls=controls), "test", "qin"
    )
    printed = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [one for one in printed if "lift" in one] == ([] if line is None else [line])
