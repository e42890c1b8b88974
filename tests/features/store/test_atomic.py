"""Atomic writing: what is flushed before what, what a failure leaves, and where a feature set may be pointed at."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

import pytest

from features.build import publish
from features.store.atomic import flush_tree, replace_file, write_text
from tests.disk import steps_of


@pytest.fixture(autouse=True)
def tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight hex digits, as the real ones have, but known."""
    monkeypatch.setattr(secrets, "token_hex", lambda size: "ab" * size)


def test_a_file_is_flushed_then_renamed_then_its_folder_is_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "here" / "state.json"
    steps = steps_of(monkeypatch)
    write_text(path, "new")
    fresh = tmp_path / "here" / ".state.json-abababab"
    assert steps == [("flush", fresh), ("rename", path), ("flush", path.parent)]
    assert path.read_text() == "new" and [*path.parent.iterdir()] == [path]


def test_folders_on_the_way_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "c.txt", "grüße")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == "grüße".encode()


def test_a_failing_writer_leaves_the_old_content_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    path.write_text("old")
    steps = steps_of(monkeypatch)

    def fails(fresh: Path) -> None:
        fresh.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_file(path, fails)
    assert steps == [] and path.read_text() == "old" and [*tmp_path.iterdir()] == [path]


def test_a_writer_that_wrote_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        replace_file(tmp_path / "state.json", lambda fresh: None)
    assert [*tmp_path.iterdir()] == []


def test_a_tree_is_flushed_whole_but_for_files_of_two_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old").write_text("of yesterday, flushed then")
    folder = tmp_path / "set"
    (folder / "rows" / "deep").mkdir(parents=True)
    for name in ("rows/deep/a", "rows/b", "c"):
        (folder / name).write_text(name)
    os.link(tmp_path / "old", folder / "rows" / "linked")
    steps = steps_of(monkeypatch)
    flush_tree(folder)
    expected = [folder / name for name in ("c", "rows", "rows/b", "rows/deep", "rows/deep/a")]
    assert steps == [("flush", path) for path in [*expected, folder]]


def test_a_feature_set_is_pointed_at_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(path: Path) -> Any:
        return path

    monkeypatch.setattr(publish.FeatureSet, "open", opened)
    with publish.staged(tmp_path) as staging:
        (staging / "rows").mkdir()
        (staging / "rows" / "part").write_text("rows")
        (staging / "MANIFEST.json").write_text("{}")
        steps = steps_of(monkeypatch)
        publish.publish(staging, tmp_path, "2026-01-31-ab")
    version, current = tmp_path / "2026-01-31-ab", tmp_path / "CURRENT"
    assert steps == [
        ("flush", staging / "MANIFEST.json"),
        ("flush", staging / "rows"),
        ("flush", staging / "rows" / "part"),
        ("flush", staging),
        ("rename", version),
        # What it names is on disk before the pointer can be.
        ("flush", tmp_path),
        ("flush", tmp_path / ".CURRENT-abababab"),
        ("rename", current),
        ("flush", tmp_path),
    ]
    assert current.read_text() == version.name and (version / "rows" / "part").read_text() == "rows"
