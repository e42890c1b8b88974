"""`profile.json`: what the feature set holds, in numbers small enough to read, and enough of them to see drift."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from features.calendar import DAY, day_of
from features.encoding.encoder import Encoder
from features.monitor.profile.bins import (
    PERIODS,
    SKIPPED,
    Bins,
    Tally,
    Values,
    edge_bins,
    grid_bin,
    grid_of,
    most_frequent,
    tally,
    value_bins,
)
from features.monitor.profile.counts import LENGTHS, Rows, SplitCounts, count_rows, is_missing
from features.monitor.profile.decode import Codes, Intervals, Reader, Scale, reader_of
from features.monitor.profile.file import (
    FORMAT,
    PROFILE,
    ColumnProfile,
    Day,
    Numbers,
    Profile,
    SplitProfile,
    VectorCoverage,
    rounded,
    save_profile,
)
from features.store.feature_set import PartEntry, SplitName, read_arrow
from features.store.schema import FIRST_VALUE, Field
from features.store.versions import ITEM_VERSIONS, USER_VERSIONS, Versions

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
SHOWN = 10  # top values
LENGTH_NAMES = tuple(
    f"{first}+" if last is None else str(first) if last == first else f"{first}-{last}"
    for first, last in zip(LENGTHS, (*(edge - 1 for edge in LENGTHS[1:]), None), strict=True)
)

Samples = dict[SplitName, Rows]
Binned = dict[SplitName, np.ndarray]


def write_profile(folder: Path, parts: Sequence[PartEntry], encoder: Encoder) -> Profile:
    """Write `profile.json` of a feature set whose tables, rows, events and vectors are written.

    Parts are read one by one; memory holds one part and a sample of at most half a million rows.

    Args:
        folder: of the feature set.
        parts: its files.
        encoder: with the final schema; gives indices their names and numbers their scale back.
    """
    schema = encoder.schema
    tables = {"item": read_arrow(folder / "items.arrow"), "user": read_arrow(folder / "users.arrow")}
    files = {"item": folder / ITEM_VERSIONS, "user": folder / USER_VERSIONS}
    versions = {name: Versions(tables[name], read_arrow(path)) for name, path in files.items() if path.is_file()}
    counts, one_in = count_rows(folder, parts, schema, versions)
    present = {
        encoded.name: np.load(folder / "embeddings" / f"{encoded.name}.present.npy") for encoded in schema.vectors
    }
    samples = {name: split.sample() for name, split in counts.items()}
    tallier = _Tallier(samples, sorted({day for split in counts.values() for day in split.days}))
    columns: dict[SplitName, dict[str, ColumnProfile]] = {name: {} for name in counts}
    for column in _columns(encoder, tables, versions):
        values = {name: column.of(sample) for name, sample in samples.items()}
        tallier.add(column.name, *_binned(column, values, samples))
        for name, split in counts.items():
            columns[name][column.name] = _column_profile(column, values[name], split)
    for mark in _marks(samples, present):
        tallier.add(*mark)
    profile = Profile(
        format=FORMAT,
        items=schema.items - FIRST_VALUE,
        users=schema.users - FIRST_VALUE,
        vector_coverage={name: rounded(float(there[FIRST_VALUE:].mean())) for name, there in present.items()},
        sampled_one_in=one_in,
        splits={name: _split(split, columns[name], present) for name, split in counts.items()},
        periods=tuple(map(_iso, tallier.periods)),
        bins=tallier.bins,
        tallies=tallier.tallies,
    )
    save_profile(folder / PROFILE, profile)
    return profile


@dataclass(frozen=True)
class _Column:
    """A column of the rows (`table` is None), or of the table that they point into.

    `at`: the column of the sample that points into the table.
    `has_own_bins`: its values have bins of their own. Not those of the user id, by which noise is measured, nor
    codes that are learned anew with each feature set.
    """

    section: str
    field: Field
    reader: Reader | None
    table: np.ndarray | None
    has_own_bins: bool
    at: str

    @property
    def name(self) -> str:
        return f"{self.section}.{self.field.name}"

    def of(self, sample: Rows) -> np.ndarray:
        """Its encoded values in the sampled rows; event columns: in those with a history."""
        return sample[self.name] if self.table is None else self.table[sample[self.at]]

    def missing(self, counts: SplitCounts) -> int:
        """How many rows of a split miss it."""
        if self.table is None:
            return counts.missing[self.name]
        by_id = counts.item_rows if self.section == "item" else counts.user_rows
        rows = by_id if self.at == self.section else counts.version_rows[self.section]
        return int(rows[is_missing(self.field, self.table)].sum())

    def rows(self, counts: SplitCounts) -> int:
        """How many rows of a split could have it."""
        return counts.rows - int(counts.lengths[0]) if self.section == "event" else counts.rows


def _columns(encoder: Encoder, tables: dict[str, Rows], versions: Mapping[str, Versions]) -> Iterator[_Column]:
    sections = {
        "context": encoder.context,
        "candidate": {**encoder.candidate, **encoder.relative},
        "event": encoder.event,
        "item": encoder.item,
        "user": encoder.user,
    }
    user_id = encoder.schema.user[0]
    for section, learned in sections.items():
        for field in getattr(encoder.schema, section):
            reader = reader_of(learned.get(field.name))
            table, at = tables[section][field.name] if section in tables else None, section
            if section in versions and field.name in versions[section].stacked:
                table, at = versions[section].stacked[field.name], f"{section}_version"
            has_own_bins = reader is not None and not (section == "user" and field is user_id)
            yield _Column(section, field, reader, table, has_own_bins, at)


class _Tallier:
    """Counts the bins of each column in every split's sample."""

    def __init__(self, samples: Samples, days: Sequence[int]) -> None:
        self.bins: dict[str, Bins] = {}
        self.tallies: dict[SplitName, dict[str, Tally]] = {name: {} for name in samples}
        self._samples = samples
        length = -(-len(days) // PERIODS)
        self.periods = days[::length]
        self._period = {
            name: np.searchsorted(self.periods, sample["day"], side="right") - 1 for name, sample in samples.items()
        }

    def add(self, column: str, bins: Bins, bin_R: Mapping[SplitName, np.ndarray]) -> None:
        """Tally one column, given the bin of each sampled row, int [R] or [R, L]."""
        self.bins[column] = bins
        for name, values in bin_R.items():
            user = self._samples[name]["user"]
            self.tallies[name][column] = tally(values, self._period[name], user, len(self.periods), bins.size)


def _binned(column: _Column, values: dict[SplitName, np.ndarray], samples: Samples) -> tuple[Bins, Binned]:
    """Bins of a column, and the bin of each sampled row."""
    bins: Bins
    if isinstance(column.reader, Scale):
        scale = column.reader
        raw = {name: scale.raw(encoded) for name, encoded in values.items()}
        bins = grid = grid_of(np.concatenate(list(raw.values())))
        binned = {name: grid_bin(grid, encoded) for name, encoded in raw.items()}
    else:
        bins, binned = _code_bins(column, values)
    if column.section != "event":
        return bins, binned
    for name, sample in samples.items():
        among = np.full(len(sample["user"]), SKIPPED, np.int16)
        among[sample["has_history"]] = binned[name]
        binned[name] = among
    return bins, binned


def _code_bins(column: _Column, values: dict[SplitName, np.ndarray]) -> tuple[Bins, Binned]:
    """Bins of a column of indices, and the bin of each sampled value, in memory that its size does not matter to."""
    if isinstance(column.reader, Intervals):
        edges, bin_V = edge_bins(column.reader.edges)
        return edges, {name: bin_V[encoded] for name, encoded in values.items()}
    if not column.has_own_bins or not isinstance(column.reader, Codes):
        bin_of = np.array([SKIPPED, 1, 0], np.int16)  # padding, unknown, any value
        return Values(names=("known",)), {
            name: bin_of[np.minimum(encoded, FIRST_VALUE)] for name, encoded in values.items()
        }
    index_D, counts_D = np.unique(
        np.concatenate([encoded.reshape(-1) for encoded in values.values()]), return_counts=True
    )
    bins, bin_D = value_bins(column.reader.names, index_D, counts_D)
    return bins, {name: bin_D[np.searchsorted(index_D, encoded)] for name, encoded in values.items()}


def _marks(samples: Samples, present: dict[str, np.ndarray]) -> Iterator[tuple[str, Bins, Binned]]:
    """History lengths, labels and presence of vectors: what has no encoder."""
    yield (
        "history_length",
        Values(names=LENGTH_NAMES),
        {name: sample["history_length"] for name, sample in samples.items()},
    )
    some = next(iter(samples.values()))
    for label in (name for name in some if name == "label" or name.startswith("label.")):
        bins = Values(names=("0", "1"))
        yield label, bins, {name: _label_bin(sample[label]) for name, sample in samples.items()}
    for vectors, there in present.items():
        yield (
            f"vectors.{vectors}",
            Values(names=("present",)),
            {name: np.where(there[sample["item"]], 0, 1) for name, sample in samples.items()},
        )


def _label_bin(label_R: np.ndarray) -> np.ndarray:
    """0, 1, or nowhere where a row has no label."""
    return np.where(np.isnan(label_R), SKIPPED, np.nan_to_num(label_R) > 0).astype(np.int16)


def _column_profile(column: _Column, values: np.ndarray, counts: SplitCounts) -> ColumnProfile:
    missing, rows = column.missing(counts), column.rows(counts)
    common = {"missing": missing, "missing_share": rounded(missing / rows) if rows else 0.0}
    if isinstance(column.reader, Scale):
        raw = column.reader.raw(values)
        raw = raw[np.isfinite(raw)]
        return ColumnProfile(**common, numbers=_numbers(raw) if len(raw) else None)
    vocabulary = column.field.size - FIRST_VALUE
    index_D, counts_D = np.unique(values, return_counts=True)
    place_N, counts_N = index_D[index_D >= FIRST_VALUE] - FIRST_VALUE, counts_D[index_D >= FIRST_VALUE]
    if column.reader is None or not len(place_N):
        return ColumnProfile(**common, vocabulary=vocabulary)
    names = column.reader.names
    top = {
        names[int(place_N[n])]: rounded(counts_N[n] / counts_N.sum(), 4)
        for n in most_frequent(names, place_N, counts_N, SHOWN)
    }
    return ColumnProfile(**common, vocabulary=vocabulary, top=top)


def _numbers(raw_R: np.ndarray) -> Numbers:
    quantiles = np.quantile(raw_R, QUANTILES).tolist()
    # Values went through float32: more digits would be its noise.
    pairs = zip(QUANTILES, quantiles, strict=True)
    # Divided before they are added: the sum of the largest numbers is infinite.
    return Numbers(
        mean=rounded(float((raw_R / len(raw_R)).sum()), 5),
        quantiles={f"{share:g}": rounded(at, 5) for share, at in pairs},
    )


def _split(counts: SplitCounts, columns: dict[str, ColumnProfile], present: dict[str, np.ndarray]) -> SplitProfile:
    days = {day: counts.days[day].tolist() for day in sorted(counts.days)}
    labelled, positives = (sum(day[place] for day in days.values()) for place in (1, 2))
    clicks = counts.item_clicks.sum()
    return SplitProfile(
        rows=counts.rows,
        label_rate=rounded(positives / labelled) if labelled else None,
        history_length=dict(zip(LENGTH_NAMES, counts.lengths.tolist(), strict=True)),
        vectors={
            name: VectorCoverage(
                rows=rounded(float(counts.item_rows[there].sum() / counts.rows)),
                clicks=rounded(float(counts.item_clicks[there].sum() / clicks)) if clicks else None,
            )
            for name, there in present.items()
        },
        columns=columns,
        days={
            _iso(day): Day(rows=rows, label_rate=rounded(positive / known, 4) if known else None)
            for day, (rows, known, positive) in days.items()
        },
    )


def _iso(day: int) -> str:
    return day_of(int(day) * DAY).isoformat()
