"""Each thing that can be wrong in a workspace is found, with its mend."""

from __future__ import annotations

import errno
import io
import json
import os
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ctr.reporting.entries import Tag
from ctr.reporting.mlflow_registry import Version
from ctr.reporting.outbox import Outbox
from pipelines.operate.doctor import Finding, examine, findings_of
from pipelines.workspace import Workspace
from tests.pipelines.operate.places import FakeRegistry, add_bundle, add_feature_set, add_run, run_id


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> FakeRegistry:
    registry = FakeRegistry()
    monkeypatch.setattr("pipelines.operate.doctor.Registry", lambda root: registry)
    return registry


def found(workspace: Workspace, check: str) -> list[Finding]:
    return [one for one in findings_of(workspace) if one.check == check]


def test_an_empty_workspace_is_fine(workspace: Workspace) -> None:
    result = examine(workspace, False, Console(file=io.StringIO()))
    assert (result["status"], result["exit_code"]) == ("fine", 0)
    assert {one["level"] for one in result["findings"]} == {"fine"}


def test_the_room_of_a_first_job_is_told_without_a_name(workspace: Workspace) -> None:
    (one,) = found(workspace, "disk")
    assert one.text.endswith(" bytes are free, and a first job takes about 67,108,864")


def test_anything_broken_is_exit_2_with_its_mend(workspace: Workspace, registry: FakeRegistry) -> None:
    registry.away = True
    shown = io.StringIO()
    result = examine(workspace, False, Console(file=shown, width=200))
    assert (result["status"], result["exit_code"]) == ("broken", 2)
    assert "start the server, or correct MLFLOW_TRACKING_URI" in shown.getvalue()


@pytest.mark.parametrize(("free", "level"), [(2**20, "broken"), (100 * 2**20, "note"), (2**40, "fine")])
def test_a_disk_is_judged_by_what_a_job_takes(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, free: int, level: str
) -> None:
    monkeypatch.setattr("pipelines.operate.doctor.free_bytes", lambda path: free)
    add_feature_set(workspace, "a")
    (one,) = found(workspace, "disk")
    assert one.level == level and f"{free:,} bytes are free" in one.text


def test_a_workspace_that_may_not_be_written_to_is_looked_at_all_the_same(
    workspace: Workspace, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def forbidden() -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(workspace.root / ".cache"))
        yield

    monkeypatch.setattr(registry, "contact", forbidden)
    monkeypatch.setattr("os.access", lambda path, mode: path != workspace.root.absolute() or mode != os.W_OK)
    add_bundle(workspace, "z", "a").parent.joinpath("CURRENT").write_text("gone\n")
    result = examine(workspace, False, Console(file=io.StringIO()))
    broken = {one["check"]: one["text"] for one in result["findings"] if one["level"] == "broken"}
    assert broken.keys() == {"workspace", "MLflow", "pointer"}
    assert broken["workspace"] == f"{workspace.root.absolute()}: this user may not write to it"
    assert broken["MLflow"].startswith(f"{workspace.root}/.cache: may not be read or written by this user.")


def test_what_waits_for_mlflow_is_named_and_sent(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    run = add_run(workspace, run_id(1), "a")
    outbox = Outbox(run / "outbox")
    outbox.append(Tag(run="r", name="a", value="b"))
    (one,) = found(workspace, "outbox")
    assert (one.level, one.text) == ("broken", f"{run}: 1 entries wait for MLflow")
    assert "quadrank doctor --send" in one.mend
    monkeypatch.setattr(Tag, "deliver", lambda self, store, known: None)
    result = examine(workspace, True, Console(file=io.StringIO()))
    assert (result["sent"], result["exit_code"], outbox.waiting()) == (1, 0, [])


def test_what_mlflow_refused_is_named(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Tag, store: object, known: object) -> None:
        raise ValueError("no such run")

    run = add_run(workspace, run_id(1), "a")
    Outbox(run / "outbox").append(Tag(run="r", name="a", value="b"))
    monkeypatch.setattr(Tag, "deliver", refuse)
    result = examine(workspace, True, Console(file=io.StringIO()))
    (one,) = [one for one in result["findings"] if one["check"] == "outbox"]
    assert "MLflow refused 1 entries, the first: tag: no such run" in one["text"]


@pytest.mark.parametrize(("where", "pointer"), [
    ("feature_sets", "CURRENT"), ("bundles", "CURRENT"), ("bundles", "NEWEST"),
])  # fmt: skip
def test_a_pointer_to_nothing_is_broken(workspace: Workspace, where: str, pointer: str) -> None:
    folder = workspace.root / where / "shop"
    folder.mkdir(parents=True)
    (folder / pointer).write_text("gone")
    (one,) = found(workspace, "pointer")
    assert one.level == "broken" and "names 'gone'" in one.text and one.mend


@pytest.mark.parametrize(("target", "said"), [("gone", "is a link"), (None, "is a folder")])
def test_a_pointer_that_is_no_file_is_broken(workspace: Workspace, target: str | None, said: str) -> None:
    pointer = workspace.bundles("shop") / "CURRENT"
    pointer.parent.mkdir(parents=True)
    if target is None:
        pointer.mkdir()
    else:
        pointer.symlink_to(target)
    (one,) = found(workspace, "pointer")
    assert one.level == "broken"
    assert one.text.startswith(f"{pointer}: {pointer}: {said}")


@pytest.mark.parametrize("where", ["feature_sets", "bundles"])
def test_a_pointer_that_is_no_text_is_broken(workspace: Workspace, registry: FakeRegistry, where: str) -> None:
    add_feature_set(workspace, "a")
    add_bundle(workspace, "b", "a")
    registry.listed["quadrank-shop"] = [Version("1", "b", "m", ("champion",))]
    pointer = workspace.root / where / "shop" / "CURRENT"
    pointer.write_bytes(b"\xff\xfe")
    told = [one.text for one in found(workspace, "pointer")]
    assert [text.startswith(f"{pointer}: {pointer}: is no text: ") for text in told] == [True]
    assert {one.level for one in found(workspace, "disk")} == {"fine"}


def test_a_history_that_cannot_be_read_is_broken(workspace: Workspace) -> None:
    add_bundle(workspace, "run", "a")
    (workspace.bundles("shop") / "HISTORY.jsonl").write_text('{"to": }\n')
    (one,) = found(workspace, "history")
    assert one.level == "broken"
    assert "HISTORY.jsonl: line 1 is no move of CURRENT" in one.text
    assert one.mend == "take the line out, or the file away: no job, `promote`, `rollback` or `gc` works until then"


def test_records_that_were_broken_by_hand_are_named(workspace: Workspace) -> None:
    """`gc` removes nothing while one of what is in use is."""
    config = add_run(workspace, run_id(1), "a") / "config.json"
    manifest = add_bundle(workspace, run_id(1), "a") / "MANIFEST.json"
    assert found(workspace, "record") == []
    config.write_text("{")
    manifest.write_text('{"model_version": 3, "versions": ["torch"]}')
    (manifest.parent.parent / "CURRENT").write_text(f"{run_id(1)}\n")
    told = [(one.level, one.text) for one in found(workspace, "record")]
    assert told == [
        ("broken", f"{config}: does not name the feature set of its run"),
        ("broken", f"{manifest}: does not name the run and the feature set of its bundle"),
    ]


def test_a_bundle_that_got_new_items_is_the_model_of_its_alias(workspace: Workspace, registry: FakeRegistry) -> None:
    add_bundle(workspace, "new+items.3", "a")
    (workspace.bundles("shop") / "CURRENT").write_text("new+items.3")
    registry.listed["quadrank-shop"] = [Version("1", "new", "m", ("champion",))]
    assert found(workspace, "champion") == []


def test_an_alias_that_names_another_model_than_the_pointer_is_broken(
    workspace: Workspace, registry: FakeRegistry
) -> None:
    for run in ("old", "new"):
        add_bundle(workspace, run, "a")
    (workspace.bundles("shop") / "CURRENT").write_text("new")
    registry.listed["quadrank-shop"] = [Version("1", "old", "m", ("champion",))]
    (one,) = found(workspace, "champion")
    assert one.level == "broken" and "champion is old" in one.text
    registry.listed["quadrank-shop"] = [Version("1", "new", "m", ("champion",))]
    assert found(workspace, "champion") == []


def test_a_job_that_runs_is_noted(workspace: Workspace) -> None:
    add_feature_set(workspace, "a")
    with workspace.lock("shop"):
        (one,) = found(workspace, "lock")
    assert one.level == "note" and f"held by pid {os.getpid()} on " in one.text
    assert found(workspace, "lock") == []


def test_a_lock_that_a_killed_job_left_is_told_from_one_that_is_held(workspace: Workspace) -> None:
    add_feature_set(workspace, "a")
    with workspace.lock("shop"):
        left = (workspace.root / ".cache" / "shop.lock").read_text()
    (workspace.root / ".cache" / "shop.lock").write_text(left)
    (one,) = found(workspace, "lock")
    assert one.text.endswith("which ended without giving it back") and "takes it over" in one.mend


def test_what_a_killed_job_left_is_noted(workspace: Workspace) -> None:
    add_feature_set(workspace, ".building-aaaa")
    (one,) = found(workspace, "leftover")
    assert "1,000 bytes" in one.text and one.mend == "`quadrank gc --yes` removes it"


def test_leftovers_of_sweeps_and_of_half_written_files_are_noted(workspace: Workspace) -> None:
    add_feature_set(workspace, ".building-aaaa", place=".cache/feature_sets")
    half = workspace.runs / "run" / "target_only" / ".model-0123abcd"
    half.parent.mkdir(parents=True)
    half.write_text("half")
    os.utime(half, (1000, 1000))
    texts = [one.text for one in found(workspace, "leftover")]
    assert [text.split(":")[0] for text in texts] == [
        str(workspace.root / ".cache/feature_sets/shop/.building-aaaa"), str(half),
    ]  # fmt: skip


def test_a_bundle_of_another_major_version_is_noted(workspace: Workspace) -> None:
    bundle = add_bundle(workspace, "run", "a")
    same = f"{version('onnxruntime').split('.')[0]}.999"
    made = {"numpy": "1.26.4", "polars": "0.1", "onnxruntime": same}
    (bundle / "MANIFEST.json").write_text(json.dumps({"model_version": "run", "versions": made}))
    (workspace.bundles("shop") / "CURRENT").write_text("run")
    assert [one.text.split()[0] for one in found(workspace, "versions")] == ["polars", "numpy"]
