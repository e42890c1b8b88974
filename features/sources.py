"""Lazy readers of raw tables: parquet, csv, tsv and Arrow files, one or many, with checks on their columns."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path

import polars as pl

from features.contract_log import Format
from features.errors import DataError
from features.settings import unknown_key

# Without glob: `find_files` has been there, and a folder may be called `[prod]`.
SUFFIXES: dict[str, Callable[[list[Path]], pl.LazyFrame]] = {
    ".parquet": partial(pl.scan_parquet, glob=False),
    ".arrow": partial(pl.scan_ipc, glob=False),
    ".feather": partial(pl.scan_ipc, glob=False),
    ".csv": partial(pl.scan_csv, glob=False),
    ".tsv": partial(pl.scan_csv, glob=False, separator="\t"),
}


def find_files(path: str) -> list[Path]:
    """The files a path or glob names, sorted. Raises DataError when there are none."""
    found = [Path(path)] if Path(path).exists() else sorted(Path(name) for name in glob.glob(path))
    if found:
        folders = [name for name in found if name.is_dir()]
        if folders:
            raise DataError(f"{folders[0]}: is a folder. Name its files, e.g. {folders[0]}/*.parquet.")
        return found
    folder = Path(path).parent
    if not folder.is_dir():
        raise DataError(f"{path}: no such file; its folder {folder} does not exist. Correct `root` or pass --root.")
    there = ", ".join(sorted(file.name for file in folder.iterdir())[:8]) or "nothing"
    raise DataError(f"{path}: no such file. {folder} holds: {there}.")


def scan(path: str, format: Format | None = None) -> pl.LazyFrame:
    """Scan a table lazily by its suffix.

    Raises:
        DataError: no such file, a suffix that is not read, or a file that is not what its suffix says.
    """
    files = find_files(path)
    suffix = files[0].suffix
    if suffix not in SUFFIXES:
        raise DataError(f"{files[0]}: unknown kind of table {suffix!r}. Use one of {', '.join(SUFFIXES)}.")
    try:
        frame = SUFFIXES[suffix](files)
        frame.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{files[0]}: cannot be read as {suffix[1:]}: {error}. Write the file again.") from None
    return frame


def read(path: str, columns: Iterable[str]) -> pl.DataFrame:
    """Read these columns of a table.

    Raises:
        DataError: as `scan`; a column that is not there, or a file that is broken further on.
    """
    columns = list(columns)
    frame = scan(path)
    require_columns(frame, path, columns)
    with readable(path):
        return frame.select(columns).collect()


@contextmanager
def readable(path: str) -> Iterator[None]:
    """Turn what polars says of a broken file into a DataError that names it."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        first = str(error).splitlines()[0]
        raise DataError(f"{path}: cannot be read to its end: {first}. Write the file again.") from None


def require_columns(frame: pl.LazyFrame, path: str, columns: Iterable[str]) -> None:
    """Raise DataError naming the first column that the table lacks, and the nearest it has."""
    names = frame.collect_schema().names()
    for column in columns:
        if column not in names:
            near = unknown_key(column, names).replace("Valid keys", "Columns")
            raise DataError(f"{path}: no column {column!r}. {near}")


def expression(raw: pl.LazyFrame, path: str, where: str, text: str) -> pl.Expr:
    """A column's name, or a polars SQL expression over the table's columns, as an expression of one value a row."""
    names = raw.collect_schema().names()
    try:
        # A column's name first: SQL reads `click-through` as a difference and `like` as nothing at all.
        expression = pl.col(text) if text in names else pl.sql_expr(text)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path}: {where} {text!r} is no SQL expression: {error}. Write e.g. `rating >= 4`.") from None
    require_columns(raw, path, expression.meta.root_names())
    try:
        # On no rows: the types are only compared when it runs.
        result = raw.collect_schema().to_frame().select(expression)
    except pl.exceptions.PolarsError as error:
        first = str(error).splitlines()[0]
        raise DataError(
            f"{path}: {where} {text!r} cannot be computed: {first}. Check the types of its columns."
        ) from None
    if result.height:
        raise DataError(
            f"{path}: {where} {text!r} is one value for the whole log, not one a row. Compare a column, e.g. "
            "`rating >= 4`."
        )
    return expression


def content_hash(path: Path) -> str:
    """Hex sha256 of a file's content; one process reads a file that stays as it is only once."""
    state = path.stat()
    return _content_hash(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=4096)
def _content_hash(path: Path, size: int, changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
