"""The tables that a job prints."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from ctr.evaluation.slices import SliceResult
from pipelines.job.summary import Summary, print_results, slices_table


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


RANKED = {
    **{"auc": 0.7123, "auc_low": 0.7001, "auc_high": 0.7234, "gauc_by_samples": 0.7124, "log_loss": 0.5125},
    **{"normalized_entropy": 0.9126, "calibration_ratio": 1.0127, "ece": 0.0128},
    **{"group_auc": 0.7129, "mrr": 0.4131, "ndcg_5": 0.6132, "ndcg_10": 0.6433},
}


def test_a_terminal_of_80_columns_shows_every_name_and_number_whole() -> None:
    console = Console(file=io.StringIO(), width=80)
    controls = {"target_only": {**RANKED, "run_id": "r1", "day": "2026-03-01"}, "popularity": RANKED}
    print_results(console, "shop", Summary(metrics={"test": RANKED}, controls=controls), "test", "qin_plus_large")  # type: ignore[arg-type]
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in printed
    assert [one for one in RANKED.values() if f"{one:.4f}" not in printed] == []
    assert [one for one in ("qin_plus_large", "popularity", "target-only") if one not in printed] == []


def test_ranked_lists_have_a_table_of_their_own_where_the_log_has_requests() -> None:
    console = Console(file=io.StringIO(), width=80)
    without = {name: value for name, value in RANKED.items() if name not in ("group_auc", "mrr", "ndcg_5", "ndcg_10")}
    print_results(console, "shop", Summary(metrics={"test": without}, controls={}), "test", "qin")
    assert "within requests" not in console.file.getvalue()  # type: ignore[attr-defined]
    print_results(console, "shop", Summary(metrics={"test": RANKED}, controls={}), "test", "qin")
    assert console.file.getvalue().count("within requests") == 1  # type: ignore[attr-defined]


def test_slices_are_whole_on_80_columns_too() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(slices_table("shop", [SliceResult("user in feature set", "8 to 30 days", 421_000, 99_777, RANKED)]))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "…" not in printed
    assert [one for one in ("421,000", "23.7%", "0.7123", "0.5125", "1.0127", "0.0128") if one not in printed] == []
