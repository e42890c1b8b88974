"""The verdict of several findings: what refuses, and its JSON, tags and table."""

from __future__ import annotations

import io
import json
import math

import pytest
from rich.console import Console

from pipelines.gate.verdict import Finding, Verdict, verdict_table, word_of, worst

GOOD = Finding("calibration", True, 1.0, "0.8 to 1.25")
BAD = Finding("AUC", False, -0.02, "interval reaches 0 or above", "-0.0200 against the champion")
WORSE = Finding("AUC", False, math.nan, "above 0.6", "test AUC nan is not above popularity's 0.6")
DRIFT = Finding("drift", False, 2.0, "no column drifts", "drift in 2 columns", refuses=False)


def verdict(*findings: Finding, champion: str | None = "run-0") -> Verdict:
    return Verdict("run-1", champion, findings, 100, {"auc": 0.7, "ece": math.nan})


@pytest.mark.parametrize(
    ("findings", "passed", "drifted"),
    [((), False, False), ((GOOD,), True, False), ((GOOD, BAD), False, False), ((GOOD, DRIFT), True, True)],
)
def test_what_refuses(findings: tuple[Finding, ...], passed: bool, drifted: bool) -> None:
    found = verdict(*findings)
    assert (found.passed, found.drifted) == (passed, drifted)


def test_the_reason_has_all_that_refuses_and_no_warning() -> None:
    assert verdict(GOOD, BAD, DRIFT, WORSE).reason == f"AUC: {BAD.reason}; AUC: {WORSE.reason}"


def test_json_holds_no_nan() -> None:
    text = json.dumps(verdict(WORSE, GOOD).as_json(), allow_nan=False)
    found = json.loads(text)
    assert found["passed"] is False and found["metrics"] == {"auc": 0.7} and found["champion"] == "run-0"
    assert found["findings"][0] == {
        "rule": "AUC",
        "passed": False,
        "figure": "nan",
        "bound": "above 0.6",
        "reason": WORSE.reason,
        "refuses": True,
    }


def test_tags_name_what_does_not_hold() -> None:
    assert verdict(GOOD, BAD, WORSE, DRIFT).tags() == {
        "gate": "refused",
        "gate.champion": "run-0",
        "gate.AUC": f"{BAD.reason}; {WORSE.reason}",
        "gate.drift": DRIFT.reason,
    }
    long = Finding("slices", False, reason="x" * 6000)
    assert verdict(long).tags()["gate.slices"] == "x" * 1000, "MLflow refuses a tag of more than 5,000 characters"
    assert verdict(GOOD, champion=None).tags() == {"gate": "passed", "gate.champion": "none"}


def test_the_table_tells_a_reason_in_brackets_as_it_is() -> None:
    """A reason may name a file or a value of the log."""
    console = Console(file=io.StringIO(), width=120, record=True)
    console.print(verdict_table(verdict(Finding("missing", False, reason="[/shop] of [bold]"))))
    assert "missing (refused): [/shop] of [bold]" in console.export_text()


def test_the_table_is_of_at_most_a_hundred_columns() -> None:
    out = io.StringIO()
    long = Finding("slice calibration", False, 1 / 3, "a bound " * 9, "a reason " * 30)
    Console(file=out, width=200).print(verdict_table(verdict(GOOD, long)))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    assert "slice calibration (refused): a reason" in out.getvalue()
    assert "gate: run-1 against run-0, 100 fresh rows" in lines[0] and "0.3333" in out.getvalue()


def test_a_warning_is_no_refusal() -> None:
    assert [word_of(one) for one in (GOOD, BAD, DRIFT)] == ["passed", "refused", "warning"]


def test_of_many_findings_of_one_rule_the_broken_ones_are_told() -> None:
    assert worst([GOOD, BAD, GOOD], "slices", "all") == [BAD]
    assert worst([GOOD, GOOD], "slices", "all") == [Finding("slices", True, 2.0, "all")]
    assert worst([], "slices", "all") == [Finding("slices", True, None, "all")]


def test_a_verdict_comes_back_from_its_json() -> None:
    """As the job's record keeps it between two stages; a metric that is no number is left out there."""
    known = Verdict("run-1", "run-0", (GOOD, BAD, DRIFT), 100, {"auc": 0.7})
    assert Verdict.from_json(json.loads(json.dumps(known.as_json()))) == known
    (figure,) = (one.figure for one in Verdict.from_json(verdict(WORSE).as_json()).findings)
    assert isinstance(figure, float) and math.isnan(figure)
