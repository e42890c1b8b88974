"""The file of a job's stages: what it holds after each change, and what a kill leaves."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from pipelines.stages.basis import Basis
from pipelines.stages.record import JobRecord

BASIS = Basis({"log": "a1"}, {"train.epochs": 3, "as_of": None}, "c0de")


def test_a_job_that_never_ran_has_no_stages(tmp_path):
    record = JobRecord(tmp_path / "jobs/shop/qin.json")
    assert (record.stages, record.unreadable) == ({}, False)
    assert list(tmp_path.iterdir()) == []


def test_a_stage_is_running_with_what_it_began_then_done_with_its_result(tmp_path):
    path = tmp_path / "jobs/shop/qin.json"
    record = JobRecord(path)
    record.begin("train", BASIS, {})
    record.note("train", {"run_id": "r1"})
    found = JobRecord(path).stages["train"]
    assert (found.status, found.result, found.basis, found.key) == ("running", {"run_id": "r1"}, BASIS, BASIS.key)
    record.end("train", {"run_id": "r1", "weights": "ff"}, time.monotonic() - 2)
    found = JobRecord(path).stages["train"]
    assert (found.status, found.result, found.error) == ("done", {"run_id": "r1", "weights": "ff"}, None)
    assert 2 <= found.seconds < 60 and found.ended is not None


def test_a_failed_stage_keeps_what_it_began_and_why_it_failed(tmp_path):
    record = JobRecord(tmp_path / "qin.json")
    record.begin("train", BASIS, {"run_id": "r1"})
    record.fail("train", "loss is not finite", time.monotonic())
    found = JobRecord(tmp_path / "qin.json").stages["train"]
    assert (found.status, found.result, found.error) == ("failed", {"run_id": "r1"}, "loss is not finite")
    record.begin("train", BASIS, {"run_id": "r1"})
    assert JobRecord(tmp_path / "qin.json").stages["train"].error is None


@pytest.mark.parametrize("content", ["", "{half", json.dumps({"format": 2, "stages": {}})])
def test_what_cannot_be_read_is_as_if_nothing_ever_ran(tmp_path, content):
    (tmp_path / "qin.json").write_text(content)
    record = JobRecord(tmp_path / "qin.json")
    assert (record.stages, record.unreadable) == ({}, True)


def test_a_kill_between_two_changes_leaves_the_first(tmp_path, monkeypatch):
    record = JobRecord(tmp_path / "qin.json")
    record.begin("train", BASIS, {"run_id": "r1"})

    def killed(path: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        record.end("train", {}, time.monotonic())
    monkeypatch.undo()
    assert JobRecord(tmp_path / "qin.json").stages["train"].status == "running"
