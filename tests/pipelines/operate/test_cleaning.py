"""What nothing uses goes, and what anything uses stays: pointers, aliases, locks, unfinished runs, what waits."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ctr.reporting.entries import Tag
from ctr.reporting.mlflow_registry import Version
from ctr.reporting.outbox import Outbox
from features.errors import DataError, StoreAwayError
from pipelines.locks import locked
from pipelines.operate.uses import Uses, uses
from pipelines.workspace import Workspace
from tests.pipelines.operate.places import (
    FakeRegistry,
    add_bundle,
    add_feature_set,
    add_run,
    cleaned,
    run_id,
    unused,
)


def test_a_verdict_goes_with_its_bundle(workspace: Workspace, days: list[str]) -> None:
    for run in (*days, "long-gone"):
        (workspace.bundles("shop") / f"{run}.gate.json").write_text("{}")
    gone = {what for what, kind in unused(workspace).items() if kind == "verdict"}
    assert gone == {f"bundles/shop/{run}.gate.json" for run in ("long-gone", *days[:3])}


@pytest.mark.parametrize("added", ["+items.2", "+int8_table", "+int8_table+items.1"])
def test_the_run_behind_a_bundle_that_got_new_items_or_fewer_bits_stays(
    workspace: Workspace, days: list[str], added: str
) -> None:
    upserted = add_bundle(workspace, f"{days[0]}{added}", "set-0")
    os.utime(upserted, (1, 1))
    (workspace.bundles("shop") / "CURRENT").write_text(upserted.name)
    found = unused(workspace)
    assert not {f"runs/{days[0]}", f"runs/{days[0]}/checkpoint-9.safetensors", "feature_sets/shop/set-0"} & set(found)


def test_the_run_that_an_unfinished_one_goes_on_from_stays_whole(workspace: Workspace, days: list[str]) -> None:
    """Though another bundle serves since: a training that was killed before its first checkpoint begins with it."""
    began = add_run(workspace, run_id(1), "set-3", finished=False)
    config = {"feature_set": "feature_sets/shop/set-3", "warm_start": {"run_id": days[0], "generation": 1}}
    (began / "config.json").write_text(json.dumps(config))
    found = unused(workspace)
    assert not {f"runs/{days[0]}", f"runs/{days[0]}/checkpoint-9.safetensors", "feature_sets/shop/set-0"} & set(found)


@pytest.mark.parametrize(("seconds", "goes"), [(90_000, True), (80_000, False)])
def test_a_folder_of_a_run_that_never_began_goes_after_a_day(
    workspace: Workspace, registry: FakeRegistry, seconds: int, goes: bool
) -> None:
    folder = workspace.runs / run_id(9)
    folder.mkdir(parents=True)
    (workspace.runs / "mine").mkdir()
    for path in workspace.runs.iterdir():
        os.utime(path, (time.time() - seconds,) * 2)
    assert (unused(workspace) == {f"runs/{folder.name}": "staging"}) is goes


def test_a_file_that_its_writer_renames_while_it_is_looked_at_is_left(
    workspace: Workspace, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = add_feature_set(workspace, "a").parent / ".CURRENT-0123abcd"
    fresh.write_text("a")
    there = Path.is_file

    def looked(path: Path) -> bool:
        found = there(path)
        if path == fresh:
            path.rename(path.with_name("CURRENT"))
        return found

    monkeypatch.setattr(Path, "is_file", looked)
    assert unused(workspace) == {}


def test_the_newest_stay_and_what_they_were_made_from(workspace: Workspace, days: list[str]) -> None:
    kept = {what for what in unused(workspace, keep=2) if "set-2" in what or days[2] in what or days[3] in what}
    assert kept == {f"runs/{days[2]}/checkpoint-9.safetensors", f"runs/{days[3]}/checkpoint-9.safetensors"}


def test_without_yes_nothing_goes(workspace: Workspace, days: list[str], registry: FakeRegistry) -> None:
    before = sorted(workspace.root.rglob("*"))
    assert cleaned(workspace)["status"] == "listed"
    assert sorted(workspace.root.rglob("*")) == before and registry.removed == []


def test_with_yes_it_goes_with_a_record_of_each(workspace: Workspace, days: list[str], registry: FakeRegistry) -> None:
    listed = cleaned(workspace)
    done = cleaned(workspace, yes=True)
    assert done["removed"] == listed["unused"] and cleaned(workspace)["unused"] == []
    assert [path.name for path in workspace.runs.iterdir()] == [days[3]]
    assert [path.name for path in (workspace.feature_sets / "shop").iterdir()] == ["set-3"]
    lines = [json.loads(line) for line in (workspace.root / "status" / "REMOVED.jsonl").read_text().splitlines()]
    assert [(one["what"], one["bytes"]) for one in lines] == [(one["what"], one["bytes"]) for one in done["removed"]]
    assert {"kind": "feature set", "what": "feature_sets/shop/set-0", "bytes": 1000} in done["removed"]
    assert registry.removed == [("quadrank-shop", version, True) for version in ("8", "7", "6")]


def test_what_a_pointer_names_stays_with_its_run_and_feature_set(workspace: Workspace, days: list[str]) -> None:
    (workspace.bundles("shop") / "CURRENT").write_text(days[0])
    found = unused(workspace)
    assert not [what for what in found if days[0] in what]
    assert not [what for what in found if "set-0" in what]


def test_what_a_link_in_the_place_of_a_pointer_names_stays(workspace: Workspace, days: list[str]) -> None:
    pointer = workspace.bundles("shop") / "CURRENT"
    pointer.write_text(days[0])
    beside_a_file = unused(workspace)
    pointer.unlink()
    pointer.symlink_to(days[0])
    assert len(beside_a_file) > 0
    assert unused(workspace) == beside_a_file


def test_a_bundle_that_is_a_link_to_another_place_goes_and_what_it_names_stays(
    workspace: Workspace, days: list[str], tmp_path: Path
) -> None:
    bundle, other = workspace.bundles("shop") / days[0], tmp_path / "another disk"
    bundle.rename(other)
    bundle.symlink_to(other)
    cleaned(workspace, yes=True)
    assert not bundle.is_symlink()
    assert (other / "MANIFEST.json").is_file()


def test_nothing_goes_while_a_pointer_is_a_link_to_nothing(workspace: Workspace, days: list[str]) -> None:
    (workspace.bundles("shop") / "CURRENT").symlink_to("gone")
    with pytest.raises(DataError, match="CURRENT: is a link, and there is no folder beside it that it means"):
        unused(workspace)


def test_what_an_alias_names_stays(workspace: Workspace, days: list[str], registry: FakeRegistry) -> None:
    registry.listed["quadrank-shop"][1] = Version("8", days[1], "m1", ("champion",))
    found = unused(workspace)
    assert not {what for what in found if days[1] in what or what.endswith(("set-1", "version 8"))}
    assert f"bundles/shop/{days[2]}" in found


def test_the_run_of_an_alias_on_a_variant_stays_whole(
    workspace: Workspace, days: list[str], registry: FakeRegistry
) -> None:
    registry.listed["quadrank-shop"][1] = Version("8", f"{days[1]}+int8_table", "m1", ("champion",))
    assert not {f"runs/{days[1]}", f"runs/{days[1]}/checkpoint-9.safetensors"} & set(unused(workspace))


def test_a_bundle_that_was_in_use_last_stays_for_a_rollback(workspace: Workspace, days: list[str]) -> None:
    moves = [{"from": None, "to": days[0]}, {"from": days[0], "to": days[1]}]
    history = "".join(json.dumps(move) + "\n" for move in moves)
    (workspace.bundles("shop") / "HISTORY.jsonl").write_text(history + '{"from": "half a line')
    found = unused(workspace)
    assert f"bundles/shop/{days[1]}" not in found and f"bundles/shop/{days[0]}" in found


def test_files_of_a_version_that_stays_are_not_removed_with_another(
    workspace: Workspace, days: list[str], registry: FakeRegistry
) -> None:
    versions = [Version("2", days[3], "same", ()), Version("1", days[3], "same", ())]
    registry.listed["quadrank-shop"] = versions
    cleaned(workspace, yes=True)
    assert registry.removed == [("quadrank-shop", "1", False)]


def test_files_of_versions_that_all_go_are_removed_once(
    workspace: Workspace, days: list[str], registry: FakeRegistry
) -> None:
    kept, *gone = (Version(number, days[3], run, ()) for number, run in (("3", "m"), ("2", "same"), ("1", "same")))
    registry.listed["quadrank-shop"] = [kept, *gone]
    done = cleaned(workspace, yes=True)
    assert registry.removed == [("quadrank-shop", "2", True), ("quadrank-shop", "1", False)]
    assert [one["bytes"] for one in done["removed"] if one["kind"] == "registered version"] == [100, 0]


def test_what_a_job_began_to_use_after_the_list_was_made_stays(
    workspace: Workspace, days: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def used_since(*asked: Any) -> Uses:
        found = uses(*asked)
        (workspace.bundles("shop") / "CURRENT").write_text(days[0])
        return found

    monkeypatch.setattr("pipelines.operate.cleaning.uses", used_since)
    done = cleaned(workspace, yes=True)
    assert f"bundles/shop/{days[0]}" in [one["what"] for one in done["unused"]]
    removed = [one["what"] for one in done["removed"]]
    assert not [what for what in removed if days[0] in what]
    assert not [what for what in removed if "set-0" in what]
    assert (workspace.bundles("shop") / days[0]).is_dir()


def test_a_folder_is_out_of_sight_before_any_of_it_is_gone_and_goes_though_such_a_one_was_left(
    workspace: Workspace, days: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is killed while it removes a feature set, which is built again before the next one comes."""
    sets = workspace.feature_sets / "shop"

    def killed(path: Path) -> None:
        if path.parent == sets:
            raise KeyboardInterrupt
        shutil.rmtree(path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("pipelines.operate.cleaning.shutil", SimpleNamespace(rmtree=killed))
        cleaned(workspace, yes=True)
    assert not (sets / "set-0").exists() and (sets / ".removed-set-0" / "rows.arrow").is_file()
    os.utime(add_feature_set(workspace, "set-0"), (1000, 1000))
    cleaned(workspace, yes=True)
    assert [path.name for path in sets.iterdir()] == ["set-3"]


def test_a_run_belongs_to_its_contract_though_the_name_has_dashes(workspace: Workspace, registry: FakeRegistry) -> None:
    for days_ago in (20, 10):
        add_run(workspace, run_id(days_ago, "my-shop"), "a", name="my-shop")
    with workspace.lock("my-shop"):
        done = cleaned(workspace, yes=True)
    assert (done["removed"], done["skipped"]) == ([], ["my-shop"])


def test_the_optimiser_state_behind_a_bundle_in_use_stays(workspace: Workspace, days: list[str]) -> None:
    state = f"runs/{days[3]}/checkpoint-9.safetensors"
    assert unused(workspace)[state] == "optimiser state"
    (workspace.bundles("shop") / "CURRENT").write_text(days[3])
    assert state not in unused(workspace)


@pytest.mark.parametrize(("days_ago", "stays"), [(6, True), (8, False)])
def test_an_unfinished_run_stays_a_week_with_its_feature_set(
    workspace: Workspace, registry: FakeRegistry, days_ago: int, stays: bool
) -> None:
    old = add_feature_set(workspace, "old")
    os.utime(old, (1000, 1000))
    add_feature_set(workspace, "new")
    run = add_run(workspace, run_id(days_ago), "old", finished=False)
    assert (not {f"runs/{run.name}", "feature_sets/shop/old"} & set(unused(workspace))) is stays


def test_a_run_that_a_process_trains_stays_whatever_its_age(workspace: Workspace, registry: FakeRegistry) -> None:
    run = add_run(workspace, run_id(30), "old", finished=False)
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert unused(workspace) == {}
    assert unused(workspace) == {f"runs/{run.name}": "run"}


@pytest.mark.parametrize(("silent", "stays"), [(60, True), (600, False)])
def test_a_run_that_another_machine_trains_stays_while_it_gives_signs(
    workspace: Workspace, registry: FakeRegistry, silent: int, stays: bool
) -> None:
    run = add_run(workspace, run_id(30), "old", finished=False)
    holder = {"host": "another", "pid": 7, "since": "2026-01-01T00:00:00+00:00"}
    (run / ".lock").write_text(json.dumps(holder))
    os.utime(run / ".lock", (time.time() - silent,) * 2)
    assert (unused(workspace) == {}) is stays


@pytest.mark.parametrize(("days_ago", "stays"), [(6, True), (8, False)])
def test_a_run_whose_control_stands_beside_others_stays_a_week(
    workspace: Workspace, registry: FakeRegistry, days_ago: int, stays: bool
) -> None:
    (add_run(workspace, run_id(days_ago), "a") / "target_only").mkdir()
    add_run(workspace, run_id(1), "b")
    assert (f"runs/{run_id(days_ago)}" not in unused(workspace)) is stays


def test_a_run_whose_outbox_waits_stays_with_its_bundle(workspace: Workspace, days: list[str]) -> None:
    Outbox(workspace.runs / days[0] / "outbox").append(Tag(run="r", name="a", value="b"))
    assert not {f"runs/{days[0]}", f"bundles/shop/{days[0]}"} & set(unused(workspace))


@pytest.mark.parametrize("lock", ["shop", "shop.pointers"])
def test_nothing_of_a_contract_goes_while_a_job_or_a_promotion_of_it_runs(
    workspace: Workspace, days: list[str], lock: str
) -> None:
    with workspace.lock(lock):
        done = cleaned(workspace, yes=True)
    assert (done["removed"], done["skipped"]) == ([], ["shop"])


def test_trials_of_old_sweeps_go_and_their_results_stay(workspace: Workspace, registry: FakeRegistry) -> None:
    for run in (run_id(20), run_id(2)):
        add_run(workspace, f"tune/first/{run}", "old", finished=False)
    (workspace.runs / "tune" / "first.best.yaml").write_text("{}")
    assert unused(workspace) == {f"runs/tune/first/{run_id(20)}": "trial"}


def test_what_killed_jobs_left_goes_unless_someone_still_fills_it(workspace: Workspace, registry: FakeRegistry) -> None:
    sets, bundles = workspace.feature_sets / "shop", workspace.bundles("shop")
    for path in (sets / ".building-aaaa", bundles / ".exporting-run-bbbb", bundles / ".exporting-run-cccc"):
        path.mkdir(parents=True)
    old, young = sets / ".CURRENT-0123abcd", sets / ".CURRENT-4567abcd"
    for path in (old, young):
        path.write_text("half")
    os.utime(old, (time.time() - 90_000,) * 2)
    descriptor = os.open(bundles / ".exporting-run-cccc", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        found = unused(workspace)
    finally:
        os.close(descriptor)
    assert set(found) == {
        "feature_sets/shop/.CURRENT-0123abcd",
        "feature_sets/shop/.building-aaaa",
        "bundles/shop/.exporting-run-bbbb",
    }


APART = ".cache/feature_sets"


def add_trial(workspace: Workspace, days_ago: int, feature_set: str) -> Path:
    trial = add_run(workspace, f"tune/first/{run_id(days_ago)}", "none", finished=False)
    (trial / "config.json").write_text(json.dumps({"feature_set": f"{APART}/shop/{feature_set}"}))
    return trial


def test_a_feature_set_of_searched_settings_stays_with_the_trials_that_were_trained_on_it(
    workspace: Workspace, registry: FakeRegistry
) -> None:
    for version in ("young", "old", "nobodys"):
        os.utime(add_feature_set(workspace, version, place=APART), (1000, 1000))
    add_feature_set(workspace, "just-built", place=APART)
    (workspace.root / APART / "shop" / "CURRENT").write_text("old")
    add_trial(workspace, 2, "young")
    add_trial(workspace, 9, "old")
    sets = {what for what, kind in unused(workspace).items() if kind == "feature set"}
    assert sets == {f"{APART}/shop/old", f"{APART}/shop/nobodys"}


def test_a_feature_set_that_nothing_names_stays_a_day(workspace: Workspace, registry: FakeRegistry) -> None:
    """A comparison has built one for each variant, and its first trainings name none but their own."""
    for number in range(3):
        add_feature_set(workspace, f"of-variant-{number}")
    os.utime(add_feature_set(workspace, "nobodys"), (1000, 1000))
    assert unused(workspace) == {"feature_sets/shop/nobodys": "feature set"}


def test_feature_sets_stay_while_a_comparison_runs(workspace: Workspace, registry: FakeRegistry) -> None:
    """It may train on one that was built long ago, for another job."""
    for number in range(3):
        os.utime(add_feature_set(workspace, f"of-variant-{number}"), (1000 + number, 1000 + number))
    with locked(workspace.comparisons / "first" / ".lock", "busy"):
        assert unused(workspace) == {}
    gone = {"feature_sets/shop/of-variant-0": "feature set", "feature_sets/shop/of-variant-1": "feature set"}
    assert unused(workspace) == gone


def test_a_pointer_goes_with_the_last_feature_set_that_it_names(workspace: Workspace, registry: FakeRegistry) -> None:
    """A build looks at what `CURRENT` names; one of another version stays."""
    for name, pointed in (("shop", "old"), ("store", "kept")):
        for version in ("old", "kept"):
            add_feature_set(workspace, version, name, APART)
        os.utime(workspace.root / APART / name / "old", (1000, 1000))
        (workspace.root / APART / name / "CURRENT").write_text(pointed)
    add_feature_set(workspace, "old", "linked", APART)
    os.utime(workspace.root / APART / "linked" / "old", (1000, 1000))
    (workspace.root / APART / "linked" / "CURRENT").symlink_to("old")
    cleaned(workspace, yes=True)
    left = sorted(path.relative_to(workspace.root / APART).as_posix() for path in workspace.root.glob(f"{APART}/*/*"))
    assert left == ["shop/kept", "store/CURRENT", "store/kept"]


HALVES = [
    "feature_sets/shop/.CURRENT-0123abcd",
    f"{APART}/shop/.CURRENT-0123abcd",
    "runs/{run}/.config.json-0123abcd",
    "runs/{run}/target_only/.checkpoint-8.safetensors-0123abcd",
    "runs/tune/.first.best.yaml-0123abcd",
    "runs/tune/first/{run}/.config.json-0123abcd",
    "jobs/shop/.qin.json-0123abcd",
    "status/shop/.outcome.json-0123abcd",
    ".cache/.notes-0123abcd",
]


@pytest.mark.parametrize("place", HALVES)
def test_a_file_that_was_half_written_goes_after_a_day_wherever_it_lies(
    workspace: Workspace, registry: FakeRegistry, place: str
) -> None:
    add_run(workspace, run_id(1), "a")
    add_run(workspace, f"tune/first/{run_id(1)}", "a", finished=False)
    half = workspace.root / place.format(run=run_id(1))
    half.parent.mkdir(parents=True, exist_ok=True)
    half.write_text("half")
    assert half.relative_to(workspace.root).as_posix() not in unused(workspace)
    os.utime(half, (time.time() - 90_000,) * 2)
    assert unused(workspace).get(half.relative_to(workspace.root).as_posix()) == "staging"


def test_what_a_killed_sweep_was_building_goes(workspace: Workspace, registry: FakeRegistry) -> None:
    add_feature_set(workspace, ".building-aaaa", place=APART)
    assert unused(workspace) == {f"{APART}/shop/.building-aaaa": "staging"}


def test_the_mlflow_run_of_an_unfinished_run_ends_and_files_of_any_run_go_with_its_folder(
    workspace: Workspace, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, emptied = [], []

    class FakeTracker:
        def __init__(self, root: Path, outbox: Path) -> None:
            self.outbox, self.store = outbox, "the store"
            self.delivery = Outbox(outbox)

        def end_if_running(self, tracked: str) -> None:
            assert self.outbox.parent.is_dir()
            ended.append((self.outbox.relative_to(workspace.root).as_posix(), tracked))

    monkeypatch.setattr("pipelines.operate.cleaning.Tracker", FakeTracker)
    for place in (run_id(9), run_id(8), run_id(1), run_id(10), run_id(2), f"tune/first/{run_id(9)}"):
        run = add_run(workspace, place, "a", finished=place in (run_id(10), run_id(2)))
        if place != run_id(8):
            (run / "mlflow_run_id").write_text(f"of {place}")
    monkeypatch.setattr("pipelines.operate.cleaning.remove_artifacts", lambda *what: emptied.append(what))
    cleaned(workspace, yes=True)
    gone = (run_id(9), run_id(10), f"tune/first/{run_id(9)}")
    assert sorted(emptied) == sorted(("the store", f"of {place}") for place in gone)
    assert sorted(ended) == [
        (f"runs/{place}/outbox", f"of {place}") for place in (run_id(9), f"tune/first/{run_id(9)}")
    ]


def test_a_registry_that_is_away_removes_nothing(workspace: Workspace, days: list[str], registry: FakeRegistry) -> None:
    registry.away = True
    with pytest.raises(StoreAwayError):
        cleaned(workspace, yes=True)
    assert len(list(workspace.runs.iterdir())) == 4
