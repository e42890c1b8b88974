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


class Wanted:
    """A source that a test sets."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def wanted(self) -> Path:
        return self.path


def ranker(path: Path) -> Any:
    return SimpleNamespace(bundle=SimpleNamespace(path=path))


A, B, C = Path("/bundles/a"), Path("/bundles/b"), Path("/bundles/c")


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
    assert loaded.wait(10)
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
        assert self.go_on.wait(30)


@contextmanager
def meanwhile(held: Held, act: Callable[[], object]) -> Iterator[None]:
    """What happens while an act is held up; it ends after that."""
    thread = threading.Thread(target=act)
    thread.start()
    try:
        assert held.begun.wait(10)
        yield
    finally:
        held.go_on.set()
        thread.join(10)
        assert not thread.is_alive()


def rolled_back(versions: Versions) -> Path:
    """Where the version lies that a rollback gave, which waits for nothing."""
    found: list[Path] = []
    thread = threading.Thread(target=lambda: found.append(versions.roll_back().bundle.path), daemon=True)
    thread.start()
    thread.join(10)
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


class Moving(Wanted):
    """A source that can be moved, as a pointer can."""

    def move(self, before: Path, after: Path) -> bool:
        self.path = after
        return True


class Standing(Wanted):
    """A source that cannot, as an alias."""

    def move(self, before: Path, after: Path) -> bool:
        return False


def made_at(path: Path) -> Any:
    return lambda before: SimpleNamespace(path=path)


def test_an_upserted_version_answers_and_the_source_names_it():
    source = Moving(A)
    versions = Versions(source, ranker)
    assert versions.upsert(made_at(B))[1] and versions.current.bundle.path == B == source.path
    assert not versions.refresh()
    source.path = C
    assert versions.refresh() and versions.current.bundle.path == C


def test_where_the_source_cannot_be_moved_an_upserted_version_answers_until_another_is_wanted():
    source = Standing(A)
    versions = Versions(source, ranker)
    for path in (B, C):
        assert not versions.upsert(made_at(path))[1]
        assert not versions.refresh() and versions.current.bundle.path == path
    assert versions.roll_back().bundle.path == B and not versions.refresh()
    source.path = Path("/bundles/d")
    assert versions.refresh()
    # What it stood for is a version like any other again.
    source.path = A
    assert versions.refresh() and versions.current.bundle.path == A


def test_a_version_that_is_wanted_comes_before_an_upsert():
    """Items are added to the new training's bundle, not to the one that it replaces."""
    source = Moving(A)
    versions = Versions(source, ranker)
    source.path = B
    seen: list[Path] = []

    def make(before: Path) -> Any:
        seen.append(before)
        return SimpleNamespace(path=C)

    assert versions.upsert(make)[1] and seen == [B] and versions.previous.bundle.path == B  # type: ignore[union-attr]


def test_a_new_bundle_that_is_refused_stays_named_after_an_upsert():
    """Others may be able to load it: the pointer is not taken away from it."""
    source = Moving(A)

    def load(path: Path) -> Any:
        if path == B:
            raise OSError("no memory")
        return ranker(path)

    versions = Versions(source, load)
    source.path = B
    assert not versions.upsert(made_at(C))[1] and source.path == B and versions.current.bundle.path == C


class Away(Standing):
    """An alias that is away for all looks after so many."""

    looks = 100

    def wanted(self) -> Path:
        self.looks -= 1
        if self.looks < 0:
            raise DataError("away")
        return self.path


@pytest.mark.parametrize("looks", [0, 1], ids=["before", "meanwhile"])
def test_while_the_source_is_away_an_upserted_version_answers_and_stays_when_it_is_back(looks):
    source, untold = Away(A), list[str]()
    versions = Versions(source, ranker, on_untold=untold.append)
    source.looks = looks
    assert not versions.upsert(made_at(B))[1] and versions.current.bundle.path == B
    assert untold == ["away"] * (2 - looks)
    source.looks = 100
    assert not versions.refresh(), "it stands for what the source named last, and names still"
    source.path = C
    assert versions.refresh() and versions.current.bundle.path == C


def test_where_the_source_fails_to_move_an_upserted_version_answers_and_the_log_says_why(caplog):
    class Full(Wanted):
        def move(self, before: Path, after: Path) -> bool:
            raise OSError("no space left")

    versions = Versions(Full(A), ranker)
    assert not versions.upsert(made_at(B))[1] and versions.current.bundle.path == B
    assert "b answers, but a restart will not find it: no space left" in caplog.text and not versions.refresh()


def test_an_upserted_version_that_cannot_be_loaded_is_removed(tmp_path):
    def make(before: Path) -> Any:
        (tmp_path / "b" / "columns").mkdir(parents=True)
        return SimpleNamespace(path=tmp_path / "b")

    def load(path: Path) -> Any:
        if path != A:
            raise MemoryError
        return ranker(path)

    versions = Versions(Moving(A), load)
    with pytest.raises(MemoryError):
        versions.upsert(make)
    assert versions.current.bundle.path == A and not list(tmp_path.iterdir())


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


def test_an_upsert_that_fails_changes_nothing():
    source = Moving(A)
    versions = Versions(source, ranker)

    def broken(before: Path) -> Any:
        raise DataError("no such set")

    with pytest.raises(DataError, match="no such set"):
        versions.upsert(broken)
    assert versions.current.bundle.path == A == source.path and versions.previous is None
