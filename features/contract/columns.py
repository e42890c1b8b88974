"""The types a column can be declared with, in tables, in the log, and on history events."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, FiniteFloat, PositiveInt, model_validator

from features.contract.settings import Settings

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def _duration(value: object) -> object:
    """Microseconds of `90s`, `30m`, `12h` or `7d`."""
    if isinstance(value, str):
        match = re.fullmatch(r"([0-9]+)([smhd])", value.strip())
        if not match or int(match[1]) == 0:
            raise ValueError(f"{value!r} is no duration: write a whole number and a unit, e.g. 30m, 12h or 7d")
        return int(match[1]) * SECONDS[match[2]] * 1_000_000
    return value


Duration = Annotated[PositiveInt, BeforeValidator(_duration)]  # microseconds

RelativeKind = Literal["rank", "difference", "share", "count"]


def _each_once(kinds: tuple[RelativeKind, ...]) -> tuple[RelativeKind, ...]:
    if twice := sorted(kind for kind in set(kinds) if kinds.count(kind) > 1):
        raise ValueError(f"{twice[0]!r} is named twice; name each once")
    return kinds


Relative = Annotated[tuple[RelativeKind, ...], AfterValidator(_each_once)]


def is_pattern(name: str) -> bool:
    """Whether polars reads a name as a pattern of column names: `*`, or a regular expression from `^` to `$`."""
    return name == "*" or (name.startswith("^") and name.endswith("$"))


class ColumnSpec(Settings):
    """What every column may say; `form` is how one value of it looks in a request."""

    form: ClassVar[Literal["name", "names", "number", "time"]] = "name"
    type: str
    source: str | None = Field(None, description="raw column or polars SQL expression; default: the column's own name")


class Categorical(ColumnSpec):
    """One value out of a vocabulary. Values rarer than `min_count` in training share index 1."""

    type: Literal["categorical"]
    min_count: PositiveInt = 1
    max_size: PositiveInt | None = None
    default: str | int | bool | None = Field(None, description="context only: value where a request gives none")


class Hashed(ColumnSpec):
    """One value to one of `buckets` indices by a frozen hash of its text: no vocabulary, nothing to fit."""

    type: Literal["hashed"]
    buckets: int = Field(ge=1, le=2**31 - 3, description="two indices more are for padding and missing")
    default: str | int | bool | None = None


class Tags(ColumnSpec):
    """A list of values out of one vocabulary; the first `max_len` known ones are kept and mean-pooled."""

    form: ClassVar = "names"
    type: Literal["tags"]
    max_len: PositiveInt = 5
    min_count: PositiveInt = 1
    max_size: PositiveInt | None = None
    separator: str | None = Field(None, min_length=1, description="of a text column such as `Action|Drama`")


class Numeric(ColumnSpec):
    """A number, clipped, transformed, then standardised by the training window; missing stays NaN on disk."""

    form: ClassVar = "number"
    type: Literal["numeric"]
    clip: tuple[FiniteFloat, FiniteFloat] | None = Field(None, description="smallest and largest value kept")
    transform: Literal["none", "log1p"] = "none"
    scale: Literal["standardise", "none"] = "standardise"
    default: FiniteFloat | None = Field(None, description="context only: value where a request gives none")
    relative: Relative = Field((), description="items only: how it stands among the candidates of its request")

    @model_validator(mode="after")
    def _clip_is_a_range(self) -> Numeric:
        if self.clip is not None and not self.clip[0] < self.clip[1]:
            raise ValueError(f"clip: {list(self.clip)} is no range; write the smaller value first")
        return self


class Buckets(ColumnSpec):
    """A number to the index of its bucket: quantiles of the training window, or given edges."""

    form: ClassVar = "number"
    type: Literal["buckets"]
    count: PositiveInt = Field(10, description="quantile buckets; fewer where values repeat")
    edges: tuple[FiniteFloat, ...] | None = Field(None, min_length=1, description="ascending; replaces `count`")
    default: FiniteFloat | None = None

    @model_validator(mode="after")
    def _edges_ascend(self) -> Buckets:
        if self.edges is not None and any(b <= a for a, b in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError(f"edges: {list(self.edges)} must ascend")
        return self


class DatePart(ColumnSpec):
    """A part of a time (UTC) as a category: hour 0-23, weekday 0 (Monday)-6, day 1-31, month 1-12, week 1-53."""

    form: ClassVar = "time"
    type: Literal["date"]
    part: Literal["hour", "weekday", "day", "month", "week"]
    time_unit: Literal["s", "ms", "us"] = Field("s", description="unit of whole numbers")
    default: int | str | None = Field(None, description="context only: a time, ISO text or in `time_unit`")


class Gap(ColumnSpec):
    """Events only: time since the user's previous event, in `buckets` doubling from one second on."""

    form: ClassVar = "number"
    type: Literal["gap"]
    buckets: int = Field(24, ge=1, le=64)


class Residual(ColumnSpec):
    """Events only: the event's label minus what `counter` said of its item just before (feedback against the norm)."""

    form: ClassVar = "number"
    type: Literal["residual"]
    counter: str = Field(description="name of a rate counter of items")


ScalarSpec = Categorical | Hashed | Numeric | Buckets | DatePart
Column = Annotated[ScalarSpec | Tags, Field(discriminator="type")]
ScalarColumn = Annotated[ScalarSpec, Field(discriminator="type")]
EventColumn = Annotated[ScalarSpec | Gap | Residual, Field(discriminator="type")]
