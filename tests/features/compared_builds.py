"""Two feature sets of the same days, compared row for row by what their values mean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from features.build.history_tail import tails_suffice
from features.contract.contract import LABEL_PREFIX
from features.encoding.base import ColumnEncoder
from features.encoding.category import CategoricalEncoder, TagsEncoder
from features.encoding.encoder import Encoder
from features.encoding.number import BucketsEncoder, NumericEncoder
from features.encoding.vocabulary import Vocabulary
from features.store.feature_set import SPLITS, FeatureSet
from features.store.schema import FIRST_VALUE

EXACT = ("time", "label", "weight", "request")
# A full vocabulary takes in no new value (`max_size`), so that what it holds depends on the way there.
FULL = "device_often"
LEARNED = ("load_decile",)  # edges are quantiles: compared with the raw number that another column has
Row = dict[str, Any]


@dataclass(frozen=True)
class Tags:
    """Known tags of one row, among those of the vocabulary: it keeps ones that have left the window."""

    names: frozenset[Any]
    vocabulary: frozenset[Any]


class Unknown:
    """What a value is that the vocabulary does not have."""

    def __repr__(self) -> str:
        return "unknown"


NOTHING = Unknown()


def assert_same(daily: FeatureSet, whole: FeatureSet, kept_inodes: set[int]) -> None:
    """Rows, tables, counters and windows agree; days whose files are among `kept_inodes` may know fewer values."""
    ours, theirs = Meaning(daily), Meaning(whole)
    left, right = ours.rows(kept_inodes), theirs.rows(set())
    carried = tails_suffice(daily.contract)
    assert [key(row) for row in left] == [key(row) for row in right]
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            if name != "kept":
                may_forget = one["kept"] or name == FULL or (carried and name.startswith("history."))
                agree(value, other[name], f"{name} of {key(one)}", may_forget)
    assert daily.manifest.windows == whole.manifest.windows
    assert daily.manifest.sampling == whole.manifest.sampling
    assert_same_tables(ours, theirs)
    assert_same_vectors(ours, theirs)


def key(row: Row) -> tuple[Any, ...]:
    """What a row is."""
    return row["split"], str(row["user"]), row["time"], str(row["item"]), row["label"]


def agree(one: Any, other: Any, where: str, may_forget: bool) -> None:
    """Lists entry by entry, broken numbers to float32's precision; unknown agrees with a value by design."""
    if isinstance(one, Tags):
        assert one.names & other.vocabulary == other.names & one.vocabulary, (where, one.names, other.names)
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), (where, one, other)
        for left, right in zip(one, other, strict=True):
            agree(left, right, where, may_forget)
    elif one is NOTHING:
        # Of a kept day: not known yet when it was encoded.
        assert other is NOTHING or may_forget, (where, one, other)
    elif other is NOTHING:
        # Learned from a day that has left the window since.
        assert one is not None, where
    elif isinstance(one, float) and isinstance(other, float):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5, err_msg=where)
    else:
        assert one == other, (where, one, other)


class Meaning:
    """A feature set by its raw values."""

    def __init__(self, built: FeatureSet) -> None:
        self.built = built
        self.encoder = Encoder.load(built.path)

    def rows(self, kept_inodes: set[int]) -> list[Row]:
        """By time and user; rows of one user and instant in the order of the log, which both sides share."""
        found: list[Row] = []
        for split in SPLITS:
            parts = [part for part in self.built.manifest.parts if part.split == split]
            for part, rows, events in zip(parts, self.built.rows(split), self.built.events(split), strict=True):
                kept = (self.built.path / part.rows).stat().st_ino in kept_inodes
                found += ({"split": split, "kept": kept} | row for row in self._part(rows, events))
        return sorted(found, key=lambda row: (row["time"], str(row["user"])))

    def _part(self, rows: dict[str, np.ndarray], events: dict[str, np.ndarray]) -> Iterator[Row]:
        encoder, built = self.encoder, self.built
        columns = {name: rows[name].tolist() for name in rows if name in EXACT or name.startswith(LABEL_PREFIX)}
        columns |= {"user": ids(encoder.users, rows["user"]), "item": ids(encoder.items, rows["item"])}
        for name, one in {**encoder.context, **encoder.candidate}.items():
            columns[name] = raw(one, rows[name])
        for which, table in (("item", built.items_as_of), ("user", built.users_as_of)):
            known = getattr(encoder, which)
            for name, values in table(rows[which], rows["time"]).items():
                columns[f"{which}.{name}"] = raw(known[name], values) if name in known else [0] * len(values)
        if "load" in columns and "load_decile" in rows:
            check_quantiles(encoder.context["load_decile"], columns["load"], rows["load_decile"])
        columns = {name: values for name, values in columns.items() if name not in LEARNED}
        past = {"history": ids(encoder.items, events["item"])}
        past |= {f"history.{name}": raw(one, events[name]) for name, one in encoder.event.items()}
        for place, (end, length) in enumerate(
            zip(rows["history_end"].tolist(), rows["history_len"].tolist(), strict=True)
        ):
            row = {name: values[place] for name, values in columns.items()}
            yield row | {name: values[end - length : end] for name, values in past.items()}

    def table(self, which: str) -> dict[Any, Row]:
        """Columns of the item or user table, and counters at the end of the log, by id."""
        catalogue: Vocabulary = getattr(self.encoder, f"{which}s")
        table, known = getattr(self.built, f"{which}s"), getattr(self.encoder, which)
        columns = {name: raw(known[name], table[name][FIRST_VALUE:]) for name in known}
        snapshot = getattr(self.encoder.snapshot, f"{which}s")
        columns |= {name: values[FIRST_VALUE:].tolist() for name, values in snapshot.items()}
        return {
            one: {name: values[place] for name, values in columns.items()}
            for place, one in enumerate(catalogue.values.to_list())
        }


def assert_same_tables(ours: Meaning, theirs: Meaning) -> None:
    """Every id of the whole build has the same columns and counters; ids that nobody names any more may stay."""
    for which in ("item", "user"):
        left, right = ours.table(which), theirs.table(which)
        assert set(right) <= set(left)
        for one, columns in right.items():
            agree([left[one][name] for name in columns], list(columns.values()), f"{which} {one!r}", may_forget=False)


def assert_same_vectors(ours: Meaning, theirs: Meaning) -> None:
    """Vectors of sets that learn nothing, by id."""
    contract = ours.built.contract
    for name in (one.name for one in ours.built.schema.vectors):
        spec = contract.embeddings.get(name)
        plain = spec is not None and spec.normalize in ("none", "l2") and spec.missing == "zero"
        if spec is None or not plain or (spec.reduce is not None and spec.reduce.method != "truncate"):
            continue
        catalogue = theirs.encoder.items.values
        rows = [one.encoder.items.encode(catalogue) for one in (ours, theirs)]
        left, right = (one.built.vectors(name)[row] for one, row in zip((ours, theirs), rows, strict=True))
        np.testing.assert_array_equal(left, right, err_msg=name)


def check_quantiles(encoder: ColumnEncoder, load: list[Any], index: np.ndarray) -> None:
    """Each index is what the feature set's own edges say of the number."""
    assert isinstance(encoder, BucketsEncoder)
    for value, one in zip(load, index.tolist(), strict=True):
        assert encoder.encode_one(value)[0] == one or np.min(np.abs(encoder.edges - value)) < 1e-6


def ids(vocabulary: Vocabulary, index: np.ndarray) -> list[Any]:
    """Raw values of indices."""
    return [vocabulary.value(one) if one >= FIRST_VALUE else NOTHING for one in index.tolist()]


def raw(encoder: ColumnEncoder, values: np.ndarray) -> list[Any]:
    """Values before encoding: names (lists of them for tags), numbers, indices that nothing was learned for."""
    if isinstance(encoder, TagsEncoder):
        names, every = encoder.vocabulary, frozenset(encoder.vocabulary.values.to_list())
        return [
            Tags(frozenset(names.value(one) for one in row if one >= FIRST_VALUE), every) for row in values.tolist()
        ]
    if isinstance(encoder, CategoricalEncoder):
        return ids(encoder.vocabulary, values)
    if isinstance(encoder, NumericEncoder):
        return [encoder.raw_value(one) for one in values]
    return values.tolist()
