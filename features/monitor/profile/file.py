"""What `profile.json` holds, and reading it back."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from features.contract.settings import Settings
from features.errors import DataError, require_format
from features.monitor.profile.bins import Bins, Tally
from features.store.feature_set import SplitName
from features.store.pointer import follow

PROFILE = "profile.json"
FORMAT = 1
LINE = 118


class Day(Settings):
    """Rows of one UTC day, and the share of positives among those with a label."""

    rows: int
    label_rate: float | None = None


class Numbers(Settings):
    """Raw values of a numeric column: mean, and quantiles by their share."""

    mean: float
    quantiles: dict[str, float]


class ColumnProfile(Settings):
    """One column as the rows of a split see it.

    Args:
        missing: how many values are missing or, of categories, not in the vocabulary.
        missing_share: of the rows; of an event column, of the rows with a history.
        vocabulary: distinct values it was taught.
        top: shares of the most frequent values, among those that are not missing.
        numbers: of a numeric column.
    """

    missing: int
    missing_share: float
    vocabulary: int | None = None
    top: dict[str, float] | None = None
    numbers: Numbers | None = None


class VectorCoverage(Settings):
    """Share of rows, and of positive rows, whose item has a vector in the set."""

    rows: float
    clicks: float | None = None


class SplitProfile(Settings):
    """One split: exact counts, and its columns."""

    rows: int
    label_rate: float | None = None
    history_length: dict[str, int]
    vectors: dict[str, VectorCoverage]
    columns: dict[str, ColumnProfile]
    days: dict[str, Day]


class Profile(Settings):
    """A feature set in numbers.

    Args:
        items, users: of the catalogues.
        vector_coverage: share of catalogue items with a vector, by set.
        sampled_one_in: quantiles, top values of row columns and tallies come from one row in so many, drawn with
            a fixed seed; all other numbers from all rows.
        periods: first UTC day of each; the tallies' days, or several where there are more than `tally.PERIODS`.
        splits: to read.
        bins: of each column, the same in every split.
        tallies: by split and column, for `quadrank drift`.
    """

    format: int
    items: int
    users: int
    vector_coverage: dict[str, float]
    sampled_one_in: int
    splits: dict[SplitName, SplitProfile]
    periods: tuple[str, ...]
    bins: dict[str, Bins]
    tallies: dict[SplitName, dict[str, Tally]]


def load_profile(path: Path) -> Profile:
    """Read the profile of a feature set: of a version folder, of a name folder (its `CURRENT`), or the file itself.

    Raises:
        DataError: there is none, or it is of another format.
    """
    path = follow(path)
    file = path / PROFILE if path.is_dir() else path
    try:
        content = file.read_bytes()
        require_format(file, content, FORMAT)
        return Profile.model_validate_json(content)
    except FileNotFoundError:
        raise DataError(
            f"{file}: no such file. Name a feature set's folder or its {PROFILE}; `quadrank features` builds one."
        ) from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error}") from None
    except ValidationError as error:
        raise DataError(
            f"{file}: not a profile of format {FORMAT} ({error.error_count()} problems). Build the feature set again "
            "with `quadrank features`."
        ) from None


def save_profile(path: Path, profile: Profile) -> None:
    """Write indented JSON in which whatever fits stands on one line."""
    path.write_text(_pretty(profile.model_dump(mode="json", exclude_none=True), "") + "\n", encoding="utf-8")


def rounded(value: float, digits: int = 6) -> float:
    """`value` to so many significant digits; as it is where that would be above the largest number."""
    found = float(f"{value:.{digits}g}")
    return found if math.isfinite(found) else value


def _pretty(value: Any, indent: str) -> str:
    flat = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list) or len(indent) + len(flat) <= LINE or not _nests(value):
        return flat
    inner = indent + " "
    if isinstance(value, dict):
        lines = [
            f"{inner}{json.dumps(key, ensure_ascii=False)}: {_pretty(entry, inner)}" for key, entry in value.items()
        ]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    return "[\n" + ",\n".join(inner + _pretty(entry, inner) for entry in value) + f"\n{indent}]"


def _nests(value: Any) -> bool:
    """Whether there is anything to put on lines of its own."""
    return isinstance(value, dict) or any(isinstance(entry, dict | list) for entry in value)
