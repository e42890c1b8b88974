"""Which stages run and why, decided before anything is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rich.table import Table

from pipelines.stages.basis import Basis
from pipelines.stages.record import StageRecord

Results = Mapping[str, Mapping[str, Any]]


class Planned(Protocol):
    """What the plan must know of a stage."""

    name: str

    def basis(self, results: Results) -> Basis:
        """What the stage depends on, by the results of those before it."""

    def missing(self, result: Mapping[str, Any]) -> str | None:
        """Why a result of this stage can no longer be used; None if it is there, whole."""

    def stands_at(self, begun: Mapping[str, Any]) -> str:
        """Where an unfinished stage goes on, e.g. `resumes from step 1,200`."""

    def closed(self, results: Results) -> str | None:
        """Why this stage must not run after those results; None if it may."""


@dataclass(frozen=True)
class Decision:
    """What is done with one stage.

    Args:
        stage: its name.
        does: `run`, `skip` (done already), or `leave out` (must not run).
        reason: why, for people.
        begun: what an unfinished process had begun of the same basis.
    """

    stage: str
    does: str
    reason: str
    begun: Mapping[str, Any]


def decide(stage: Planned, record: StageRecord | None, results: Results) -> Decision:
    """What is done with a stage whose predecessors have these results."""
    if (closed := stage.closed(results)) is not None:
        return Decision(stage.name, "leave out", closed, {})
    if record is None:
        return Decision(stage.name, "run", "never ran", {})
    basis = stage.basis(results)
    if record.key != basis.key:
        return Decision(stage.name, "run", basis.changes(record.basis), {})
    if record.status != "done":
        failed = "" if record.error is None else f"failed ({record.error.split('. ')[0][:120]}): "
        return Decision(stage.name, "run", f"{failed or 'unfinished: '}{stage.stands_at(record.result)}", record.result)
    if (missing := stage.missing(record.result)) is not None:
        return Decision(stage.name, "run", missing, {})
    return Decision(stage.name, "skip", "done: nothing changed", record.result)


def plan(stages: Sequence[Planned], records: Mapping[str, StageRecord]) -> list[Decision]:
    """What a job would do now. A stage after one that runs is skipped if that one makes what it made before."""
    decisions: list[Decision] = []
    results: dict[str, Mapping[str, Any]] = {}  # of stages that run: those of the last time
    runs: str | None = None
    for stage in stages:
        record = records.get(stage.name)
        if runs is None:
            decision = decide(stage, record, results)
            runs = stage.name if decision.does == "run" else None
        else:
            changes = "never ran" if record is None else stage.basis(results).changes(record.basis)
            reasons = [f"{runs} runs before it", changes]
            decision = Decision(stage.name, "run", "; ".join(reason for reason in reasons if reason), {})
        decisions.append(decision)
        if record is None or record.status != "done":
            # Nothing is known of what comes later but that it runs.
            later = stages[len(decisions) :]
            return decisions + [Decision(other.name, "run", f"{stage.name} runs before it", {}) for other in later]
        results[stage.name] = record.result
    return decisions


def plan_table(title: str, decisions: Sequence[Decision]) -> Table:
    """Stages with what is done and why."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for heading in ("stage", "does", "reason"):
        table.add_column(heading, overflow="fold")
    for decision in decisions:
        table.add_row(decision.stage, decision.does, decision.reason)
    return table
