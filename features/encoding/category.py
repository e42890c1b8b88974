"""Encoders of values that are names: by vocabulary, by hash, and lists of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import polars as pl

from features.contract.columns import Categorical, Hashed, Tags
from features.draws import mixed
from features.encoding.base import ColumnEncoder
from features.encoding.vocabulary import Vocabulary
from features.errors import ConfigError, DataError
from features.sources.keys import canonical
from features.store.schema import FIRST_VALUE, PADDING, UNKNOWN, Field

MOST_EXAMPLES = 10_000  # values of a hashed column that are kept


class CategoricalEncoder(ColumnEncoder):
    """A value to its index in a vocabulary; int32 [rows]."""

    kind = "categorical"

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    @classmethod
    def fit(cls, raw: pl.Series, spec: Categorical, times: pl.Series | None = None) -> Self:
        """Learn the vocabulary from training values."""
        return cls(Vocabulary.fit(raw, spec.min_count, spec.max_size, times))

    def extended(self, raw: pl.Series, spec: Categorical, times: pl.Series | None = None) -> Self:
        """With the values that have become frequent enough, after the old ones."""
        return type(self)(self.vocabulary.extended(raw, spec.min_count, spec.max_size, times))

    def field(self, name: str) -> Field:
        """How a model sees the column."""
        return Field(name=name, kind="categorical", size=self.vocabulary.size)

    def encode(self, raw: pl.Series) -> np.ndarray:
        """A column, int32 [rows]."""
        return self.vocabulary.encode(raw)

    def encode_one(self, value: Any) -> np.ndarray:
        """One value, int64 [1]."""
        return np.array([self.vocabulary.index(value)], np.int64)

    def encode_many(self, values: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Several values, int64 [N]."""
        if isinstance(values, np.ndarray) and values.dtype == np.int64 and self.vocabulary.whole_numbers:
            return self.vocabulary.indices_of_numbers(values)
        return self.vocabulary.indices(list(values))

    def raw_value(self, encoded: Any) -> Any:
        """The value of an index."""
        return self.vocabulary.value(encoded) if encoded >= FIRST_VALUE else None

    def special_row(self, index: int) -> np.ndarray:
        """The entry of a padding (0) or unknown (1) table row."""
        return np.array([index], np.int32)

    def check(self, where: str, value: Any) -> None:
        """Refuse text where whole numbers were learned, and the other way round."""
        check_kind(where, value, self.vocabulary, "values of this column")

    def check_many(self, where: str, values: Sequence[Any], first: int = 0) -> None:
        """`check` of each value, by the types that they have."""
        check_kinds(where, values, self.vocabulary, "values of this column", first)

    def to_json(self, keep: Callable[[Vocabulary], str]) -> dict[str, Any]:
        """The vocabulary."""
        return {"vocabulary": keep(self.vocabulary)}

    @classmethod
    def from_json(cls, learned: dict[str, Any], find: Callable[[str], Vocabulary]) -> Self:
        """Read what `to_json` wrote."""
        return cls(find(learned["vocabulary"]))


class HashedEncoder(ColumnEncoder):
    """A value to one of `buckets` indices by a hash that never changes; int32 [rows].

    index = 2 + (the first 8 bytes of sha256 of the value's UTF-8 text, as a big-endian whole number) modulo `buckets`.
    The text of a whole number is its decimal digits, that of a boolean `true` or `false`. Missing is 1. As 2^64 is so
    much more than `buckets`, the first of them get no measurable share more than the last.

    A hash cannot be undone, so some values that were encoded are kept: the requests that prove a bundle are written
    with them.

    Args:
        buckets: how many.
        examples: values to keep, as `examples` gives them.
    """

    kind = "hashed"

    def __init__(self, buckets: int, examples: Sequence[str] = ()) -> None:
        self.buckets = buckets
        self._examples: dict[int, str] = {}
        self._bound = np.uint64(2**64 - 1)  # no index whose hash is greater keeps an example
        self._note(examples)

    @classmethod
    def fit(cls, raw: pl.Series, spec: Hashed, times: pl.Series | None = None) -> Self:
        """Nothing is learned."""
        return cls(spec.buckets)

    def field(self, name: str) -> Field:
        """How a model sees the column."""
        return Field(name=name, kind="categorical", size=self.buckets + FIRST_VALUE)

    def encode(self, raw: pl.Series) -> np.ndarray:
        """A column, int32 [rows]."""
        keys = canonical(raw)
        distinct = keys.unique().drop_nulls()
        if not len(distinct):
            return np.full(len(raw), UNKNOWN, np.int32)
        index = pl.Series(self._note([self._text(value) for value in distinct.to_list()]), dtype=pl.Int32)
        return keys.replace_strict(distinct, index, default=UNKNOWN, return_dtype=pl.Int32).to_numpy()

    def encode_one(self, value: Any) -> np.ndarray:
        """One value, int64 [1]."""
        return np.array([UNKNOWN if value is None else self._index(self._text(value))], np.int64)

    def raw_value(self, encoded: Any) -> Any:
        """A value of the index as text, among the examples; None for an index that none of them has."""
        return self._examples.get(int(encoded))

    @property
    def examples(self) -> tuple[str, ...]:
        """Values that `encode` met, one an index, of `MOST_EXAMPLES` indices at most.

        Which ones does not depend on the order in which they were met.
        """
        kept = sorted(self._examples, key=_chance)[:MOST_EXAMPLES]
        return tuple(self._examples[index] for index in sorted(kept))

    def with_examples(self, index_R: np.ndarray) -> np.ndarray:
        """The indices, where one of a value without an example gives way to the next one that has: unknown if none."""
        kept = np.array(sorted(self._examples) or [UNKNOWN], index_R.dtype)
        place_R = np.minimum(np.searchsorted(kept, index_R), len(kept) - 1)
        return np.where(index_R < FIRST_VALUE, index_R, kept[place_R])

    def special_row(self, index: int) -> np.ndarray:
        """The entry of a padding (0) or unknown (1) table row."""
        return np.array([index], np.int32)

    def check(self, where: str, value: Any) -> None:
        """Refuse numbers that a build refuses: fractions, what 64 bits do not hold, and floats that are not exact."""
        if not isinstance(value, int | float):
            return
        bits = 53 if isinstance(value, float) else 63
        least = 1 - 2**53 if isinstance(value, float) else -(2**63)
        if not (least <= value < 2**bits and value == int(value)):
            raise ConfigError(
                f"{where}: {value!r} cannot be hashed: values are text or whole numbers below 2^{bits}. Send it as "
                "text."
            )

    def to_json(self, keep: Callable[[Vocabulary], str]) -> dict[str, Any]:
        """How many buckets, and the examples."""
        return {"buckets": self.buckets, "examples": keep(Vocabulary(pl.Series(self.examples, dtype=pl.String)))}

    @classmethod
    def from_json(cls, learned: dict[str, Any], find: Callable[[str], Vocabulary]) -> Self:
        """Read what `to_json` wrote."""
        # A bundle of an earlier version has no examples.
        stored = learned.get("examples")
        return cls(learned["buckets"], find(stored).values.to_list() if stored else ())

    def _note(self, texts: Sequence[str]) -> list[int]:
        """The index of each text; those that are to be kept become examples."""
        indices = [self._index(text) for text in texts]
        chance = mixed(np.uint64(0), np.array(indices, np.int64))
        for place in np.flatnonzero(chance <= self._bound).tolist():
            index, text = indices[place], texts[place]
            self._examples[index] = min(text, self._examples.get(index, text))
        if len(self._examples) > 2 * MOST_EXAMPLES:
            kept = sorted(self._examples, key=_chance)[:MOST_EXAMPLES]
            self._examples = {index: self._examples[index] for index in kept}
            self._bound = np.uint64(_chance(kept[-1]))
        return indices

    @staticmethod
    def _text(value: Any) -> str:
        if isinstance(value, float):
            value = int(value)
        return str(value).lower() if isinstance(value, bool) else str(value)

    def _index(self, text: str) -> int:
        # JSON can write half a surrogate pair, which no column of a log holds and UTF-8 has no bytes for.
        digest = hashlib.sha256(text.encode(errors="replace")).digest()
        return FIRST_VALUE + int.from_bytes(digest[:8], "big") % self.buckets


def _chance(index: int) -> int:
    return int(mixed(np.uint64(0), np.uint64(index)))


class TagsEncoder(ColumnEncoder):
    """A list of values to the indices of the first `max_len` known ones; int32 [rows, max_len].

    A list with no known tag is [1, 0, …]: unknown, which is not the same as padding. With a `separator` the column
    is text such as `Action|Drama`.
    """

    kind = "tags"

    def __init__(self, vocabulary: Vocabulary, max_len: int, separator: str | None = None) -> None:
        self.vocabulary = vocabulary
        self.max_len = max_len
        self.separator = separator

    @classmethod
    def fit(cls, raw: pl.Series, spec: Tags, times: pl.Series | None = None) -> Self:
        """Learn the vocabulary from training lists."""
        tags = _lists(raw, spec.separator).explode().drop_nulls().rename(raw.name)
        return cls(Vocabulary.fit(tags, spec.min_count, spec.max_size), spec.max_len, spec.separator)

    def extended(self, raw: pl.Series, spec: Tags, times: pl.Series | None = None) -> Self:
        """With the tags that have become frequent enough, after the old ones."""
        tags = _lists(raw, spec.separator).explode().drop_nulls().rename(raw.name)
        return type(self)(self.vocabulary.extended(tags, spec.min_count, spec.max_size), self.max_len, self.separator)

    def field(self, name: str) -> Field:
        """How a model sees the column."""
        return Field(name=name, kind="tags", size=self.vocabulary.size, max_len=self.max_len)

    def encode(self, raw: pl.Series) -> np.ndarray:
        """A column, int32 [rows, max_len]."""
        result = np.zeros((len(raw), self.max_len), np.int32)
        lists = _lists(raw, self.separator)
        long = pl.DataFrame({"row": np.arange(len(raw), dtype=np.int64), "tag": lists}).explode("tag")
        rows, index = long["row"].to_numpy(), self.vocabulary.encode(long["tag"].rename(raw.name))
        rows, index = rows[index != UNKNOWN], index[index != UNKNOWN]
        first = np.searchsorted(rows, rows, side="left")
        place = np.arange(len(rows)) - first
        kept = place < self.max_len
        result[rows[kept], place[kept]] = index[kept]
        result[result[:, 0] == PADDING, 0] = UNKNOWN
        return result

    def encode_one(self, value: Any) -> np.ndarray:
        """One list, int64 [1, max_len]."""
        known = [i for i in map(self.vocabulary.index, value or []) if i != UNKNOWN][: self.max_len]
        result = np.zeros((1, self.max_len), np.int64)
        result[0, : len(known)] = known
        if not known:
            result[0, 0] = UNKNOWN
        return result

    def encode_many(self, values: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Several lists, int64 [N, max_len]."""
        return np.concatenate([np.empty((0, self.max_len), np.int64), *map(self.encode_one, values)])

    def raw_value(self, encoded: Any) -> Any:
        """The tags of a row of indices."""
        return [self.vocabulary.value(index) for index in encoded if index >= FIRST_VALUE] or None

    def special_row(self, index: int) -> np.ndarray:
        """The entry of a padding (0) or unknown (1) table row."""
        return np.array([[index] + [PADDING] * (self.max_len - 1)], np.int32)

    def check(self, where: str, value: Any) -> None:
        """Refuse text where whole numbers were learned, and the other way round."""
        for tag in value or ():
            check_kind(where, tag, self.vocabulary, "values of this column")

    def to_json(self, keep: Callable[[Vocabulary], str]) -> dict[str, Any]:
        """The vocabulary and the length."""
        return {"vocabulary": keep(self.vocabulary), "max_len": self.max_len, "separator": self.separator}

    @classmethod
    def from_json(cls, learned: dict[str, Any], find: Callable[[str], Vocabulary]) -> Self:
        """Read what `to_json` wrote."""
        return cls(find(learned["vocabulary"]), learned["max_len"], learned["separator"])


def check_kinds(where: str, values: Sequence[Any], vocabulary: Vocabulary, what: str, first: int = 0) -> None:
    """`check_kind` of each value; `where` may hold `{}` for its number. Values are looked at only if one is wrong."""
    types = set(map(type, values))
    if types <= {int, float, bool, type(None)} and vocabulary.whole_numbers:
        return
    if types <= {str, bool, type(None)} and not vocabulary.whole_numbers:
        return
    for i, value in enumerate(values, first):
        check_kind(where.replace("{}", str(i), 1), value, vocabulary, what)


def check_kind(where: str, value: Any, vocabulary: Vocabulary, what: str) -> None:
    """Raise ConfigError for a value of a type that the vocabulary does not hold."""
    if not vocabulary.is_of_kind(value):
        raise ConfigError(
            f"{where}: {value!r} is of the wrong type: {what} are {vocabulary.kind}, e.g. {vocabulary.values[0]!r}."
        )


def _lists(raw: pl.Series, separator: str | None) -> pl.Series:
    dtype = raw.dtype
    if separator is not None and dtype in (pl.String, pl.Null):
        return raw.cast(pl.String).str.split(separator).list.eval(pl.element().filter(pl.element() != ""))
    if isinstance(dtype, pl.List):
        return raw
    if isinstance(dtype, pl.Array):
        return raw.cast(pl.List(dtype.inner))
    if dtype == pl.Null:
        return raw.cast(pl.List(pl.Null))
    raise DataError(
        f"column {raw.name!r}: declared `tags`, which are lists, but holds {dtype}. Declare `categorical`, or give the "
        "`separator` of a text column."
    )
