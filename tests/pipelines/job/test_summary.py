"""The summary of a command as JSON."""

from __future__ import annotations

from pipelines.job.summary import Summary


def test_only_what_did_not_succeed_has_an_error() -> None:
    assert "error" not in Summary().closed(0.0)
    assert Summary(exit_code=6, error="auc: too low").closed(0.0)["error"] == "auc: too low"
