"""Who serves: CURRENT, its history and the alias move in this order, and what a kill leaves is mended."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from ctr.reporting.mlflow_registry import Registry
from ctr.serving.bundle import open_bundle
from features.errors import ChampionMovedError, DataError, GateError, LockError
from features.store.pointer import point_at
from pipelines.gate import pointers
from pipelines.gate.history import HISTORY, read_moves
from pipelines.gate.pointers import champion_changed, champion_folder, current_name, mend, move_current
from pipelines.gate.promote import promote, promote_bundle
from pipelines.gate.settings import GateRules
from pipelines.gate.verdict import Finding, Verdict
from pipelines.workspace import Workspace
from tests.ctr.serving.test_bundle import METADATA
from tests.pipelines.gate.moves import NAME, QUIET, Store, bundle_in, make_champion, serve, state


def test_all_three_move(workspace: Workspace, store: Store) -> None:
    said = serve("a", workspace, store)
    serve("b", workspace, store)
    assert state(workspace, store) == ("b", "b", "b")
    current = workspace.bundles("toy") / "CURRENT"
    assert said == [f"{current} is now a", "models:/quadrank-toy@champion is now version 1 (a)"]


def test_a_line_of_the_history_tells_who_when_and_what(workspace: Workspace, store: Store) -> None:
    serve("a", workspace, store)
    serve("b", workspace, store)
    first, last = (json.loads(line) for line in (workspace.bundles("toy") / HISTORY).read_text().splitlines())
    assert first["from"] is None
    assert last["when"].endswith("+00:00") and "@" in last["who"]
    assert {key: last[key] for key in ("action", "from", "to", "why", "metrics", "git_revision")} == {
        "action": "promote",
        "from": "a",
        "to": "b",
        "why": "good",
        "metrics": {"auc": 0.7},
        "git_revision": METADATA.git_revision,
    }
    # The window ends 9 µs after 1970 began, in UTC whatever zone this machine has.
    assert last["data"] == {"train": ["1970-01-01T00:00:00+00:00"] * 2}


def test_a_registry_that_is_away_leaves_the_new_champion_and_the_next_run_moves_the_alias(
    workspace: Workspace, store: Store
) -> None:
    serve("a", workspace, store)
    store.down = True
    with pytest.raises(ConnectionError):
        serve("b", workspace, store)
    assert state(workspace, store) == ("b", "b", "a")
    store.down = False
    assert "had not followed CURRENT: it is now version 2 (b)" in mend("toy", workspace)[0]
    assert state(workspace, store) == ("b", "b", "b")
    assert mend("toy", workspace) == []


def test_an_alias_that_waits_for_the_registry_is_not_said_to_have_moved(workspace: Workspace, store: Store) -> None:
    serve("a", workspace, store)
    store.waits = True
    assert serve("b", workspace, store)[1] == "models:/quadrank-toy@champion becomes b when MLflow answers again"


STEPS: dict[str, str] = {
    "before the pointer": "pipelines.gate.pointers.point_at",
    "between pointer and history": "pipelines.gate.pointers.add_move",
}


@pytest.mark.parametrize(("step", "left", "mended"), [
    ("before the pointer", ("a", "a", "a"), ("a", "a", "a")),
    ("between pointer and history", ("b", "a", "a"), ("b", "b", "b")),
])  # fmt: skip
def test_a_kill_between_two_steps(
    workspace: Workspace,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    left: tuple[str, str, str],
    mended: tuple[str, str, str],
) -> None:
    serve("a", workspace, store)

    def killed(*_: Any) -> None:
        raise SystemExit(137)

    with monkeypatch.context() as patch:
        patch.setattr(STEPS[step], killed)
        with pytest.raises(SystemExit):
            serve("b", workspace, store)
    assert state(workspace, store) == left
    mend("toy", workspace)
    assert state(workspace, store) == mended


def test_a_pointer_that_was_moved_by_hand_gets_its_line(workspace: Workspace, store: Store) -> None:
    serve("a", workspace, store)
    point_at(workspace.bundles("toy"), "c")
    mend("toy", workspace)
    last = read_moves(workspace.bundles("toy"))[-1]
    assert (last.action, last.before, last.after) == ("found", "a", "c") and "moved by hand" in last.why


def test_an_alias_that_was_set_on_purpose_stays(workspace: Workspace, store: Store) -> None:
    serve("a", workspace, store)
    serve("b", workspace, store)
    store.versions.append("elsewhere")
    store.alias = "3"
    assert mend("toy", workspace) == [] and store.alias == "3"


def test_an_alias_that_is_gone_comes_back(workspace: Workspace, store: Store) -> None:
    for name in ("a", "b"):
        serve(name, workspace, store)
    store.alias = None
    assert "had not followed CURRENT: it is now version 2 (b)" in mend("toy", workspace)[0]
    assert state(workspace, store) == ("b", "b", "b")


@pytest.mark.parametrize("hurt", [lambda bundles: (bundles / "CURRENT").write_text("gone"), lambda bundles: None])
def test_without_a_champion_there_is_nothing_to_mend(
    workspace: Workspace, store: Store, hurt: Callable[[Path], Any]
) -> None:
    hurt(workspace.bundles("toy"))
    assert mend("toy", workspace) == []
    with champion_folder("toy", workspace) as found:
        assert found is None


def test_a_damaged_champion_is_left_to_the_gate(workspace: Workspace, store: Store) -> None:
    serve("a", workspace, store)
    (workspace.bundles("toy") / "a" / "more.txt").touch()
    assert mend("toy", workspace) == []


def test_a_damaged_bundle_that_served_before_does_not_keep_the_alias_back(workspace: Workspace, store: Store) -> None:
    """One that was rolled back because it is damaged, while the registry was away."""
    for name in ("a", "b"):
        serve(name, workspace, store)
    move_current(open_bundle(workspace.bundles("toy") / "a"), workspace, "rollback", "damaged")
    (workspace.bundles("toy") / "b" / "more.txt").touch()
    mend("toy", workspace)
    assert state(workspace, store) == ("a", "a", "a")


def test_the_champion_is_what_current_names(workspace: Workspace, store: Store) -> None:
    serve("a", workspace, store)
    with champion_folder("toy", workspace) as found:
        assert found == workspace.bundles("toy") / "a"


def test_a_link_in_the_place_of_current_names_the_champion(workspace: Workspace, store: Store) -> None:
    serve("a", workspace, store)
    pointer = workspace.bundles("toy") / "CURRENT"
    pointer.unlink()
    pointer.symlink_to("a")
    assert current_name(workspace.bundles("toy")) == "a"
    serve("b", workspace, store)
    assert state(workspace, store) == ("b", "b", "b")


def test_without_current_the_champion_is_that_of_the_alias(workspace: Workspace, store: Store, tmp_path: Path) -> None:
    serve("a", workspace, store)
    (workspace.bundles("toy") / "CURRENT").unlink()
    with champion_folder("toy", workspace) as found:
        assert found == workspace.bundles("toy") / "a"
    with champion_folder("toy", Workspace(tmp_path / "another machine")) as found:
        assert found is not None and found.name == "bundle" and found.is_dir()
    assert not found.exists()  # downloaded for the time of the gate


def test_a_bundle_of_another_place_moves_the_alias_alone(workspace: Workspace, store: Store, tmp_path: Path) -> None:
    serve("a", workspace, store)
    bundle = bundle_in(tmp_path / "elsewhere" / "z", "z")
    done = make_champion(bundle, workspace, store)
    assert state(workspace, store) == ("a", "a", "z")
    current = workspace.bundles("toy") / "CURRENT"
    assert done[0] == f"{current} does not change: the bundle is in another folder"


def test_two_processes_do_not_move_the_pointers_at_once(
    workspace: Workspace, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pointers, "WAIT", 0.0)
    with workspace.lock("toy.pointers"), pytest.raises(LockError):
        serve("a", workspace, store)
    assert not (workspace.bundles("toy") / "CURRENT").exists()


def verdict(passed: bool) -> Verdict:
    return Verdict("b", "a", (Finding("calibration", passed, 2.0, "0.8 to 1.25", "" if passed else "ratio 2"),), 10)


def test_what_is_refused_moves_nothing(workspace: Workspace, store: Store) -> None:
    serve("a", workspace, store)
    with pytest.raises(GateError, match="calibration: ratio 2") as refused:
        promote(verdict(False), workspace.bundles("toy") / "b", workspace, GateRules(), QUIET)
    assert refused.value.exit_code == 6
    assert state(workspace, store) == ("a", "a", "a") and store.versions == ["a"]


def test_what_passes_is_registered_once_tagged_and_promoted(workspace: Workspace, store: Store) -> None:
    serve("a", workspace, store)
    for _ in range(2):
        assert promote(verdict(True), workspace.bundles("toy") / "b", workspace, GateRules(), QUIET) == "2"
    assert store.runs[-1] == {
        "experiment": NAME, "run_name": "promote b", "tags": {"stage": "promote"}, "params": {},
    }  # fmt: skip
    assert len(store.runs) == 2 and store.tags["2"] == {"gate": "passed", "gate.champion": "a"}
    assert read_moves(workspace.bundles("toy"))[-1].why == "passed the gate against a"


@pytest.mark.parametrize(("holds", "status", "code"), [(True, "done", 0), (False, "drift", 3)])
def test_a_bundle_whose_data_drifted_is_promoted_with_an_exit_code_that_says_so(
    workspace: Workspace, store: Store, monkeypatch: pytest.MonkeyPatch, holds: bool, status: str, code: int
) -> None:
    found = Verdict("a", None, (Finding("calibration", True), Finding("drift", holds, refuses=False)), 10)
    monkeypatch.setattr("pipelines.gate.promote.judge", lambda *_: found)
    done = promote_bundle(workspace.bundles("toy") / "a", workspace, GateRules(), QUIET)
    assert (done["status"], done["exit_code"], done["version"]) == (status, code, "1")
    assert state(workspace, store) == ("a", "a", "a")


def test_a_version_that_was_taken_out_of_the_registry_is_registered_anew(workspace: Workspace, store: Store) -> None:
    serve("a", workspace, store)
    b, registry = workspace.bundles("toy") / "b", cast(Registry, store)
    assert promote(verdict(True), b, workspace, GateRules(), QUIET, registry, version="7") == "2"
    assert promote(verdict(True), b, workspace, GateRules(), QUIET, registry, version="2") == "2"
    assert store.versions == ["a", "b"] and state(workspace, store) == ("b", "b", "b")


def test_a_roll_back_while_a_bundle_is_judged_is_not_undone(workspace: Workspace, store: Store) -> None:
    serve("a", workspace, store)
    serve("c", workspace, store)  # and `b` was judged against `a`
    with pytest.raises(ChampionMovedError, match="it was judged against a, and c serves now") as moved:
        promote(verdict(True), workspace.bundles("toy") / "b", workspace, GateRules(), QUIET)
    assert moved.value.exit_code == 75
    assert state(workspace, store) == ("c", "c", "c")


def test_without_a_comparison_it_does_not_matter_what_serves(workspace: Workspace, store: Store) -> None:
    serve("c", workspace, store)
    promote(verdict(True), workspace.bundles("toy") / "b", workspace, GateRules(compare=False), QUIET)
    assert state(workspace, store) == ("b", "b", "b")


def test_a_bundle_that_was_removed_meanwhile_is_not_pointed_at(workspace: Workspace, store: Store) -> None:
    serve("a", workspace, store)
    bundle = open_bundle(workspace.bundles("toy") / "b")
    shutil.rmtree(bundle.path)
    with pytest.raises(DataError, match="toy/b: was removed meanwhile"):
        move_current(bundle, workspace, "promote", "good")
    assert state(workspace, store) == ("a", "a", "a")


@pytest.mark.parametrize(
    ("served", "champion", "reason"),
    [
        ((), None, None),  # nothing serves
        ((), "a", None),  # as on a machine that takes the champion from MLflow
        (("a",), "a", None),
        (("a",), None, "it was judged against no champion, and a serves now"),
        (("c",), "a", "it was judged against a, and c serves now"),
        (("b",), "a", None),  # it serves itself
        (("b", "a"), "c", None),  # it served, and was rolled back
        (("a+items.2",), "a", None),
        (("a",), "a+items.2", None),
        (("b+items.2", "a"), "c", None),
    ],
)
def test_a_verdict_counts_while_what_it_was_judged_against_serves(
    workspace: Workspace, store: Store, served: tuple[str, ...], champion: str | None, reason: str | None
) -> None:
    for name in served:
        if not (workspace.bundles("toy") / name).exists():
            bundle_in(workspace.bundles("toy") / name, name)
        serve(name, workspace, store)
    assert champion_changed(champion, workspace.bundles("toy") / "b") == reason


def test_a_champion_goes_by_its_model_version_too(workspace: Workspace, store: Store) -> None:
    bundle_in(workspace.bundles("toy") / "a-2", "a+1")
    serve("a-2", workspace, store)
    assert champion_changed("a+1", workspace.bundles("toy") / "b") is None


@pytest.mark.parametrize(("line", "shown"), [(b"{}", r"\{\}"), (b'{"when":', r'\{"when":'), (b"\xff", "\ufffd")])
def test_a_line_that_is_no_move_is_named(workspace: Workspace, store: Store, line: bytes, shown: str) -> None:
    serve("a", workspace, store)
    with (workspace.bundles("toy") / HISTORY).open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(DataError, match=rf"HISTORY\.jsonl: line 2 is no move of CURRENT: '{shown}'"):
        read_moves(workspace.bundles("toy"))


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"../a", b"gone"])
def test_a_pointer_that_names_nothing_means_that_none_serves(
    workspace: Workspace, store: Store, content: bytes
) -> None:
    serve("a", workspace, store)
    (workspace.bundles("toy") / "CURRENT").write_bytes(content)
    assert current_name(workspace.bundles("toy")) is None
    serve("b", workspace, store)
    assert state(workspace, store) == ("b", "b", "b")


def test_a_move_that_is_made_already_is_made_once(workspace: Workspace, store: Store) -> None:
    serve("a", workspace, store)
    said = serve("a", workspace, store)
    assert "names a already" in said[0] and len(read_moves(workspace.bundles("toy"))) == 1
