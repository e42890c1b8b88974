"""What every column encoder can do: the interface that its kinds implement."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import polars as pl

from features.encoding.vocabulary import Vocabulary
from features.store.schema import Field


class ColumnEncoder(ABC):
    """Raw values of one column to indices or numbers: fitted once, the same offline and online."""

    kind: ClassVar[str]

    @classmethod
    @abstractmethod
    def fit(cls, raw: pl.Series, spec: Any, times: pl.Series | None = None) -> Self:
        """Learn from training values. Raises DataError for a column that is not of the declared type.

        Args:
            raw: the values; distinct ones where `times` says how often each was seen.
            spec: how the column is declared.
            times: counts, of columns of names alone.
        """

    def extended(self, raw: pl.Series, spec: Any, times: pl.Series | None = None) -> Self:
        """An encoder of more training values: what this one knows keeps its index, numbers keep their scale."""
        return self

    @property
    def is_blank(self) -> bool:
        """Whether it is of numbers and saw none: what more values would teach it, `extended` does not."""
        return False

    @abstractmethod
    def field(self, name: str) -> Field:
        """How a model sees the column."""

    @abstractmethod
    def encode(self, raw: pl.Series) -> np.ndarray:
        """A column: int32 [rows], int32 [rows, max_len] or float32 [rows]. Raises DataError for another type."""

    @abstractmethod
    def encode_one(self, value: Any) -> np.ndarray:
        """One value, with a leading axis of 1: int64 or float32. None is missing."""

    def encode_many(self, values: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Several values of a request, None for missing: int64 [N] or float32 [N], as `encode_one` gives each."""
        empty = np.empty(0, np.float32 if self.field("").kind == "numeric" else np.int64)
        return np.concatenate([empty, *map(self.encode_one, values)])

    @abstractmethod
    def raw_value(self, encoded: Any) -> Any:
        """A raw value that is encoded so (an index, or a number); None for what is unknown or missing."""

    @abstractmethod
    def special_row(self, index: int) -> np.ndarray:
        """The entry of the padding (0) or unknown (1) row of a table, with a leading axis of 1."""

    def check(self, where: str, value: Any) -> None:
        """Raise ConfigError, naming `where`, for an online value of a type that the column does not have.

        Without it the value would be unknown, online alone: a build refuses such a column.
        """
        return

    def check_many(self, where: str, values: Sequence[Any], first: int = 0) -> None:
        """`check` of each value; `where` holds `{}` for its number, counted from `first`."""
        if type(self).check is ColumnEncoder.check:
            return
        for i, value in enumerate(values, first):
            self.check(where.replace("{}", str(i), 1), value)

    @abstractmethod
    def to_json(self, keep: Callable[[Vocabulary], str]) -> dict[str, Any]:
        """What it learned; `keep` stores a vocabulary and returns the name to find it by."""

    @classmethod
    @abstractmethod
    def from_json(cls, learned: dict[str, Any], find: Callable[[str], Vocabulary]) -> Self:
        """Read what `to_json` wrote; `find` gives a vocabulary by its name."""


Columns = Mapping[str, ColumnEncoder]
