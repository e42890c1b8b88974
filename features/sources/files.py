"""Which files a path of a contract names, on disk or behind an fsspec URL, and what is in them."""

from __future__ import annotations

import glob
import hashlib
import json
import re
import time
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Any, cast
from urllib.parse import unquote

from features.errors import ConfigError, DataError, DiskError
from features.store.atomic import write_text

SUFFIXES = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".csv": "csv",
    ".tsv": "tsv",
    ".csv.gz": "csv",
    ".tsv.gz": "tsv",
}
HIDDEN = (".", "_")  # first characters of what other programs write beside their tables
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"  # how Hive, Spark and polars write a missing value into a folder's name
# How stores call what a file's new content changes: object stores an etag, others a time.
VERSION_MARKS = ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "last_modified", "updated", "mtime")
MOST_OTHERS = 10_000  # hashes that are kept of files that were not asked for
COARSE_CLOCK = 2_000_000_000  # ns: file systems keep times in steps of up to two seconds
PARTITION = re.compile(r"([A-Za-z_]\w*)=(.*)")


def find_files(path: str) -> list[str]:
    """The files that a path names, each once.

    Args:
        path: a file, a glob (`day=*/*.parquet`, `**` for any depth), a folder (all tables in it, at any depth, but
            those whose name or folder begins with `.` or `_`; a glob finds such alone where it spells them),
            `{a,b}` alternatives of any of these, or an fsspec URL. Alternatives keep their order; what one names is
            sorted. Within `looked_at_once` a path keeps the files that it had when it was first asked for.

    Raises:
        DataError: nothing is there, or a folder holds no table.
        ConfigError: the package of a URL's file system is not installed.
    """
    path = path.removeprefix("file://")
    look = _LOOK.get()
    if look is None:
        return _found(path)
    if path not in look.listed:
        look.listed[path] = _found(path)
    return list(look.listed[path])


def _found(path: str) -> list[str]:
    if is_url(path):
        found = [file for spelled in _alternatives(path) for file in _remote(spelled)]
    elif Path(path).exists():
        found = _local(path)
    else:
        found = [file for spelled in _alternatives(path) for file in _local(spelled)]
    return list(dict.fromkeys(found))


def is_url(file: str) -> bool:
    """Whether fsspec reads the file."""
    return "://" in file


def kind_of(file: str) -> str | None:
    """What a file's suffix says that it is: parquet, arrow, csv or tsv; None where it says nothing."""
    name = PurePosixPath(file).name
    return next((kind for suffix, kind in SUFFIXES.items() if name.endswith(suffix)), None)


def partition_of(file: str) -> dict[str, str | None]:
    """Keys and values of the `key=value` folders that a file lies in, outermost first; None for a missing value."""
    found = (PARTITION.fullmatch(part) for part in PurePosixPath(file).parts[:-1])
    return {key[1]: None if key[2] == NO_VALUE else unquote(key[2]) for key in found if key}


@dataclass
class Look:
    """What a build has seen of its input.

    Args:
        listed: files by the path that named them.
        states: state of each file when it was first hashed.
        known: state and hash by file, of this build and those before it.
    """

    listed: dict[str, list[str]] = field(default_factory=dict)
    states: dict[str, Hashable] = field(default_factory=dict)
    known: dict[str, tuple[str, str]] = field(default_factory=dict)

    def refuse_changes(self) -> None:
        """Raise DataError for the first file that is not as it was when it was hashed."""
        for file, state in self.states.items():
            if state_of(file) != state:
                raise DataError(
                    f"{file}: changed while the feature set was built, which would mix old rows and new. Nothing was "
                    "published. Build again once its writer has ended; write new rows to new files."
                )


_LOOK: ContextVar[Look | None] = ContextVar("look", default=None)


@contextmanager
def looked_at_once(notes: Path) -> Iterator[Look]:
    """Within the block, a path is listed once and a file hashed once, and not at all if `notes` know it.

    `notes` is a JSON file of hashes by file, each with the size and the time of change (of a remote file: the mark that
    its store gives each version) that the file had. A file with another size or time is hashed again, and so is one
    that changed less than two seconds before it was hashed, as a coarse clock may not tell its next change.
    """
    look = Look(known=_read_notes(notes))
    before = dict(look.known)
    token = _LOOK.set(look)
    try:
        yield look
    finally:
        _LOOK.reset(token)
        used = {name: look.known[name] for name in map(_full_name, look.states) if name in look.known}
        others = [name for name in look.known if name not in used][-MOST_OTHERS:]
        noted = {name: look.known[name] for name in others} | used
        if noted != before:
            # They save a reading, no more: in a folder that can only be read, files are hashed again.
            with suppress(DiskError, PermissionError):
                write_text(notes, json.dumps(noted, indent=0, ensure_ascii=False))


def content_hash(file: str | Path) -> str:
    """Hex sha256 of a file's content and partition keys; its name and times do not count.

    One process reads a file that stays as it is only once; within `looked_at_once` the notes of earlier ones count.
    """
    file, look = str(file), _LOOK.get()
    state = state_of(file)
    if look is None:
        return _content_hash(file, state)
    name = _full_name(file)
    if name not in look.known or look.known[name][0] != repr(state):
        look.known.pop(name, None)
        started = time.time_ns()
        sha256 = _content_hash(file, state)
        if not _may_change_unseen(file, state, started):
            look.known[name] = (repr(state), sha256)
    else:
        sha256 = look.known[name][1]
    look.states.setdefault(file, state)
    return sha256


def state_of(file: str) -> Hashable:
    """What changes when a file is written anew: size and time, or what its file system keeps for this."""
    if is_url(file):
        with _reachable(file):
            system, path = _system(file)
            marks = _marks(system.info(path))
            return marks or cast(Hashable, system.ukey(path))
    with _reachable(file):
        state = Path(file).stat()
    return state.st_size, state.st_mtime_ns


def _marks(info: Mapping[str, Any]) -> tuple[str, ...]:
    """Size and version of a remote file, as text; nothing where its store marks no versions."""
    marks = [f"{key}={info[key]}" for key in VERSION_MARKS if info.get(key) is not None]
    return (f"size={info.get('size')}", *marks) if marks else ()


def _may_change_unseen(file: str, state: Hashable, now: int) -> bool:
    if is_url(file):
        return not isinstance(state, tuple)
    return Path(file).stat().st_mtime_ns > now - COARSE_CLOCK


def _full_name(file: str) -> str:
    return file if is_url(file) else str(Path(file).absolute())


def _read_notes(notes: Path) -> dict[str, tuple[str, str]]:
    """State and hash by file; nothing where there are no notes, or broken ones."""
    try:
        content = json.loads(notes.read_bytes())
        return {str(name): (str(state), str(sha256)) for name, (state, sha256) in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def read_bytes(file: str) -> bytes:
    """The whole content of a file. Raises DataError when its file system refuses."""
    with open_file(file) as stream:
        return stream.read()


@contextmanager
def open_file(file: str) -> Iterator[BufferedReader]:
    """Open a local or remote file for reading. Raises DataError when its file system refuses, or does so later."""
    with _reachable(file), _opened(file) as stream:
        yield stream


@lru_cache(maxsize=4096)
def _content_hash(file: str, state: Hashable) -> str:
    with open_file(file) as stream:
        digest = hashlib.file_digest(stream, "sha256")
    partition = partition_of(file)
    if partition:
        # The same rows in another partition are other rows: the key is one of their columns.
        digest.update(repr(sorted(partition.items())).encode())
    return digest.hexdigest()


def _alternatives(path: str) -> list[str]:
    """`{a,b}` spelled out as a shell does it: in order, the outer ones first."""
    for start in (at for at, sign in enumerate(path) if sign == "{"):
        depth, commas = 0, [start]
        for at in range(start, len(path)):
            depth += {"{": 1, "}": -1}.get(path[at], 0)
            if path[at] == "," and depth == 1:
                commas.append(at)
            if depth == 0 and len(commas) > 1:
                ends = [*commas[1:], at]
                found = [path[left + 1 : right] for left, right in zip(commas, ends, strict=True)]
                return [whole for choice in found for whole in _alternatives(path[:start] + choice + path[at + 1 :])]
            if depth == 0:
                break
    return [path]


def _local(path: str) -> list[str]:
    if Path(path).is_file():
        return [path]
    names = [path] if Path(path).is_dir() else sorted(_shown(glob.glob(path, recursive=True), path))
    files: list[str] = []
    for name in names:
        is_folder = Path(name).is_dir()
        files += _tables([str(file) for file in Path(name).rglob("*") if file.is_file()], name) if is_folder else [name]
    if files:
        return files
    if names:
        raise _no_tables(path)
    folder = Path(path).parent
    if not folder.is_dir():
        raise DataError(f"{path}: no such file; its folder {folder} does not exist. Correct `root` or pass --root.")
    there = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
    raise DataError(f"{path}: no such file. {folder} holds: {there}.")


def _remote(url: str) -> list[str]:
    with _reachable(url):
        system, path = _system(url)
        if system.isfile(path):
            return [url]
        folders = [path] if system.isdir(path) else sorted(_shown(system.glob(path), path))
        files: list[str] = []
        for name in folders:
            files += _tables(system.find(name), name) if system.isdir(name) else [name]
        if files:
            return [str(system.unstrip_protocol(file)) for file in files]
    if folders:
        raise _no_tables(url)
    raise DataError(f"{url}: no such file. Correct the address; see what is there with its own tools.")


def _no_tables(folder: str) -> DataError:
    return DataError(
        f"{folder}: is a folder without tables ({', '.join(SUFFIXES)}). Name files of it, e.g. {folder}/*.parquet, and "
        "say in `format` what they are."
    )


def _shown(names: list[str], pattern: str) -> list[str]:
    """Without hidden files and folders (`_SUCCESS`, `_temporary/`, `.staging/`) but those that the pattern names.

    Folders before the pattern's first wildcard do not count.
    """
    parts = PurePosixPath(pattern).parts
    fixed = next((place for place, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    asked = [part for part in parts[fixed:] if part.startswith(HIDDEN)]

    def is_shown(name: str) -> bool:
        hidden = [part for part in PurePosixPath(name).parts[fixed:] if part.startswith(HIDDEN)]
        return all(any(fnmatchcase(part, wanted) for wanted in asked) for part in hidden)

    return [name for name in names if is_shown(name)]


def _tables(files: list[str], folder: str) -> list[str]:
    parts = {file: PurePosixPath(file).relative_to(PurePosixPath(folder)).parts for file in files}
    return sorted(file for file in files if kind_of(file) and not any(part.startswith(HIDDEN) for part in parts[file]))


def _system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path inside it."""
    # Imported here: a serving image has no fsspec.
    import fsspec
    from fsspec.registry import known_implementations

    protocol = url.partition("://")[0]
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        known = known_implementations.get(protocol, {}).get("class", "").split(".")[0]
        package = known if known not in ("", "fsspec") else error.name or "which its message names"
        raise ConfigError(
            f"{url}: {protocol}:// needs the package {package}, which is not installed ({error}). Install it, or copy "
            "the files to a disk."
        ) from None
    except ValueError as error:
        raise ConfigError(
            f"{url}: {error}. Write a path, or a URL that fsspec knows, such as s3:// or gs://."
        ) from None
    return system, str(path)


def _opened(file: str) -> Any:
    if is_url(file):
        system, path = _system(file)
        return system.open(path, "rb")
    return Path(file).open("rb")


@contextmanager
def _reachable(file: str) -> Iterator[None]:
    """Turn what a file system says into a DataError that names the file."""
    try:
        yield
    except (DataError, ConfigError):
        raise
    except Exception as error:
        # Each remote file system raises exceptions of its own.
        if not is_url(file) and not isinstance(error, OSError):
            raise
        raise DataError(
            f"{file}: cannot be read: {error or type(error).__name__}. Check that it is there and may be read."
        ) from None
