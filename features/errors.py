"""The errors a user can cause, each with the exit code that a scheduler reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class QuadRankError(Exception):
    """Base of every error that is explained to the user in one message instead of a traceback."""

    exit_code = 1


class ConfigError(QuadRankError):
    """Wrong usage or configuration: unknown key, impossible value, malformed request."""

    exit_code = 2


class DataError(QuadRankError):
    """The data breaks its contract: missing file or column, wrong type, broken reference."""

    exit_code = 4


class NewItemsError(DataError):
    """What was given of new items cannot be theirs: an id of another type, a vector of another width."""


class NumericalError(QuadRankError):
    """Training or export produced a number that must not be used (NaN, infinity, lost parity)."""

    exit_code = 5


class GateError(QuadRankError):
    """A new bundle did not pass the promotion gate; the champion is kept."""

    exit_code = 6


class LockError(QuadRankError):
    """Another process holds the lock of the place this one wanted to write."""

    exit_code = 7


class TryAgainError(QuadRankError):
    """Nothing is wrong with data or settings; something outside is missing for now. The same command works later."""

    exit_code = 75


class StoreAwayError(TryAgainError):
    """The MLflow store does not answer."""


class ChampionMovedError(TryAgainError):
    """Another bundle began to serve after a new one was compared with the one before."""


class DiskError(TryAgainError):
    """Nothing more can be written: the disk is full, read-only, or over its quota."""


def require_format(file: Path, content: bytes, expected: int) -> None:
    """Raise DataError for JSON whose `format` is another number than this version reads.

    What is no JSON, or has no format, is left to whoever reads it further.
    """
    try:
        record = json.loads(content)
    except ValueError:
        return
    found = record.get("format", expected) if isinstance(record, dict) else expected
    if found != expected:
        raise DataError(
            f"{file}: is of format {found}, this version reads format {expected}. Build the feature set again with "
            "`quadrank features`, or read it with the version that wrote it."
        )


@contextmanager
def error_prefix(path: str) -> Iterator[None]:
    """Put the file's name in front of a DataError raised by what knows only the column."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
