"""Versions made from the one that answers: the source names them or does not, and rollbacks come between."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ctr.serving.answering.versions import Versions
from features.errors import DataError
from tests.ctr.serving.answering.sources import A, B, C, Moving, Standing, Wanted, made_at, ranker


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
    """An alias that cannot be read any more after so many reads."""

    reads = 100

    def wanted(self) -> Path:
        self.reads -= 1
        if self.reads < 0:
            raise DataError("away")
        return self.path


@pytest.mark.parametrize("reads", [0, 1], ids=["before", "meanwhile"])
def test_while_the_source_is_away_an_upserted_version_answers_and_stays_when_it_is_back(reads):
    source, untold = Away(A), list[str]()
    versions = Versions(source, ranker, on_untold=untold.append)
    source.reads = reads
    assert not versions.upsert(made_at(B))[1] and versions.current.bundle.path == B
    assert untold == ["away"] * (2 - reads)
    source.reads = 100
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


def test_an_upsert_that_fails_changes_nothing():
    source = Moving(A)
    versions = Versions(source, ranker)

    def broken(before: Path) -> Any:
        raise DataError("no such set")

    with pytest.raises(DataError, match="no such set"):
        versions.upsert(broken)
    assert versions.current.bundle.path == A == source.path and versions.previous is None
