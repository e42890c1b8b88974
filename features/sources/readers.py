"""How files of one kind are read: parquet, Arrow, and text with whatever separator and encoding it has."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Hashable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import polars as pl

from features.contract.log import Format
from features.errors import DataError
from features.sources.files import is_url, read_bytes, state_of

TEXT = {"csv": ",", "tsv": "\t"}  # kinds of text files, and what separates their fields
STAND_IN = "\x1f"  # "unit separator", in place of a separator of several bytes: polars knows only single ones
LINES_FOR_KIND, LINES_FOR_WIDTH = 100, 10_000

Types = Mapping[str, pl.DataType]


def schema_of(file: str, kind: str, format: Format) -> Types:
    """Names and types of a file's columns, in its own order; a text column without any value is of type Null.

    Whether a text column holds numbers is decided on its first 100 lines, so that a word among numbers is found to be
    one; whether they are fractions, and whether it holds anything at all, on the first 10,000.

    Raises:
        DataError: the file is not of its kind, or has another number of columns than `format.columns`.
    """
    return _schema_of(file, state_of(file), kind, format)


def open_files(files: list[str], kind: str, format: Format, schema: Types) -> pl.LazyFrame:
    """The rows of these files, lazily.

    Local parquet, Arrow, UTF-8 text and gzipped text stream. A file behind a URL, in another encoding or with a
    separator of several bytes is read whole whenever it is its turn, one at a time.

    Args:
        files: on one disk, or all behind URLs.
        kind: of all of them.
        format: what a suffix does not say.
        schema: names and types of their columns.
    """
    if not _must_be_read_whole(files[0], kind, format):
        return _scan(files, kind, format, schema)

    def rows(
        columns: list[str] | None, predicate: pl.Expr | None, limit: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        left = limit
        for file in files:
            if left == 0:
                return
            frame = _scan(_content(file, kind, format), kind, format, schema)
            if left is not None:
                head = frame.head(left).collect()
                left -= head.height
                frame = head.lazy()
            if predicate is not None:
                frame = frame.filter(predicate)
            yield (frame if columns is None else frame.select(columns)).collect()

    # Imported here: serving reads no tables.
    from polars.io.plugins import register_io_source

    return register_io_source(rows, schema=dict(schema))


@lru_cache(maxsize=4096)
def _schema_of(file: str, state: Hashable, kind: str, format: Format) -> Types:
    source = _content(file, kind, format) if _must_be_read_whole(file, kind, format) else [file]
    try:
        if kind not in TEXT:
            return _scan(source, kind, format, None).collect_schema()
        return _text_schema(file, source, kind, format)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{file}: cannot be read as {kind}: {_first_line(error)}. {advice(error)}") from None


def _text_schema(file: str, source: Any, kind: str, format: Format) -> Types:
    head = _scan(source, kind, format, None, LINES_FOR_WIDTH).head(LINES_FOR_WIDTH).collect()
    first = _scan(source, kind, format, None, LINES_FOR_KIND).collect_schema()
    types = {}
    for name, dtype in head.schema.items():
        is_late_word = dtype == pl.String and first[name] != pl.String
        types[name] = pl.Null() if head[name].null_count() == head.height else first[name] if is_late_word else dtype
    if format.columns is None:
        return types
    if len(format.columns) != len(types):
        named = ", ".join(format.columns)
        raise DataError(
            f"{file}: has {len(types)} columns, format.columns names {len(format.columns)} ({named}). Name them all, "
            "in order, and check the separator."
        )
    return dict(zip(format.columns, types.values(), strict=True))


def _must_be_read_whole(file: str, kind: str, format: Format) -> bool:
    recoded = kind in TEXT and (not _is_utf8(format) or _is_long(format.separator))
    return is_url(file) or recoded


def _is_long(separator: str | None) -> bool:
    """Whether a separator has several bytes in UTF-8: several characters, or one such as `¦`."""
    return len((separator or "").encode()) > 1


def _is_utf8(format: Format) -> bool:
    return format.encoding.lower().replace("_", "-") in ("utf-8", "utf8")


def _content(file: str, kind: str, format: Format) -> io.BytesIO:
    """A file's content as polars can read it: unpacked, in UTF-8, fields separated by one character."""
    content = read_bytes(file)
    if kind not in TEXT:
        return io.BytesIO(content)
    try:
        if file.endswith(".gz"):
            content = gzip.decompress(content)
        if not _is_utf8(format):
            content = content.decode(format.encoding).encode()
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{file}: cannot be unpacked: {error}. Write the file again.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not {format.encoding} text: {error}. Correct format.encoding.") from None
    if format.separator and _is_long(format.separator):
        if STAND_IN.encode() in content:
            raise DataError(f"{file}: holds the control character 0x1F, which cannot be read here. Take it out.")
        content = _separated(content, format.separator.encode(), format.quote)
    return io.BytesIO(content)


def _separated(content: bytes, separator: bytes, quotes: bool) -> bytes:
    """With `STAND_IN` for each separator, but not inside a field that begins and ends with a quote."""
    stand_in = STAND_IN.encode()
    if not quotes or b'"' not in content:
        return content.replace(separator, stand_in)
    mark = re.escape(separator)
    begins, ends = b"(?:(?<=\n)|(?<=" + mark + rb")|\A)", b"(?=" + mark + rb"|\r?\n|\r?\Z)"
    pieces, done = [], 0
    for field in re.finditer(begins + rb'"[^"]*(?:""[^"]*)*"' + ends, content):
        pieces += [content[done : field.start()].replace(separator, stand_in), field[0]]
        done = field.end()
    return b"".join([*pieces, content[done:].replace(separator, stand_in)])


def _scan(source: Any, kind: str, format: Format, schema: Types | None, lines: int | None = None) -> pl.LazyFrame:
    # Without glob: the files have been found, and a folder may be called `[prod]`.
    if kind == "parquet":
        return pl.scan_parquet(source, glob=False, hive_partitioning=False)
    if kind == "arrow":
        return pl.scan_ipc(source, glob=False, hive_partitioning=False)
    separator = format.separator or TEXT[kind]
    return pl.scan_csv(
        source,
        glob=False,
        has_header=format.columns is None,
        separator=STAND_IN if _is_long(separator) else separator,
        quote_char='"' if format.quote else None,
        schema=None if schema is None else dict(schema),
        infer_schema_length=lines,
    )


def advice(error: Exception) -> str:
    """What to do about an error that polars raised for a file."""
    if "utf-8" in str(error).lower():
        return "Name its encoding, e.g. `format: {encoding: latin-1}`."
    return "Write the file again."


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
