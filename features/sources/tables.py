"""Lazy readers of raw tables: one file or many, with checks that they fit together and on their columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import date
from itertools import groupby
from typing import Any, cast

import polars as pl

from features.contract.columns import is_pattern
from features.contract.log import Format
from features.contract.settings import unknown_key
from features.errors import DataError
from features.sources.files import SUFFIXES, find_files, is_url, kind_of, partition_of
from features.sources.readers import TEXT, Types, advice, open_files, schema_of

TEXTS = (pl.String, pl.Categorical, pl.Enum)
SIGNED = {16: pl.Int16(), 32: pl.Int32(), 64: pl.Int64(), 128: pl.Int128()}
ALL_FILES = "Write it in all files, or let the path name only those that have it."
QUOTED = re.compile(r"""'[^']*'|"[^"]*"|`[^`]*`""")  # text and names in SQL
LONGEST_NAME = 40  # of a column in a message: without a header, a name is some text of the first row
COUNTED = re.compile(r" for [0-9]+ out of [0-9]+ values?")
OVER = re.compile(r"\bOVER\s*\(", re.IGNORECASE)  # begins the window of a window function in SQL


# By path, as it was scanned last: columns that cannot be read from all files, and why.
_NOT_COMMON: dict[str, dict[str, str]] = {}


def scan(path: str, format: Format | None = None) -> pl.LazyFrame:
    """Scan the table in all files that `path` names, lazily; the keys of hive folders (`day=2026-01-31/`) are columns.

    Columns are those that all files have, each in the narrowest type that holds them all. So a column that a logger
    begins to write stops no build; `require_columns` says of one that is asked for which file lacks it, or holds text
    where another holds numbers.

    Args:
        path: as `features.sources.files.find_files` takes it.
        format: what the files' suffix does not say.

    Raises:
        DataError: no such file, a suffix that is not read, a file that is not what its suffix says, files of which only
            some lie in hive folders, or a text file with another number of columns than `format.columns` names.
        ConfigError: the package of a URL's file system is not installed.
    """
    format = format or Format()
    files = find_files(path)
    kind = _kind(files, format)
    types = [schema_of(file, kind, format) for file in files]
    schema, _NOT_COMMON[path] = _common(files, types, kind)
    key_types, keys = _partition_keys(files, schema)

    def differences(i: int) -> tuple[Any, ...]:
        return list(types[i].items()), keys[i], is_url(files[i])

    frames = []
    # Neighbours that differ in nothing are scanned as one, which is what polars is fast at.
    for (own_types, own_keys, _), group in groupby(range(len(files)), key=differences):
        # Text has the type that it is read as.
        read_as = {name: _read_as(schema.get(name, dtype), dtype, kind) for name, dtype in own_types}
        frame = open_files([files[i] for i in group], kind, format, read_as)
        columns = [pl.col(name).cast(dtype) for name, dtype in schema.items()]
        columns += [pl.lit(own_keys[key], dtype=dtype).alias(key) for key, dtype in key_types.items()]
        frames.append(frame.select(columns))
    return frames[0] if len(frames) == 1 else pl.concat(frames)


def read(path: str, columns: Iterable[str], format: Format | None = None) -> pl.DataFrame:
    """Read these columns of a table.

    Raises:
        DataError: as `scan`; a column that is not there, or a file that is broken further on.
    """
    columns = list(columns)
    frame = scan(path, format)
    require_columns(frame, path, columns)
    with readable(path):
        return frame.select(columns).collect()


@contextmanager
def readable(
    path: str, frame: pl.LazyFrame | None = None, expressions: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Turn what polars says of a broken file, or of a value that an expression cannot take, into a DataError.

    Args:
        path: of the file.
        frame: what is read; with `expressions` alone.
        expressions: what the contract calls the expressions of the frame, by column (`named`).
    """
    try:
        yield
    except (pl.exceptions.PolarsError, OSError) as error:
        if isinstance(error, pl.exceptions.InvalidOperationError) and frame is not None:
            _refuse_failed(path, frame, expressions or {})
        first = str(error).splitlines()[0]
        raise DataError(f"{path}: cannot be read to its end: {first}. {advice(error)}") from None


def named(where: str, text: str) -> str:
    """What messages call an expression of the contract: its key and its text."""
    return f"{where} {text!r}"


def _refuse_failed(path: str, frame: pl.LazyFrame, expressions: Mapping[str, str]) -> None:
    """Raise DataError for the first expression that some row has no value for."""
    names = frame.collect_schema().names()
    for column, name in ((column, name) for column, name in expressions.items() if column in names):
        try:
            # Alone: polars does not say which of several columns it was computing.
            frame.select(column).collect(engine="streaming")
        except pl.exceptions.InvalidOperationError as error:
            # Of as many values as polars looked at together, which is neither the log nor a file.
            first = COUNTED.sub("", str(error).splitlines()[0])
            raise DataError(
                f"{path}: {name} cannot be computed of every row: {first}. `TRY_CAST(… AS …)` gives null where a value "
                "cannot be converted; or correct the export."
            ) from None


def require_columns(frame: pl.LazyFrame, path: str, columns: Iterable[str]) -> None:
    """Raise DataError naming the first column that the table lacks, and the file that does or the nearest it has."""
    columns = list(columns)
    names = frame.collect_schema().names()
    refuse_not_common(path, (column for column in columns if column not in names))
    for column in columns:
        if column not in names:
            short = [name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…" for name in names]
            near = unknown_key(column, short).replace("Valid keys", "Columns")
            hint = ""
            if any(_is_number(name) for name in names):
                hint = " A file without a header needs names: `format: {columns: [user, item, …]}`."
            raise DataError(f"{path}: no column {column!r}. {near}{hint}")


def refuse_not_common(path: str, columns: Iterable[str]) -> None:
    """Raise DataError for the first of these columns that files of `path` have, but that cannot be read from all."""
    for column in columns:
        if column in _NOT_COMMON.get(path, {}):
            raise DataError(_NOT_COMMON[path][column])


def expression(raw: pl.LazyFrame, path: str, where: str, text: str) -> pl.Expr:
    """A column's name, or a polars SQL expression over the table's columns, as an expression of one value a row.

    Args:
        raw: the table.
        path: of its file, for messages.
        where: key of the contract that holds the expression, for messages.
        text: the expression.

    Raises:
        DataError: `text` is no SQL, names a column that is not there, cannot be computed from the columns' types, or
            gives one value for all rows, or looks at other rows.
    """
    names = raw.collect_schema().names()
    try:
        # A column's name first: SQL reads `click-through` as a difference and `like` as nothing at all.
        refuse_not_common(path, [text])
        is_column = text in names
        expression = pl.col(text) if is_column else pl.sql_expr(text)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path}: {where} {text!r} is no SQL expression: {error}. Write e.g. `rating >= 4`.") from None
    require_columns(raw, path, expression.meta.root_names())
    try:
        # On no rows: the types are only compared when it runs.
        empty = raw.collect_schema().to_frame()
        result = empty.select(expression)
    except pl.exceptions.PolarsError as error:
        if has_no_row(raw):
            raise DataError(f"{path}: the table is empty (0 rows). Check the export that wrote it.") from None
        first = str(error).splitlines()[0]
        raise DataError(
            f"{path}: {where} {text!r} cannot be computed: {first}. Check the types of its columns."
        ) from None
    if result.height:
        raise DataError(
            f"{path}: {where} {text!r} is one value for the whole log, not one a row. Compare a column, e.g. "
            "`rating >= 4`."
        )
    over_rows = "OVER" if not is_column and OVER.search(QUOTED.sub("''", text)) else _over_rows(expression, empty)
    if over_rows is not None:
        raise DataError(
            f"{path}: {where} {text!r}: {over_rows} is computed over all rows, so that a row would hold "
            "information of later ones. Compute it in the export, as of each row's time, or declare a counter."
        )
    return expression


def has_no_row(raw: pl.LazyFrame) -> bool:
    """Whether a table is empty: text without a line has columns of no type."""
    return not raw.head(1).collect(engine="streaming").height


def _over_rows(expression: pl.Expr, empty: pl.DataFrame) -> str | None:
    """The first part of an expression that is one value for all rows, as polars writes it; None where there is none.

    A column of no rows has no value, while an aggregate of it has one.
    """
    parts = expression.meta.pop()
    if not parts and not expression.meta.root_names():
        return None if expression.meta.is_literal() else str(expression)
    with suppress(pl.exceptions.PolarsError):
        if expression.meta.root_names() and empty.select(expression).height:
            return str(expression)
    return next((found for part in parts if (found := _over_rows(part, empty)) is not None), None)


def _kind(files: Sequence[str], format: Format) -> str:
    """What the files are: what the contract says, else what the suffix of all of them says."""
    if format.kind:
        return format.kind
    kinds = [kind_of(file) for file in files]
    for file, kind in zip(files, kinds, strict=True):
        if kind is None:
            suffix = re.sub(r".*(?=\.)|^[^.]*$", "", file.rsplit("/", 1)[-1])
            raise DataError(
                f"{file}: unknown kind of table {suffix!r}. Use one of {', '.join(SUFFIXES)}, or say what it is, e.g. "
                "`format: {kind: csv}`."
            )
        if kind != kinds[0]:
            raise DataError(f"{file}: is {kind}, {files[0]} is {kinds[0]}. Name files of one kind.")
    return str(kinds[0])


def _common(files: Sequence[str], types: Sequence[Types], kind: str) -> tuple[Types, dict[str, str]]:
    """One type for each column that all files have; and of every other column, why it cannot be read from them."""
    schema: dict[str, pl.DataType] = dict(types[0])
    origin, differs = dict.fromkeys(schema, files[0]), {}
    for file, own in zip(files[1:], types[1:], strict=True):
        for name in own:
            if name not in schema and name not in differs:
                differs[name] = f"{files[0]}: has no column {name!r}, which {file} has. {ALL_FILES}"
        for name in list(schema):
            if name not in own:
                differs[name] = f"{file}: has no column {name!r}, which {origin[name]} has. {ALL_FILES}"
                del schema[name]
                continue
            both = wider(schema[name], own[name])
            if both is None:
                differs[name] = (
                    f"{file}: column {name!r} holds {own[name]}, in {origin[name]} it holds {schema[name]}. Files that "
                    "are read as one table need one type for a column that is read. Write it with one type."
                )
                del schema[name]
            elif both != schema[name]:
                schema[name], origin[name] = both, file
    for name in [name for name in schema if is_pattern(name)]:
        differs[name] = (
            f"{origin[name]}: the name of column {name!r} would be read as a pattern of column names. Rename it in the "
            "export."
        )
        del schema[name]
    return {name: _read_as(dtype, dtype, kind) for name, dtype in schema.items()}, differs


def _read_as(common: pl.DataType, own: pl.DataType, kind: str) -> pl.DataType:
    """The type that a column of one file is read in: text in the common one, other kinds in their own."""
    if kind not in TEXT:
        return own
    return pl.String() if common == pl.Null else common


def wider(first: pl.DataType, second: pl.DataType) -> pl.DataType | None:
    """The narrowest type that holds the values of both, None where they mean different things.

    Whole numbers beside fractions are fractions: those too large to be exact are no ids any more (`canonical`).
    """
    if first == second or second == pl.Null:
        return first
    if first == pl.Null:
        return second
    if first in TEXTS and second in TEXTS:
        return pl.String()
    if isinstance(first, pl.List) and isinstance(second, pl.List):
        inner = wider(cast(pl.DataType, first.inner), cast(pl.DataType, second.inner))
        return None if inner is None else pl.List(inner)
    if isinstance(first, pl.Datetime) and isinstance(second, pl.Datetime):
        return pl.Datetime("us", first.time_zone) if first.time_zone == second.time_zone else None
    if first.is_integer() and second.is_integer():
        return _wider_integer(first, second)
    numbers = (first.is_integer() or first.is_float()) and (second.is_integer() or second.is_float())
    return pl.Float64() if numbers else None


def _wider_integer(first: pl.DataType, second: pl.DataType) -> pl.DataType | None:
    """As `wider`, of two integers."""
    bits = {own: int(str(own).lstrip("UInt")) for own in (first, second)}
    if first.is_signed_integer() == second.is_signed_integer():
        return max(bits, key=lambda own: bits[own])
    # A sign takes one bit more than the unsigned type has.
    needed = max(bits[own] * (1 if own.is_signed_integer() else 2) for own in bits)
    return SIGNED.get(needed)


def _partition_keys(files: Sequence[str], schema: Types) -> tuple[Types, list[dict[str, Any]]]:
    """Types of the hive keys that are no columns of the files themselves, and each file's values of them."""
    found = [{key: value for key, value in partition_of(file).items() if key not in schema} for file in files]
    for file, values in zip(files, found, strict=True):
        if lacking := sorted(found[0].keys() ^ values.keys()):
            raise DataError(
                f"{file}: {files[0]} and it do not both lie in folders `{lacking[0]}=…`. Files that are read as one "
                "table need the same keys; move the file, or let the path name only those that have it."
            )
    typed: list[dict[str, Any]] = [dict(values) for values in found]
    types: dict[str, pl.DataType] = {}
    for key in found[0]:
        types[key], read = _key_type([text for values in found if (text := values[key]) is not None])
        for own, values in zip(typed, found, strict=True):
            own[key] = None if (text := values[key]) is None else read(text)
    return types, typed


def _key_type(texts: Sequence[str]) -> tuple[pl.DataType, Callable[[str], Any]]:
    if texts and all(_is_date(text) for text in texts):
        return pl.Date(), date.fromisoformat
    if texts and all(re.fullmatch(r"-?[0-9]{1,18}", text) for text in texts):
        return pl.Int64(), int
    return pl.String(), str


def _is_date(text: str) -> bool:
    try:
        return bool(re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text) and date.fromisoformat(text))
    except ValueError:
        return False


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
