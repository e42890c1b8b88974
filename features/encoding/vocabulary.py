"""Raw values to indices: 0 padding, 1 unknown, values from 2. A column at a time, or one by one."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from features.draws import mixed
from features.errors import DataError
from features.sources.keys import canonical
from features.store.schema import FIRST_VALUE, UNKNOWN

DENSE = 16  # whole numbers spread over so many times their count are still looked up in a table

MANY = 32  # values that are worth a search of all at once
FEW = 10_000  # texts of a vocabulary that may lie in memory as Python objects too: a look takes a twentieth


class Vocabulary:
    """A frozen list of distinct raw values; the value at place i has index i + 2.

    Values are found by binary search in sorted arrays, which hold no Python object for each value: a server with
    millions of ids keeps their bytes alone.

    Args:
        values: distinct Int64 or String values, without nulls.
    """

    def __init__(self, values: pl.Series) -> None:
        self.values = values
        self._is_empty = not len(values)  # asked for each value, and polars takes its time to tell

    @classmethod
    def fit(
        cls, raw: pl.Series, min_count: int = 1, max_size: int | None = None, times: pl.Series | None = None
    ) -> Vocabulary:
        """Values seen at least `min_count` times, the most frequent `max_size` of them, in sorted order.

        Args:
            raw: training values.
            min_count, max_size: limits.
            times: how often each value of `raw` was seen; default once.
        """
        return cls(_frequent(raw, min_count, times).head(max_size or len(raw)).sort().rename(raw.name))

    def extended(
        self,
        raw: pl.Series,
        min_count: int = 1,
        max_size: int | None = None,
        times: pl.Series | None = None,
        idle: pl.Series | None = None,
    ) -> Vocabulary:
        """With the values seen often enough in `raw` after the old ones, in sorted order; no index moves.

        `max_size` holds for old and new together: the most frequent new values fill the room that is left.

        Args:
            raw, min_count, max_size, times: as of `fit`.
            idle: values that give up their index, the first of them first, as long as there are new ones to take it.
        """
        frequent = _frequent(raw, min_count, times)
        if frequent.dtype == pl.Null or not len(frequent):
            return self
        if not len(self.values):
            return Vocabulary(frequent.head(max_size or len(frequent)).sort().rename(self.values.name))
        if frequent.dtype != self.values.dtype:
            raise self._of_another_type(raw)
        new = frequent.filter(~frequent.is_in(self.values.implode()))
        if max_size is not None:
            new = new.head(max(max_size - len(self.values), 0))
        new = new.sort().rename(self.values.name)
        places = np.empty(0, np.int32) if idle is None else self.encode(idle) - FIRST_VALUE
        places = places[places >= 0][: len(new)]
        old = self.values.clone().scatter(places, new.head(len(places))) if len(places) else self.values
        return Vocabulary(pl.concat([old, new.slice(len(places))]))

    @property
    def size(self) -> int:
        """Rows an embedding table needs: padding, unknown, and one a value."""
        return len(self.values) + FIRST_VALUE

    @cached_property
    def whole_numbers(self) -> bool:
        """Whether values are integers (else text)."""
        return self.values.dtype == pl.Int64

    @property
    def kind(self) -> str:
        """What its values are, for messages."""
        return "whole numbers" if self.whole_numbers else "text"

    def encode(self, raw: pl.Series) -> np.ndarray:
        """Indices of a column, int32; null and unknown values are 1. Raises DataError for another type.

        Where no value was learned, none is of another type.
        """
        keys = canonical(raw)
        if self._is_empty or keys.dtype == pl.Null:
            return np.full(len(raw), UNKNOWN, np.int32)
        if keys.dtype != self.values.dtype:
            raise self._of_another_type(raw)
        if not self.whole_numbers:
            return self._searched_texts(keys)
        result = self._indices_of(keys.fill_null(0).to_numpy())
        return np.where(keys.is_null().to_numpy(), np.int32(UNKNOWN), result) if keys.null_count() else result

    def index(self, value: Any) -> int:
        """Index of one value, as `encode` gives it; None is 1. A boolean is text, or 0 and 1 (a computed label)."""
        if isinstance(value, bool) and not self.whole_numbers:
            value = str(value).lower()
        if value is None or self._is_empty or not self.is_of_kind(value):
            return UNKNOWN
        return self._index_of_number(value) if self.whole_numbers else self._index_of_text(value)

    def indices(self, values: Sequence[Any]) -> np.ndarray:
        """Index of each of several values of the type learned from, int64 [N]; as `index`, but many are found at once.

        A search of its own for each of a request's thousand candidates would take ten times as long.
        """
        types = set(map(type, values))
        if self._is_empty or types <= {type(None)}:
            return np.full(len(values), UNKNOWN, np.int64)
        # What no column holds (numbers of more than 64 bits, half a surrogate pair) is looked for one by one.
        with suppress(OverflowError, UnicodeEncodeError, TypeError):
            if types == {int} and self.whole_numbers:
                return self.indices_of_numbers(np.array(values, np.int64))
            if types == {int, type(None)} and self.whole_numbers:
                number_N = np.array([0 if value is None else value for value in values], np.int64)
                is_none_N = np.array([value is None for value in values])
                return np.where(is_none_N, UNKNOWN, self._indices_of(number_N)).astype(np.int64)
            if types <= {str, type(None)} and not self.whole_numbers and len(self.values) <= FEW:
                found = self._index_of_few.get
                return np.array([found(value, UNKNOWN) for value in values], np.int64)
            if len(values) >= MANY and types <= {str, type(None)} and not self.whole_numbers:
                return self.encode(pl.Series(values, dtype=self.values.dtype)).astype(np.int64)
        return np.array([self.index(value) for value in values], np.int64)

    def indices_of_numbers(self, number_N: np.ndarray) -> np.ndarray:
        """Index of each of several whole numbers, int64 [N], of a vocabulary of such; as `index`."""
        if self._is_empty:
            return np.full(len(number_N), UNKNOWN, np.int64)
        return self._indices_of(number_N).astype(np.int64)

    @cached_property
    def _index_of_few(self) -> dict[str, int]:
        """The index of each text of a small vocabulary."""
        return {value: index for index, value in enumerate(self.values.to_list(), FIRST_VALUE)}

    def is_of_kind(self, value: Any) -> bool:
        """Whether `value` is of the type learned from (`encode` refuses others); None is, and all is if none was."""
        if value is None or isinstance(value, bool) or self._is_empty:
            return True
        return isinstance(value, str) != self.whole_numbers

    def value(self, index: int) -> Any:
        """The raw value of an index from 2."""
        return self.values[int(index) - FIRST_VALUE]

    def save(self, path: Path) -> None:
        """Write as an Arrow file of one column `value`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.values.to_frame("value").write_ipc(path, compression="uncompressed")

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read what `save` wrote. Raises DataError for a file that was damaged."""
        try:
            return cls(pl.read_ipc(path)["value"])
        except pl.exceptions.PolarsError as error:
            raise DataError(f"{path}: cannot be read: {error}. It was damaged: build or export again.") from None

    @cached_property
    def _table(self) -> tuple[int, np.ndarray] | None:
        """For whole numbers that lie close together: the smallest, and the index of each number from it on."""
        if not self.whole_numbers or not len(self.values):
            return None
        values = self.values.to_numpy()
        low, span = int(values.min()), int(values.max()) - int(values.min()) + 1
        if span > max(DENSE * len(values), 1 << 16):
            return None
        table = np.full(span + 1, UNKNOWN, np.int32)  # its last entry stands for all numbers outside
        table[values - low] = np.arange(FIRST_VALUE, self.size, dtype=np.int32)
        return low, table

    def _indices_of(self, number_R: np.ndarray) -> np.ndarray:
        """Indices of whole numbers, int32 [R]."""
        return self._searched(number_R) if self._table is None else self._looked_up(number_R, *self._table)

    @staticmethod
    def _looked_up(number_R: np.ndarray, low: int, table: np.ndarray) -> np.ndarray:
        # What lies below, or so far outside that subtracting wraps round, is a large number without a sign.
        return table.take(np.minimum((number_R - low).view(np.uint64), len(table) - 1))

    @cached_property
    def _ascending(self) -> tuple[pl.Series, np.ndarray]:
        """The values in ascending order, in one piece, and the index of each, int32."""
        if self.values.is_sorted():
            return self.values.rechunk(), np.arange(FIRST_VALUE, self.size, dtype=np.int32)
        order = self.values.arg_sort()
        return self.values.gather(order).rechunk(), order.to_numpy().astype(np.int32) + np.int32(FIRST_VALUE)

    @cached_property
    def _ascending_bytes(self) -> _Texts:
        return _Texts(self._ascending[0])

    def _searched(self, number_R: np.ndarray) -> np.ndarray:
        values, index = self._ascending
        # Of sorted numbers each search begins in memory that the one before has just read: six times faster.
        order = number_R.argsort()
        place_R = np.minimum(np.searchsorted(values.to_numpy(), number_R[order]), len(values) - 1)
        found = values.to_numpy()[place_R] == number_R[order]
        result = np.empty(len(number_R), np.int32)
        result[order] = np.where(found, index[place_R], UNKNOWN)
        return result

    def _searched_texts(self, keys: pl.Series) -> np.ndarray:
        values, index = self._ascending
        distinct = keys.drop_nulls().unique().sort()
        if not len(distinct):
            return np.full(len(keys), UNKNOWN, np.int32)
        place_D = np.minimum(values.search_sorted(distinct).to_numpy(), len(values) - 1)
        found = (values.gather(place_D) == distinct).to_numpy()
        index_D = pl.Series(np.where(found, index[place_D], UNKNOWN), dtype=pl.Int32)
        return keys.replace_strict(distinct, index_D, default=UNKNOWN, return_dtype=pl.Int32).to_numpy()

    def _index_of_number(self, value: float) -> int:
        if value % 1 or not -(2**63) <= value < 2**63:
            return UNKNOWN
        number = int(value)
        if self._table is not None:
            low, table = self._table
            return int(table[number - low]) if low <= number < low + len(table) - 1 else UNKNOWN
        values, index = self._ascending
        place = int(values.to_numpy().searchsorted(np.int64(number)))
        return int(index[place]) if place < len(values) and values[place] == number else UNKNOWN

    def _index_of_text(self, value: str) -> int:
        # JSON can write half a surrogate pair, whose bytes are no UTF-8 and equal those of no value.
        sought, texts = value.encode(errors="surrogatepass"), self._ascending_bytes
        place = bisect_left(texts, sought)
        return int(self._ascending[1][place]) if place < len(texts) and texts[place] == sought else UNKNOWN

    def _of_another_type(self, raw: pl.Series) -> DataError:
        return DataError(
            f"column {raw.name!r}: holds {raw.dtype} where {self.kind} was learned from the training window."
        )


class _Texts:
    """The UTF-8 bytes of a text column, by place; they sort as the texts do."""

    def __init__(self, texts: pl.Series) -> None:
        _, offsets, content = texts.to_arrow().cast(pa.large_string()).buffers()
        self._offsets = memoryview(offsets).cast("q")
        self._content = memoryview(content) if content is not None else memoryview(b"")
        self._length = len(texts)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, place: int) -> bytes:
        return bytes(self._content[self._offsets[place] : self._offsets[place + 1]])


def _frequent(raw: pl.Series, min_count: int, times: pl.Series | None) -> pl.Series:
    """Values seen at least `min_count` times, the most frequent first; equally frequent ones in sorted order."""
    seen = pl.DataFrame(
        {"value": canonical(raw), "times": pl.repeat(1, len(raw), eager=True) if times is None else times}
    )
    counts = seen.drop_nulls("value").group_by("value").agg(pl.col("times").cast(pl.Int64).sum())
    return counts.filter(pl.col("times") >= min_count).sort(["times", "value"], descending=[True, False])["value"]


def id_hashes(ids: Vocabulary) -> np.ndarray:
    """64 bits of each id of a catalogue, whatever row it has there, uint64 [size]; 0 for padding and unknown.

    Whole numbers are mixed; of text it is the first 8 bytes of its sha256.
    """
    if ids.whole_numbers:
        hashed = mixed(np.uint64(0), ids.values.to_numpy())
    else:
        texts = ids.values.cast(pl.String).to_list()
        hashed = np.array(
            [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") for text in texts], np.uint64
        )
    return np.concatenate([np.zeros(FIRST_VALUE, np.uint64), hashed])
