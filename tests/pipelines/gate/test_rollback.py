"""Going back: to which bundle, what is written down, and what the list tells."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from ctr.serving.bundle import Bundle
from features.errors import ConfigError, NumericalError, QuadRankError, StoreAwayError
from features.store.pointer import point_at
from pipelines.gate import rollback
from pipelines.gate.history import before_current, move_to, read_moves
from pipelines.gate.pointers import mend
from pipelines.gate.rollback import list_moves
from pipelines.workspace import Workspace
from tests.ctr.serving.test_bundle import METADATA
from tests.pipelines.gate.moves import QUIET, Store, bundle_in, serve, state


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


@pytest.mark.parametrize("error", [ConfigError("the store cannot be used"), StoreAwayError("it does not answer")])
def test_going_back_does_not_wait_for_mlflow(
    workspace: Workspace, store: Store, loads: list[str], monkeypatch: pytest.MonkeyPatch, error: QuadRankError
) -> None:
    serve("a", workspace, store)
    serve("b", workspace, store)

    def away(*_: Any) -> None:
        raise error

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


@pytest.mark.parametrize("to", ["bundles/toy/c", "./bundles/toy/c/", "c/"])
def test_going_back_to_a_bundle_by_its_path(
    workspace: Workspace, store: Store, loads: list[str], monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    """As a shell completes it."""
    monkeypatch.chdir(workspace.root)
    serve("b", workspace, store)
    assert back(workspace, to=to)["to"] == "c"


@pytest.mark.parametrize(
    ("to", "why", "message"),
    [
        ("z", "worse", r"toy/z: no bundle\. Name one that is here with --to: a, b, c"),
        ("b", "worse", r"toy/b: serves already"),
        ("a", "  ", "--why: is empty"),
        ("a", "bad\udcff", "--why: is no text in UTF-8, at character 4"),
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


@pytest.mark.parametrize(
    ("why", "shown"),
    [("[/T-1]", "[/T-1]"), ("[bold]", "[bold]"), ("fell\u2028again", "fell"), ("a\x85b", "a"), ("one\ntwo", "one")],
)
def test_a_reason_in_any_characters_is_read_again(
    workspace: Workspace, store: Store, loads: list[str], why: str, shown: str
) -> None:
    serve("a", workspace, store)
    serve("b", workspace, store)
    back(workspace, why=why)
    console = Console(record=True, width=120)
    found = rollback.list_moves("toy", workspace, console)
    assert found["history"][-1]["why"] == why
    assert f"│ {shown}" in console.export_text()


def test_the_list_tells_the_moves_and_what_is_here(workspace: Workspace, store: Store) -> None:
    serve("a", workspace, store)
    console = Console(record=True, width=120)
    found = list_moves("toy", workspace, console)
    assert (found["current"], found["bundles"]) == ("a", ["a", "b", "c"]) and found["history"][0]["to"] == "a"
    assert "serves now: a; here: a, b, c" in console.export_text()
    with pytest.raises(ConfigError, match="holds no bundle"):
        list_moves("other", workspace, QUIET)


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
    # A bundle that came twice: what served before it came last.
    moves += [move_to(manifest, "promote", before, after, "") for before, after in (("a", "c"), ("c", "b"))]
    assert before_current(moves, "b") == "c"
