"""Which version answers: pointers and aliases, versions that fail, rollback, and the thread that looks for the next."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ctr.serving.answering.versions import Versions
from features.errors import ConfigError, DataError, NumericalError
from tests.ctr.serving.answering.sources import A, B, C, Moving, Wanted, made_at, ranker


def watched_until_b_answers(source: Wanted, load: Callable[[Path], Any]) -> tuple[list[str], list[str]]:
    """Let the watching replace A by B, whatever fails before; why versions were refused, and why looks told none."""
    refused: list[str] = []
    untold: list[str] = []
    loaded = threading.Event()

    def noted(path: Path) -> Any:
        found = load(path)
        if path == B:
            loaded.set()
        return found

    versions = Versions(source, noted, on_refusal=lambda path, reason: refused.append(reason), on_untold=untold.append)
    source.path = B
    versions.watch(0.01)
    assert loaded.wait(60)
    versions.close()
    assert versions.current.bundle.path == B
    return refused, untold


def test_a_fault_while_a_version_is_loaded_is_tried_again_and_ends_no_watching():
    faults = [RuntimeError("out of memory"), OSError("disk")]

    def load(path: Path) -> Any:
        if path == B and faults:
            raise faults.pop(0)
        return ranker(path)

    assert watched_until_b_answers(Wanted(A), load) == (["out of memory", "disk"], [])


def test_a_source_that_fails_in_any_way_ends_no_watching():
    faults = [TypeError("null is no answer"), RuntimeError("cut"), DataError("away")]

    class Failing(Wanted):
        def wanted(self) -> Path:
            if self.path == B and faults:
                raise faults.pop(0)
            return self.path

    assert watched_until_b_answers(Failing(A), ranker) == ([], ["null is no answer", "cut", "away"])


def test_each_look_at_the_source_that_succeeds_is_told():
    source, looks = Wanted(A), list[None]()
    versions = Versions(source, ranker, on_look=lambda: looks.append(None))
    assert len(looks) == 1
    versions.refresh()
    assert len(looks) == 2
    source.wanted = lambda: A / 1  # type: ignore[operator, method-assign]
    versions.refresh()
    assert len(looks) == 2, "a look that fails is none"


def test_a_bundle_that_is_wrong_is_tried_once_until_another_is_wanted():
    tries: list[Path] = []

    def load(path: Path) -> Any:
        tries.append(path)
        if path == B:
            raise DataError("changed")
        return ranker(path)

    source = Wanted(A)
    versions = Versions(source, load)
    for wanted in (B, B, A, B, C, B, B):
        source.path = wanted
        versions.refresh()
    assert tries == [A, B, B, C, B] and versions.current.bundle.path == C


def test_after_a_rollback_the_version_that_was_left_answers_when_it_is_wanted_anew():
    source = Wanted(A)
    versions = Versions(source, ranker)
    source.path = B
    assert versions.refresh() and versions.roll_back().bundle.path == A
    assert not versions.refresh()
    source.path = A
    assert not versions.refresh()
    source.path = B
    assert versions.refresh() and versions.current.bundle.path == B


def test_what_rollbacks_left_stays_left_until_another_version_is_wanted():
    """The pointer names B all the time; items are added to A meanwhile, and taken back."""
    source = Wanted(A)
    versions = Versions(source, ranker)
    source.move = lambda before, after: False  # type: ignore[attr-defined]
    source.path = B
    assert versions.refresh() and versions.roll_back().bundle.path == A
    assert not versions.upsert(made_at(C))[1] and versions.current.bundle.path == C
    assert versions.roll_back().bundle.path == A
    assert not versions.refresh() and versions.current.bundle.path == A
    source.path = Path("/bundles/d")
    assert versions.refresh()
    source.path = B
    assert versions.refresh() and versions.current.bundle.path == B


def test_a_bundle_that_was_refused_while_it_was_copied_is_tried_again(tmp_path: Path):
    source, folder, tries = Wanted(A), tmp_path / "b", list[Path]()

    def load(path: Path) -> Any:
        if path == folder:
            tries.append(path)
            if not (path / "whole").is_file():
                raise DataError("a file is missing")
        return ranker(path)

    versions = Versions(source, load)
    folder.mkdir()
    source.path = folder
    assert not versions.refresh() and not versions.refresh() and len(tries) == 1
    (folder / "half").write_text("h")
    assert not versions.refresh() and not versions.refresh() and len(tries) == 2
    (folder / "whole").write_text("w")
    assert versions.refresh() and versions.current.bundle.path == folder


def test_a_version_is_told_of_before_it_answers():
    """What it reads beside its bundle, counters of this minute, is there with its first answer."""
    answering: list[Path] = []
    source = Wanted(A)
    versions: Versions | None = None

    def told(swapped: Any, seconds: float) -> None:
        if versions is not None:
            answering.append(versions.current.bundle.path)

    versions = Versions(source, ranker, on_swap=told)
    source.path = B
    assert versions.refresh() and versions.roll_back().bundle.path == A
    assert answering == [A, B]


class Held:
    """A call that lasts until it is let go on, from when it is told to."""

    def __init__(self) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.begun.set()
        assert self.go_on.wait(120)


@contextmanager
def meanwhile(held: Held, act: Callable[[], object]) -> Iterator[None]:
    """What happens while an act is held up; it ends after that."""
    thread = threading.Thread(target=act)
    thread.start()
    try:
        assert held.begun.wait(60)
        yield
    finally:
        held.go_on.set()
        thread.join(60)
        assert not thread.is_alive()


def rolled_back(versions: Versions) -> Path:
    """Where the version lies that a rollback gave, which waits for nothing."""
    found: list[Path] = []
    thread = threading.Thread(target=lambda: found.append(versions.roll_back().bundle.path), daemon=True)
    thread.start()
    thread.join(60)
    assert found, "it waits"
    return found[0]


def test_a_rollback_waits_for_no_version_that_is_loaded():
    held, source = Held(), Wanted(A)

    def load(path: Path) -> Any:
        if path == C:
            held()
        return ranker(path)

    versions = Versions(source, load)
    source.path = B
    assert versions.refresh()
    source.path = C
    with meanwhile(held, versions.refresh):
        assert rolled_back(versions) == A == versions.current.bundle.path
    assert versions.current.bundle.path == C, "which is wanted, and is not what was left"
    source.path = B
    assert versions.refresh(), "named anew after another one"


def test_a_rollback_waits_for_no_source():
    held, source = Held(), Wanted(A)
    versions = Versions(source, ranker)
    source.path = B
    assert versions.refresh()
    source.wanted = lambda: held() or B  # type: ignore[method-assign]
    with meanwhile(held, versions.refresh):
        assert rolled_back(versions) == A
    assert versions.current.bundle.path == A, "what the source said before is no reason to answer with it again"


def test_a_version_that_a_rollback_brought_back_meanwhile_is_not_switched_to():
    held, source = Held(), Wanted(A)
    loads: list[Path] = []

    def load(path: Path) -> Any:
        loads.append(path)
        if loads == [A, B, A]:
            held()
        return ranker(path)

    versions = Versions(source, load)
    source.path = B
    assert versions.refresh()
    source.path = A
    with meanwhile(held, versions.refresh):
        assert rolled_back(versions) == A
    assert versions.previous is not None and versions.previous.bundle.path == B


def test_items_are_added_to_the_version_that_a_rollback_brought_back_meanwhile(tmp_path):
    """Else the upsert of the version that was left would bring it back."""
    held, source = Held(), Moving(A)
    versions = Versions(source, ranker)
    source.path = B
    assert versions.refresh()
    made: list[Path] = []

    def make(before: Path) -> Any:
        if not made:
            held()
        made.append(tmp_path / f"{before.name}+items")
        made[-1].mkdir()
        return SimpleNamespace(path=made[-1])

    with meanwhile(held, lambda: versions.upsert(make)):
        assert rolled_back(versions) == A
    assert made == [tmp_path / "b+items", tmp_path / "a+items"] and versions.current.bundle.path == made[1]
    assert list(tmp_path.iterdir()) == [made[1]] and source.path == B
    assert versions.previous is not None and versions.previous.bundle.path == A


def test_without_a_version_before_there_is_no_rollback():
    with pytest.raises(ConfigError, match="no version before"):
        Versions(Wanted(A), ranker).roll_back()


@pytest.mark.parametrize("fault", [ConfigError("1e38 gives no score"), None], ids=["refused", "ranked"])
def test_a_recent_request_that_a_new_version_refuses_bars_it_not(fault, monkeypatch):
    """A number that the model before bore may be too far for the new one: that is the request's fault."""
    scored: list[Any] = []

    def load(path: Path) -> Any:
        def scores(encoded: Any) -> None:
            scored.append(encoded)
            if fault and encoded == 1:
                raise fault

        encoder = SimpleNamespace(contract=None)
        return SimpleNamespace(
            bundle=SimpleNamespace(path=path), encoder=encoder, encode=lambda one: one, scores=scores
        )

    monkeypatch.setattr("ctr.serving.answering.versions.parse_request", lambda raw, *_: raw["id"])
    source = Wanted(A)
    versions = Versions(source, load)
    versions.remember({"id": 1})
    versions.remember({"id": 2})
    source.path = B
    assert versions.refresh() and versions.current.bundle.path == B and scored == [1, 2]


def test_a_version_that_gives_a_recent_request_no_score_is_refused(monkeypatch):
    def load(path: Path) -> Any:
        def scores(encoded: Any) -> None:
            raise NumericalError("no score")

        encoder = SimpleNamespace(contract=None)
        return SimpleNamespace(
            bundle=SimpleNamespace(path=path), encoder=encoder, encode=lambda one: one, scores=scores
        )

    monkeypatch.setattr("ctr.serving.answering.versions.parse_request", lambda raw, *_: raw)
    source = Wanted(A)
    versions = Versions(source, load)
    versions.remember({})
    source.path = B
    assert not versions.refresh() and versions.current.bundle.path == A
