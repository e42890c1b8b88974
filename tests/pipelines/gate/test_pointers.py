"""Who serves: CURRENT, its history and the alias move in this order, and what a kill leaves is mended."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ctr.serving.bundle import Bundle, open_bundle, publish, seal
from features.errors import ChampionMovedError, ConfigError, DataError, GateError, LockError, NumericalError
from features.store.pointer import follow, point_at
from pipelines.gate import pointers, rollback
from pipelines.gate.history import HISTORY, before_current, move_to, read_moves
from pipelines.gate.pointers import champion_changed, champion_folder, mend, move_alias, move_current, register
from pipelines.gate.promote import promote
from pipelines.gate.rollback import list_moves
from pipelines.gate.settings import GateRules
from pipelines.gate.verdict import Finding, Verdict
from pipelines.workspace import Workspace
from tests.ctr.serving.test_bundle import METADATA, fill

QUIET = Console(quiet=True)
NAME = "quadrank-toy"


class Store:
    """Registered versions and aliases in memory, and the runs that versions are registered in."""

    def __init__(self) -> None:
        self.versions: list[str] = []  # model versions; the first is version "1"
        self.alias: str | None = None  # a version
        self.tags: dict[str, dict[str, str]] = {}
        self.runs: list[dict[str, Any]] = []
        self.run_id = "mlflow-1"
        self.down = False

    def find_version(self, name: str, model_version: str) -> str | None:
        assert name == NAME
        return str(self.versions.index(model_version) + 1) if model_version in self.versions else None

    def register(self, path: Path, name: str, run_id: str) -> str:
        assert (name, run_id) == (NAME, self.run_id)
        self.versions.append(open_bundle(path).manifest.model_version)
        return str(len(self.versions))

    def set_alias(self, name: str, alias: str, version: str) -> None:
        assert (name, alias) == (NAME, "champion")
        if self.down:
            raise ConnectionError("registry")
        self.alias = version

    def version_tags(self, name: str, alias: str) -> dict[str, str]:
        assert (name, alias) == (NAME, "champion")
        return {"model_version": self.versions[int(self.alias) - 1]} if self.alias else {}

    def tag_version(self, name: str, version: str, tags: Mapping[str, str]) -> None:
        self.tags[version] = dict(tags)

    def download_bundle(self, uri: str, folder: Path) -> Path:
        assert uri == "models:/quadrank-toy@champion"
        (folder / "bundle").mkdir()
        return folder / "bundle"

    @contextmanager
    def run(self, **described: Any) -> Iterator[None]:
        self.runs.append(described)
        yield


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    made = Store()
    for module in ("pointers", "promote", "rollback"):
        monkeypatch.setattr(f"pipelines.gate.{module}.Registry", lambda root: made)
    monkeypatch.setattr(pointers, "Tracker", lambda root: made)
    return made


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Three bundles `a`, `b` and `c`."""
    made = Workspace(tmp_path)
    for name in ("a", "b", "c"):
        bundle_in(made.bundles("toy") / name, name)
    return made


def bundle_in(path: Path, version: str) -> Bundle:
    with publish(path) as folder:
        fill(folder)
        seal(folder, METADATA.model_copy(update={"model_version": version}))
    return open_bundle(path)


def serve(name: str, workspace: Workspace, store: Store) -> list[str]:
    return make_champion(open_bundle(workspace.bundles("toy") / name), workspace, store)


def make_champion(bundle: Bundle, workspace: Workspace, store: Store, why: str = "good") -> list[str]:
    version = register(bundle, workspace)
    return [move_current(bundle, workspace, "promote", why, {"auc": 0.7}), move_alias(bundle, version, store)]  # type: ignore[arg-type]


def state(workspace: Workspace, store: Store) -> tuple[str, str, str | None]:
    """What CURRENT, the history and the alias name."""
    bundles = workspace.bundles("toy")
    alias = store.version_tags(NAME, "champion").get("model_version")
    return follow(bundles).name, read_moves(bundles)[-1].after, alias


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
    assert set(last["data"]) == set(METADATA.windows)


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


def test_the_champion_is_what_current_names(workspace: Workspace, store: Store) -> None:
    serve("a", workspace, store)
    with champion_folder("toy", workspace) as found:
        assert found == workspace.bundles("toy") / "a"


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


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The bundles of these tests hold no graph: which ones were loaded, in order."""
    loaded: list[str] = []
    monkeypatch.setattr(rollback.Ranker, "of", lambda bundle: loaded.append(bundle.path.name))
    return loaded


def back(workspace: Workspace, to: str | None = None, why: str = "worse") -> dict[str, Any]:
    return rollback.rollback("toy", to, why, workspace, QUIET)


def test_going_back_is_one_pointer_and_one_line(workspace: Workspace, store: Store, loads: list[str]) -> None:
    serve("a", workspace, store)
    serve("b", workspace, store)
    found = back(workspace, why="clicks fell")
    assert (found["from"], found["to"], found["version"]) == ("b", "a", "1") and loads == ["a"]
    assert state(workspace, store) == ("a", "a", "a")
    last = read_moves(workspace.bundles("toy"))[-1]
    assert (last.action, last.before, last.after, last.why) == ("rollback", "b", "a", "clicks fell")


def test_going_back_does_not_wait_for_mlflow(
    workspace: Workspace, store: Store, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve("a", workspace, store)
    serve("b", workspace, store)

    def away(*_: Any) -> None:
        raise ConfigError("the MLflow store cannot be used")

    with monkeypatch.context() as patch:
        for name in ("find_version", "set_alias", "version_tags"):
            patch.setattr(store, name, away)
        assert back(workspace)["version"] is None
    assert state(workspace, store) == ("a", "a", "b")
    mend("toy", workspace)
    assert state(workspace, store) == ("a", "a", "a")


def test_going_back_twice_goes_back_two_promotions(workspace: Workspace, store: Store, loads: list[str]) -> None:
    for name in ("a", "b", "c"):
        serve(name, workspace, store)
    assert [back(workspace)["to"], back(workspace)["to"]] == ["b", "a"]
    with pytest.raises(ConfigError, match=r"no bundle before a\. Name one with --to: a, b, c"):
        back(workspace)


def test_going_back_goes_back_a_promotion_and_not_an_upsert_of_items(
    workspace: Workspace, store: Store, loads: list[str]
) -> None:
    serve("a", workspace, store)
    serve("b", workspace, store)
    for number in (1, 2):
        bundle_in(workspace.bundles("toy") / f"b+items.{number}", f"b+items.{number}")
        point_at(workspace.bundles("toy"), f"b+items.{number}")
        mend("toy", workspace)
    assert back(workspace)["to"] == "a"


def test_going_back_to_a_bundle_by_name_registers_it_where_no_run_did(
    workspace: Workspace, store: Store, loads: list[str]
) -> None:
    serve("b", workspace, store)
    assert back(workspace, to="c")["version"] == "2"
    assert state(workspace, store) == ("c", "c", "c")


@pytest.mark.parametrize(
    ("to", "why", "message"),
    [
        ("z", "worse", r"toy/z: no bundle\. Name one that is here with --to: a, b, c"),
        ("b", "worse", r"toy/b: serves already"),
        ("a", "  ", "--why: is empty"),
    ],
)
def test_a_way_back_that_is_none(workspace: Workspace, store: Store, to: str, why: str, message: str) -> None:
    serve("b", workspace, store)
    with pytest.raises(ConfigError, match=message):
        back(workspace, to, why)
    assert state(workspace, store) == ("b", "b", "b")


def test_a_bundle_that_scores_otherwise_is_no_way_back(
    workspace: Workspace, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(bundle: Bundle) -> None:
        raise NumericalError("golden request")

    monkeypatch.setattr(rollback.Ranker, "of", wrong)
    serve("a", workspace, store)
    serve("b", workspace, store)
    with pytest.raises(NumericalError):
        back(workspace)
    assert state(workspace, store) == ("b", "b", "b")


def test_the_list_tells_the_moves_and_what_is_here(workspace: Workspace, store: Store) -> None:
    serve("a", workspace, store)
    console = Console(record=True, width=120)
    found = list_moves("toy", workspace, console)
    assert (found["current"], found["bundles"]) == ("a", ["a", "b", "c"]) and found["history"][0]["to"] == "a"
    assert "serves now: a; here: a, b, c" in console.export_text()
    with pytest.raises(ConfigError, match="holds no bundle"):
        list_moves("other", workspace, QUIET)


def test_a_line_that_is_no_move_is_named(workspace: Workspace, store: Store) -> None:
    serve("a", workspace, store)
    with (workspace.bundles("toy") / HISTORY).open("a") as file:
        file.write("{}\n")
    with pytest.raises(DataError, match=r"HISTORY\.jsonl: line 2 is no move of CURRENT: '\{\}'"):
        read_moves(workspace.bundles("toy"))


def test_a_move_that_is_made_already_is_made_once(workspace: Workspace, store: Store) -> None:
    serve("a", workspace, store)
    said = serve("a", workspace, store)
    assert "names a already" in said[0] and len(read_moves(workspace.bundles("toy"))) == 1


def test_a_line_that_was_added_later_tells_the_way_back_too(
    workspace: Workspace, store: Store, loads: list[str]
) -> None:
    serve("a", workspace, store)
    point_at(workspace.bundles("toy"), "b")
    assert back(workspace)["to"] == "a"


def test_the_bundle_before_is_known_of_what_came_and_not_of_what_was_gone_back_to() -> None:
    manifest: Any = METADATA
    steps: list[tuple[Any, str | None, str]] = [("promote", None, "a"), ("promote", "a", "b"), ("rollback", "b", "a")]
    moves = [move_to(manifest, action, before, after, "") for action, before, after in steps]
    assert before_current(moves, "b") == "a" and before_current(moves, "a") is None
