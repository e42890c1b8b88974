"""Pointers: what a path means where versions lie side by side."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from features.errors import DataError
from features.store.pointer import CURRENT, NEWEST, follow, move_pointer, point_at


@pytest.fixture
def versions(tmp_path: Path) -> Path:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_a_pointer_is_followed_by_its_own_path_and_by_its_folder(versions: Path) -> None:
    assert point_at(versions, "first") == versions / CURRENT
    point_at(versions, "second", NEWEST)
    assert follow(versions) == versions / "first" == follow(versions / CURRENT)
    assert follow(versions / NEWEST) == versions / "second"
    assert (versions / CURRENT).read_text() == "first"


def test_a_version_and_what_is_not_there_mean_themselves(versions: Path) -> None:
    assert follow(versions) == versions
    assert follow(versions / "first") == versions / "first"
    assert follow(versions / CURRENT) == versions / CURRENT
    (versions / "first" / "MANIFEST.json").write_text("first")
    assert follow(versions / "first" / "MANIFEST.json") == versions / "first" / "MANIFEST.json"


@pytest.mark.parametrize("name", ["gone", "../first", "", "."])
def test_a_pointer_to_nothing_beside_it_is_refused(versions: Path, name: str) -> None:
    point_at(versions, name)
    with pytest.raises(DataError, match=r"CURRENT: names .*no such folder beside it"):
        follow(versions)


def test_a_pointer_that_is_no_text_is_refused_and_not_moved(versions: Path) -> None:
    (versions / CURRENT).write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="CURRENT: is no text"):
        follow(versions)
    assert not move_pointer(versions, versions / "first", versions / "second")


def test_a_flip_is_one_rename(versions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads meanwhile finds the old name or the new one."""
    point_at(versions, "first")
    seen = []
    replace = Path.replace

    def watched(source: Path, target: Path) -> Path:
        seen.append((source.read_text(), follow(versions).name))
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", watched)
    point_at(versions, "second")
    assert seen == [("second", "first")] and follow(versions).name == "second"


def test_a_pointer_that_names_the_version_already_is_not_written(versions: Path) -> None:
    point_at(versions, "first")
    before = (versions / "CURRENT").stat()
    point_at(versions, "first")
    after = (versions / "CURRENT").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_pointer_moves_on_from_the_version_that_it_names(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    pointer = point_at(tmp_path, "one")
    assert move_pointer(pointer, tmp_path / "one", tmp_path / "two") and follow(pointer) == tmp_path / "two"
    assert not move_pointer(pointer, tmp_path / "one", tmp_path / "three") and follow(pointer) == tmp_path / "two"
    assert move_pointer(tmp_path, tmp_path / "two", tmp_path / "three") and follow(pointer) == tmp_path / "three"
    newest = point_at(tmp_path, "one", NEWEST)
    assert move_pointer(newest, tmp_path / "one", tmp_path / "two")
    assert (follow(newest), follow(pointer)) == (tmp_path / "two", tmp_path / "three")
    elsewhere = tmp_path / "sub" / "three"
    elsewhere.mkdir(parents=True)
    assert not move_pointer(pointer, tmp_path / "three", elsewhere)
    assert not move_pointer(tmp_path / "three", tmp_path / "three", tmp_path / "one")


def test_a_pointer_that_another_process_moves_meanwhile_is_left_to_it(versions: Path) -> None:
    point_at(versions, "one")
    folder = os.open(versions, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)  # as a promotion does
    moved: list[bool] = []
    upsert = threading.Thread(
        target=lambda: moved.append(move_pointer(versions / CURRENT, versions / "one", versions / "one+items.1"))
    )
    upsert.start()
    upsert.join(0.2)
    assert upsert.is_alive(), "it waits for the other one"
    (versions / CURRENT).write_text("two", encoding="utf-8")
    os.close(folder)
    upsert.join(60)
    assert moved == [False]
    assert (versions / CURRENT).read_text(encoding="utf-8") == "two"


def test_a_link_to_a_version_beside_it_is_followed_and_the_next_flip_makes_a_file_of_it(versions: Path) -> None:
    (versions / CURRENT).symlink_to("first")
    assert follow(versions) == versions / "first" == follow(versions / CURRENT)
    assert move_pointer(versions / CURRENT, versions / "first", versions / "second")
    assert not (versions / CURRENT).is_symlink()
    assert follow(versions) == versions / "second"


def test_a_link_is_followed_by_way_of_another_path_to_its_folder(
    versions: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (versions / CURRENT).symlink_to(versions / "first")
    other = tmp_path_factory.mktemp("other") / "way"
    other.symlink_to(versions)
    assert follow(other) == other / "first"


@pytest.mark.parametrize("target", ["gone", CURRENT, "elsewhere"])
def test_a_link_to_anything_else_is_refused(
    versions: Path, tmp_path_factory: pytest.TempPathFactory, target: str
) -> None:
    place = tmp_path_factory.mktemp("elsewhere") if target == "elsewhere" else Path(target)
    (versions / CURRENT).symlink_to(place)
    for path in (versions, versions / CURRENT):
        with pytest.raises(DataError, match=r"CURRENT: is a link, and there is no folder beside it that it means"):
            follow(path)
    assert not move_pointer(versions, versions / "first", versions / "second")
    point_at(versions, "second")
    assert follow(versions) == versions / "second"


def test_a_folder_in_the_place_of_a_pointer_is_refused(versions: Path) -> None:
    (versions / CURRENT).mkdir()
    for path in (versions, versions / CURRENT):
        with pytest.raises(
            DataError, match=r"CURRENT: is a folder, where a text file is to hold the name of one beside"
        ):
            follow(path)
    with pytest.raises(DataError, match="CURRENT: is a folder"):
        point_at(versions, "first")
    assert not move_pointer(versions, versions / "first", versions / "second")
