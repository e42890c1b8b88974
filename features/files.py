"""Which files a path of a contract names, on disk or behind an fsspec URL, and what is in them."""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Any, cast
from urllib.parse import unquote

from features.errors import ConfigError, DataError

SUFFIXES = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".csv": "csv",
    ".tsv": "tsv",
    ".csv.gz": "csv",
    ".tsv.gz": "tsv",
}
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"  # how Hive, Spark and polars write a missing value into a folder's name
PARTITION = re.compile(r"([A-Za-z_]\w*)=(.*)")


def find_files(path: str) -> list[str]:
    """The files that a path names, each once.

    Args:
        path: a file, a glob (`day=*/*.parquet`, `**` for any depth), a folder (all tables in it, at any depth, but
            those whose name or folder begins with `.` or `_`), `{a,b}` alternatives of any of these, or an fsspec URL.
            Alternatives keep their order; what one names is sorted.

    Raises:
        DataError: nothing is there, or a folder holds no table.
        ConfigError: the package of a URL's file system is not installed.
    """
    path = path.removeprefix("file://")
    if is_url(path):
        found = [file for one in _alternatives(path) for file in _remote(one)]
    elif Path(path).exists():
        found = _local(path)
    else:
        found = [file for one in _alternatives(path) for file in _local(one)]
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
    return {one[1]: None if one[2] == NO_VALUE else unquote(one[2]) for one in found if one}


def content_hash(file: str | Path) -> str:
    """Hex sha256 of a file's content and partition keys; its name and times do not count.

    One process reads a file that stays as it is only once.
    """
    return _content_hash(str(file), state_of(str(file)))


def state_of(file: str) -> Hashable:
    """What changes when a file is written anew: size and time, or what its file system keeps for this."""
    if is_url(file):
        with _reachable(file):
            system, path = _system(file)
            return cast(Hashable, system.ukey(path))
    state = Path(file).stat()
    return state.st_size, state.st_mtime_ns


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
                return [whole for one in found for whole in _alternatives(path[:start] + one + path[at + 1 :])]
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
    """Without marks of other programs such as `_SUCCESS`, unless the pattern asks for such names."""
    if PurePosixPath(pattern).name.startswith("_"):
        return names
    return [name for name in names if not PurePosixPath(name).name.startswith("_")]


def _tables(files: list[str], folder: str) -> list[str]:
    parts = {file: PurePosixPath(file).relative_to(PurePosixPath(folder)).parts for file in files}
    return sorted(
        file for file in files if kind_of(file) and not any(part.startswith((".", "_")) for part in parts[file])
    )


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
