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

    One that names it already is left as it is: the folder may be one that can only be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / pointer
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
    pointer = path / CURRENT if path.is_dir() else path
    if pointer.name not in POINTERS or not pointer.is_file() or pointer.parent.resolve() != after.parent.resolve():
        return False
    with _alone(pointer.parent):
        if pointer.read_bytes().strip() != os.fsencode(before.name):
            return False
        write_text(pointer, after.name)
    return True


def follow(path: Path) -> Path:
    """The version folder that a path means: itself, what a pointer file names, or a folder's `CURRENT` version.

    A path that does not exist is returned as it is.

    Raises:
        DataError: the pointer is no text, or names no folder beside it.
    """
    pointer = path / CURRENT if path.is_dir() else path
    if pointer.name not in POINTERS or not pointer.is_file():
        return path
    try:
        name = pointer.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{pointer}: is no text: {error}. Write the name of a folder beside it into it.") from None
    version = pointer.parent / name
    if not name or Path(name).name != name or not version.is_dir():
        raise DataError(
            f"{pointer}: names {name!r}, and there is no such folder beside it. Name the folder itself, or write the "
            "name of one that is there into the file."
        )
    return version


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let nobody else move a pointer of this folder within the block: what was read is still so when it is replaced."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
