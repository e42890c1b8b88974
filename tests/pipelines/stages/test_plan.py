"""What is done with each stage, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from pipelines.stages.basis import Basis
from pipelines.stages.plan import Decision, decide, plan
from pipelines.stages.record import StageRecord


class Fake:
    """A stage that depends on what came before it and on one setting."""

    def __init__(self, name: str, setting: int = 1, gone: str | None = None, closed: str | None = None) -> None:
        self.name = name
        self.setting = setting
        self._gone, self._closed = gone, closed

    def basis(self, results: Mapping[str, Mapping[str, Any]]) -> Basis:
        return Basis({name: str(result["made"]) for name, result in results.items()}, {"set": self.setting}, "c0de")

    def missing(self, result: Mapping[str, Any]) -> str | None:
        return self._gone

    def stands_at(self, begun: Mapping[str, Any]) -> str:
        return f"goes on from {begun['step']}" if "step" in begun else "starts again"

    def closed(self, results: Mapping[str, Mapping[str, Any]]) -> str | None:
        return self._closed


def recorded(stage: Fake, before: dict[str, Any], **changes: Any) -> StageRecord:
    """A stage that was done with these results before it, and made its own name."""
    basis = stage.basis(before)
    content = {"status": "done", "result": {"made": stage.name}, "started": "2026-01-31T03:00:00+00:00", **changes}
    return StageRecord(
        key=basis.key, inputs=dict(basis.inputs), settings=dict(basis.settings), code=basis.code, **content
    )


BEFORE = {"first": {"made": "first"}}


def test_what_never_ran_runs():
    assert decide(Fake("second"), None, BEFORE) == Decision("second", "run", "never ran", {})


def test_what_is_done_is_skipped_with_its_result():
    stage = Fake("second")
    found = decide(stage, recorded(stage, BEFORE), BEFORE)
    assert found == Decision("second", "skip", "done: nothing changed", {"made": "second"})


def test_another_result_before_it_and_another_setting_run_it_from_the_beginning():
    record = recorded(Fake("second"), BEFORE, status="running", result={"step": 7})
    found = decide(Fake("second", setting=2), record, {"first": {"made": "other"}})
    assert found == Decision("second", "run", "inputs changed: first; settings changed: set", {})


def test_a_result_that_is_gone_is_made_again():
    stage = Fake("second", gone="its bundle is gone")
    assert decide(stage, recorded(stage, BEFORE), BEFORE) == Decision("second", "run", "its bundle is gone", {})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"status": "running", "result": {"step": 7}}, "unfinished: goes on from 7"),
        ({"status": "running", "result": {}}, "unfinished: starts again"),
        ({"status": "failed", "result": {"step": 7}, "error": "Rows are bad. See it."},
         "failed (Rows are bad): goes on from 7"),
    ],
)  # fmt: skip
def test_what_is_unfinished_goes_on_with_what_it_had_begun(changes, reason):
    stage = Fake("second")
    record = recorded(stage, BEFORE, **changes)
    assert decide(stage, record, BEFORE) == Decision("second", "run", reason, record.result)


def test_what_must_not_run_is_left_out_even_where_it_never_ran():
    stage = Fake("second", closed="the gate refused it")
    assert decide(stage, None, BEFORE) == Decision("second", "leave out", "the gate refused it", {})


def reasons(stages: list[Fake], records: dict[str, StageRecord]) -> list[str]:
    return [f"{found.does}: {found.reason}" for found in plan(stages, records)]


def test_a_plan_of_nothing_new_skips_all():
    first, second = Fake("first"), Fake("second")
    records = {"first": recorded(first, {}), "second": recorded(second, BEFORE)}
    assert reasons([first, second], records) == ["skip: done: nothing changed"] * 2


def test_a_plan_names_what_runs_before_and_what_changed_besides():
    first, second, third = Fake("first"), Fake("second"), Fake("third")
    both = {**BEFORE, "second": {"made": "second"}}
    records = {"first": recorded(first, {}), "second": recorded(second, BEFORE), "third": recorded(third, both)}
    assert reasons([Fake("first", setting=2), second, Fake("third", setting=5)], records) == [
        "run: settings changed: set",
        "run: first runs before it",
        "run: first runs before it; settings changed: set",
    ]


def test_a_plan_before_anything_was_done_runs_all():
    assert reasons([Fake("first"), Fake("second"), Fake("third")], {}) == [
        "run: never ran",
        "run: first runs before it",
        "run: first runs before it",
    ]


def test_a_plan_goes_on_in_the_middle():
    first, second = Fake("first"), Fake("second")
    records = {"first": recorded(first, {}), "second": recorded(second, BEFORE, status="running", result={"step": 3})}
    assert reasons([first, second, Fake("third")], records) == [
        "skip: done: nothing changed",
        "run: unfinished: goes on from 3",
        "run: second runs before it",
    ]
