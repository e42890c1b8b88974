"""Pointers: a small text file beside versions (feature sets, bundles) that holds the name of one of them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from features.errors import DataError
from features.store.atomic import write_text

CURRENT = "CURRENT"  # the version in use
NEWEST = "NEWEST"  # of bundles: the newest one exported, whether or not the gate let it pass
POINTERS = (CURRENT, NEWEST)


def point_at(folder: Path, version: str, pointer: str = CURRENT) -> Path:
    """Let a pointer of `folder` name this version, in one step; returns the pointer's path.

    One that names it already is left as it is: the folder may be one that can only be read. A link becomes a file.

    Raises:
        DataError: a folder stands in its place.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / pointer
    if path.is_dir() and not path.is_symlink():
        raise _is_a_folder(path)
    with _alone(folder):
        if not path.is_file() or path.read_bytes() != os.fsencode(version):
            write_text(path, version)
    return path


def move_pointer(path: Path, before: Path, after: Path) -> bool:
    """Let the pointer that `path` means, if it means one, name `after` where it names `before` still; whether it does.

    Args:
        path: as of `follow`.
        before, after: folders beside the pointer.
    """
    pointer = _pointer_of(path)
    if not os.path.lexists(pointer) or pointer.parent.resolve() != after.parent.resolve():
        return False
    with _alone(pointer.parent):
        try:
            if named_by(pointer) != before.name:
                return False
        except DataError:
            return False
        write_text(pointer, after.name)
    return True


def follow(path: Path) -> Path:
    """The version folder that a path means: itself, what a pointer file names, or a folder's `CURRENT` version.

    A path that does not exist is returned as it is.

    Raises:
        DataError: as `named_by`; or the pointer names no folder beside it.
    """
    pointer = _pointer_of(path)
    name = named_by(pointer)
    if name is None:
        return path
    version = pointer.parent / name
    if not name or Path(name).name != name or not version.is_dir():
        raise DataError(
            f"{pointer}: names {name!r}, and there is no such folder beside it. Name the folder itself, or write the "
            "name of one that is there into the file."
        )
    return version


def named_by(pointer: Path) -> str | None:
    """The name in a pointer, whether or not there is such a folder; None where there is no pointer.

    A link to a folder beside it, as other tools point at versions, names that folder.

    Raises:
        DataError: it is no text, another link, or a folder.
    """
    target = Path(os.path.realpath(pointer))  # which takes a link to itself for one to nothing
    if pointer.is_symlink() and not target.is_file():
        if target.is_dir() and target.parent == pointer.parent.resolve():
            return target.name
        raise DataError(
            f"{pointer}: is a link, and there is no folder beside it that it means. Remove it, and write the name of "
            f"one that is there into a file {pointer.name}."
        )
    if pointer.is_dir():
        raise _is_a_folder(pointer)
    try:
        return pointer.read_text(encoding="utf-8").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeDecodeError as error:
        raise DataError(f"{pointer}: is no text: {error}. Write the name of a folder beside it into it.") from None


def _pointer_of(path: Path) -> Path:
    return path if path.name in POINTERS else path / CURRENT


def _is_a_folder(pointer: Path) -> DataError:
    return DataError(
        f"{pointer}: is a folder, where a text file is to hold the name of one beside it. Move it away, and write that "
        f"name into a file {pointer.name}."
    )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let nobody else move a pointer of this folder within the block: what was read is still so when it is replaced."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
