"""What the gate says: a finding a rule, and all of them as JSON, tags and a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table
from rich.text import Text

PASSED, REFUSED = "passed", "refused"
DRIFT_RULE = "drift"
WIDEST = 100  # columns of the table
LONGEST_TAG = 1000  # characters


@dataclass(frozen=True)
class Finding:
    """What one rule found.

    Args:
        rule: its name, e.g. `calibration`.
        passed: whether its bound holds; a figure that is no number holds none.
        figure: what was measured; None where the rule measures nothing, or could not.
        bound: what it is held against, in words.
        reason: what is wrong and what to do, or why it was not measured; empty where all is well.
        refuses: whether the bundle is refused where the bound does not hold; else it is a warning.
    """

    rule: str
    passed: bool
    figure: float | None = None
    bound: str = ""
    reason: str = ""
    refuses: bool = True

    def as_json(self) -> dict[str, Any]:
        """Its fields; a figure that is no finite number is text, for JSON has none."""
        finite = self.figure is None or math.isfinite(self.figure)
        return asdict(self) | ({} if finite else {"figure": str(self.figure)})


@dataclass(frozen=True)
class Verdict:
    """What all rules found of one bundle.

    Args:
        model_version: of the bundle.
        champion: model version of the bundle that it was compared with; None without one.
        findings: in the order of the rules.
        rows: fresh rows that were scored.
        metrics: of the bundle on these rows, by name; `champion.<name>` those of the champion.
    """

    model_version: str
    champion: str | None
    findings: tuple[Finding, ...]
    rows: int = 0
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the bundle may serve: at least one rule was judged, and none that refuses is broken."""
        return bool(self.findings) and not self.broken

    @property
    def broken(self) -> tuple[Finding, ...]:
        """Findings that refuse the bundle."""
        return tuple(one for one in self.findings if one.refuses and not one.passed)

    @property
    def drifted(self) -> bool:
        """Whether the data drifted from the champion's: a job that promotes ends with exit code 3."""
        return any(one.rule == DRIFT_RULE and not one.passed for one in self.findings)

    @property
    def reason(self) -> str:
        """Why the bundle is refused, all reasons in one line; empty where it passes."""
        return "; ".join(f"{one.rule}: {one.reason}" for one in self.broken)

    def as_json(self) -> dict[str, Any]:
        """`passed`, `model_version`, `champion`, `rows`, `metrics`, `findings`."""
        metrics = {name: value for name, value in self.metrics.items() if math.isfinite(value)}
        return {
            "passed": self.passed,
            "model_version": self.model_version,
            "champion": self.champion,
            "rows": self.rows,
            "metrics": metrics,
            "findings": [one.as_json() for one in self.findings],
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Verdict:
        """What `as_json` gave."""
        findings = tuple(
            Finding(**one | {"figure": None if one["figure"] is None else float(one["figure"])})
            for one in found["findings"]
        )
        return cls(found["model_version"], found["champion"], findings, found["rows"], dict(found["metrics"]))

    def tags(self) -> dict[str, str]:
        """For MLflow: `gate`, `gate.champion`, and `gate.<rule>` with the reason of each rule that does not hold."""
        found = {"gate": PASSED if self.passed else REFUSED, "gate.champion": self.champion or "none"}
        reasons: dict[str, list[str]] = {}
        for one in self.findings:
            if not one.passed:
                reasons.setdefault(f"gate.{one.rule}", []).append(one.reason)
        return found | {name: "; ".join(texts)[:LONGEST_TAG] for name, texts in reasons.items()}


def verdict_table(verdict: Verdict) -> Table:
    """Rules with their figures and bounds, at most 100 columns wide; what does not hold is told below."""
    against = verdict.champion or "no champion"
    reasons = [f"{one.rule} ({word_of(one)}): {one.reason}" for one in verdict.findings if one.reason]
    table = Table(
        caption=Text("\n".join(reasons)),
        caption_justify="left",
        title=f"gate: {verdict.model_version} against {against}, {verdict.rows:,} fresh rows",
        title_justify="left",
        title_style="bold",
        width=WIDEST,
    )
    table.add_column("rule", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("figure", justify="right", no_wrap=True)
    table.add_column("bound", ratio=1)
    for one in verdict.findings:
        figure = "" if one.figure is None else f"{one.figure:.4g}"
        table.add_row(one.rule, word_of(one), figure, one.bound, style=_style(one))
    return table


def word_of(finding: Finding) -> str:
    """`passed`, `warning` or `refused`."""
    if finding.passed:
        return PASSED
    return REFUSED if finding.refuses else "warning"


def _style(finding: Finding) -> str | None:
    if finding.passed:
        return None
    return "bold red" if finding.refuses else "yellow"


def worst(findings: Sequence[Finding], rule: str, bound: str) -> list[Finding]:
    """The broken findings among some of one rule; where there are none, one that says that all hold."""
    broken = [one for one in findings if not one.passed]
    return broken or [Finding(rule, True, float(len(findings)) if findings else None, bound)]
