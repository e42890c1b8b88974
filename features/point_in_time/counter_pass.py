"""Counters at every row of the log, and of every key at its end, before the rows are put into parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl

from features.chunk import LABEL, LABELS, Chunk
from features.contract.log import Counter
from features.draws import drawn, mixed, one_in
from features.encoding.base import Columns
from features.encoding.encoder import Encoder, fields
from features.encoding.number import NumericEncoder
from features.encoding.snapshot import Snapshot
from features.errors import DataError
from features.fitting.split import Splitter
from features.point_in_time.counted_rows import CountedRows, Parts, amount_of
from features.point_in_time.counters import final, running, state
from features.point_in_time.encoded_log import EncodedLog
from features.point_in_time.ended import Ended
from features.store.key_rows import KeyRows, refuse_too_many
from features.store.shuffle import shuffle_by_key


@dataclass(frozen=True)
class Counted:
    """What the counters of a contract say of every row of the log, and of every key at its end.

    Args:
        raw: at every row of the log, in its order, float64 [rows] by counter (memory-mapped).
        encoders: which scale them, by counter.
        snapshot: of every key at the end of the log.
        mean: the rate that keys without rows have; None without counters.
    """

    raw: Mapping[str, np.ndarray] = field(default_factory=dict)
    encoders: Columns = field(default_factory=dict)
    snapshot: Snapshot = field(default_factory=Snapshot)
    mean: float | None = None

    def onto(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """Chunks of a full pass over that log with their counters."""
        first = 0
        for chunk in chunks:
            raw = {name: np.asarray(values[first : first + chunk.rows]) for name, values in self.raw.items()}
            encoded = {name: self.encoders[name].encode(pl.Series(name, values)) for name, values in raw.items()}
            yield replace(chunk, counters=encoded, raw_counters=raw)
            first += chunk.rows

    def added_to(self, encoder: Encoder) -> Encoder:
        """An encoder that has these columns too: as `candidate` those of the item, as `context` the others."""
        candidate = {name: self.encoders[name] for name in encoder.contract.candidate_counters}
        context = {**encoder.context, **{name: self.encoders[name] for name in encoder.contract.context_counters}}
        return replace(
            encoder,
            candidate=candidate,
            context=context,
            snapshot=self.snapshot,
            schema=encoder.schema.model_copy(update={"context": fields(context), "candidate": fields(candidate)}),
        )


@dataclass(frozen=True)
class Scales:
    """What counters learned of an earlier version's training window.

    Args:
        mean: the rate that keys without rows have.
        means: of further labels, by label.
        encoders: of each counter, by name.
    """

    mean: float
    means: Mapping[str, float]
    encoders: Columns


def count_log(
    stream: EncodedLog,
    item_table: Mapping[str, np.ndarray],
    splitter: Splitter,
    shards: int,
    scratch: Path,
    prior: Scales | None = None,
) -> Counted:
    """Run every declared counter over the log, and fit its scale on training rows.

    A row sees what came strictly before it, also what came before the window of a windowed build. Earlier events of
    other tables and drawn negatives are not counted, though the latter have counters of their own. Memory holds one
    shard of keys, and what is known of each key at the end.

    Args:
        stream: the log.
        item_table: encoded columns; row i is item row i.
        splitter: which rows train.
        shards: how many pieces the log is counted in.
        scratch: folder for files that are needed until the build ends.
        prior: of the version whose days are kept: used as they are, so that all days have one scale.

    Raises:
        ConfigError: so many keys could occur that a number of 64 bits does not tell them apart.
    """
    contract = stream.contract
    counters = contract.counters
    if not counters:
        return Counted()
    parts = Parts.of(stream, item_table)
    for name, counter in counters.items():
        refuse_too_many(f"counters.{name}.of", parts.sizes(counter.keys))
    rows = CountedRows.write(stream, scratch / "counted")
    mean = prior.mean if prior else label_mean(stream, splitter)
    means = prior.means if prior else _label_means(stream, splitter)
    snapshot = Snapshot(mean=mean, newest=stream.newest_time(), means=means)
    raw = {
        name: np.memmap(scratch / f"counter-{number}.f64", np.float64, "w+", shape=(rows.rows,))
        for number, name in enumerate(counters)
    }
    ended: dict[str, Ended] = {}
    for number, keys in enumerate(dict.fromkeys(counter.keys for counter in counters.values())):
        group = {name: counter for name, counter in counters.items() if counter.keys == keys}
        read = (_keyed(chunk, parts.key(keys, chunk), group, shards) for chunk in rows.chunks())
        found: dict[str, list[Ended]] = {name: [] for name in group}
        for shard in shuffle_by_key(read, "shard", shards, scratch / f"counters-{number}"):
            for name, of_shard in _count_shard(shard, group, snapshot, raw):
                found[name].append(of_shard)
        dense = parts.sizes(keys)[0] if keys in (("item",), ("user",)) else None
        ended |= {name: Ended.gathered(of, group[name], snapshot, dense) for name, of in found.items()}
    encoders = prior.encoders if prior else _fitted(stream, splitter, raw)
    return Counted(raw, encoders, _snapshot(snapshot, stream, ended, parts), mean)


def _keyed(
    rows: dict[str, np.ndarray], key: np.ndarray, group: Mapping[str, Counter], shards: int
) -> dict[str, np.ndarray]:
    """What counters of one key read of each row, and the shard that the row is counted in."""
    shard = (mixed(np.uint64(0), key) % np.uint64(shards)).astype(np.int64)
    shared = ("time", "instant", "is_logged", "place")
    amounts = {amount_of(name, counter) for name, counter in group.items()}
    return {"key": key, "shard": shard} | {name: np.asarray(rows[name]) for name in (*shared, *sorted(amounts))}


def _count_shard(
    shard: dict[str, np.ndarray], group: Mapping[str, Counter], snapshot: Snapshot, raw: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, Ended]]:
    """Write counters of one key at the rows of a shard into `raw`; what is known of its keys at the end of the log."""
    # What is in order already is sorted fast again, by each counter.
    order = np.lexsort((shard["time"], shard["key"]))
    rows = {name: values[order] for name, values in shard.items()}
    counted = rows["is_logged"]
    keys = np.unique(rows["key"][counted])
    place = np.searchsorted(keys, rows["key"][counted])
    for name, counter in group.items():
        amount, mean = rows[amount_of(name, counter)], snapshot.mean_of(counter)
        raw[name][rows["place"]] = running(rows["key"], rows["time"], amount, counter, mean, counted, rows["instant"])
        logged = place, rows["time"][counted], amount[counted], counter
        values = final(*logged, mean, len(keys), snapshot.newest)
        yield name, Ended(keys, values, state(*logged, len(keys), snapshot.newest))


def _snapshot(begun: Snapshot, stream: EncodedLog, ended: Mapping[str, Ended], parts: Parts) -> Snapshot:
    contract = stream.contract
    own = {name: of for name, of in ended.items() if contract.counters[name].of not in ("item", "user")}
    item_columns = {key: values.astype(np.int64) for key, values in parts.tables["item"].items()}
    if any("item" in contract.counters[name].keys for name in own):
        item_columns["item"] = np.arange(stream.encoder.schema.items)
    return replace(
        begun,
        items={name: ended[name].values for name in contract.candidate_counters},
        users={name: ended[name].values for name in contract.context_counters},
        states={name: ended[name].state for name in contract.counters},
        keys={name: KeyRows(parts.sizes(contract.counters[name].keys), of.keys) for name, of in own.items()},
        item_columns=item_columns,
    )


def label_mean(stream: EncodedLog, splitter: Splitter) -> float:
    """Mean label of the log's training window."""
    train = stream.log.frame.filter(splitter.is_train)
    return float(train.select(pl.col(LABEL).cast(pl.Float64).mean()).collect(engine="streaming").item())


def _label_means(stream: EncodedLog, splitter: Splitter) -> dict[str, float]:
    """Mean of each further label that a counter rates, in the log's training window."""
    names = sorted({counter.label for counter in stream.contract.counters.values() if counter.label is not None})
    if not names:
        return {}
    means = [pl.col(LABELS + name).cast(pl.Float64).mean().alias(name) for name in names]
    found = stream.log.frame.filter(splitter.is_train).select(means).collect(engine="streaming").row(0, named=True)
    for name, mean in found.items():
        if mean is None:
            raise DataError(
                f"{stream.log.path}: no training row has a value of interactions.labels.{name}, of which counters "
                "are to know the rate. Bring rows that have one, or remove these counters."
            )
    return found


def _fitted(stream: EncodedLog, splitter: Splitter, raw: Mapping[str, np.ndarray]) -> Columns:
    chosen = _training_places(stream, splitter)
    return {
        name: NumericEncoder.fit(pl.Series(name, raw[name][chosen]), counter.column)
        for name, counter in stream.contract.counters.items()
    }


def _training_places(stream: EncodedLog, splitter: Splitter) -> np.ndarray:
    found, first = [], 0
    for chunk in stream.narrow():
        trains = (splitter.assign(chunk, stream.encoder.users) == 0) & chunk.is_row
        found.append(first + np.flatnonzero(trains))
        first += len(trains)
    places = np.concatenate(found)
    return places[drawn(0, len(places), one_in(len(places)))]
