"""Running counts and rates of items and users at every row of the log, before the rows are put into parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path

import numpy as np
import polars as pl

from features.chunk import LABEL, Chunk, Values
from features.contract.log import Counter
from features.draws import drawn, one_in
from features.encoding.base import Columns
from features.encoding.encoder import Encoder, fields
from features.encoding.number import NumericEncoder
from features.encoding.snapshot import CounterState, Snapshot
from features.fitting.split import Splitter
from features.point_in_time.counters import final, running, state
from features.point_in_time.encoded_log import EncodedLog
from features.store.shuffle import shuffle_by_key


@dataclass(frozen=True)
class Counted:
    """What the counters of a contract say of every row of the log, and of every key at its end.

    Args:
        counters: as the contract declares them, by name.
        raw: at every row of the log, in its order, float64 [rows] by counter (memory-mapped).
        encoders: which scale them, by counter.
        finals: at the end of the log, float32 by counter, one an item (user) row.
        states: what each needs to go on from there.
        newest: time of the log's newest row, µs.
        mean: the rate that keys without rows have; None without counters.
    """

    counters: Mapping[str, Counter] = field(default_factory=dict)
    raw: Mapping[str, np.ndarray] = field(default_factory=dict)
    encoders: Columns = field(default_factory=dict)
    finals: Mapping[str, np.ndarray] = field(default_factory=dict)
    states: Mapping[str, CounterState] = field(default_factory=dict)
    newest: int = 0
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
        """An encoder that has these columns too: of items as `candidate`, of users as `context`."""
        names = {of: [name for name, counter in self.counters.items() if counter.of == of] for of in ("item", "user")}
        candidate = {name: self.encoders[name] for name in names["item"]}
        context = {**encoder.context, **{name: self.encoders[name] for name in names["user"]}}
        items, users = ({name: self.finals[name] for name in names[of]} for of in ("item", "user"))
        snapshot = Snapshot(items, users, self.states, self.mean or 0.0, self.newest)
        return replace(
            encoder,
            candidate=candidate,
            context=context,
            snapshot=snapshot,
            schema=encoder.schema.model_copy(update={"context": fields(context), "candidate": fields(candidate)}),
        )


@dataclass(frozen=True)
class Scales:
    """What counters learned of an earlier version's training window.

    Args:
        mean: the rate that keys without rows have.
        encoders: of each counter, by name.
    """

    mean: float
    encoders: Columns


def count_log(
    stream: EncodedLog, splitter: Splitter, shards: int, scratch: Path, prior: Scales | None = None
) -> Counted:
    """Run every declared counter over the log, and fit its scale on training rows.

    A row sees what came strictly before it, also what came before the window of a windowed build. Earlier events of
    other tables and drawn negatives are not counted, though the latter have counters of their own. Memory holds one
    shard of items or users.

    Args:
        stream: the log.
        splitter: which rows train.
        shards: how many pieces the log is counted in.
        scratch: folder for files that are needed until the build ends.
        prior: of the version whose days are kept: used as they are, so that all days have one scale.
    """
    counters = stream.contract.counters
    if not counters:
        return Counted()
    scratch.mkdir(parents=True, exist_ok=True)
    rows = sum(chunk.rows for chunk in stream.narrow())
    mean = prior.mean if prior else label_mean(stream, splitter)
    schema = stream.encoder.schema
    sizes = {"item": schema.items, "user": schema.users}
    raw: dict[str, np.ndarray] = {}
    finals: dict[str, np.ndarray] = {}
    states: dict[str, CounterState] = {}
    newest = stream.newest_time()
    for of, size in sizes.items():
        wanted = {name: counter for name, counter in counters.items() if counter.of == of}
        if not wanted:
            continue
        for name in wanted:
            raw[name] = np.memmap(scratch / f"counter-{name}.f64", np.float64, "w+", shape=(rows,))
            finals[name] = np.zeros(size, np.float32)
        for number, shard in enumerate(shuffle_by_key(_keys(stream, of), "key", shards, scratch / f"counters-{of}")):
            key, time, label, counted = shard["key"], shard["time"], shard["label"], shard["is_logged"]
            mine = np.arange(number, size, shards)
            for name, counter in wanted.items():
                raw[name][shard["place"]] = running(key, time, label, counter, mean, counted, shard["instant"])
                logged = key[counted], time[counted], label[counted]
                finals[name][mine] = final(*logged, counter, mean, size, newest)[mine]
                of_shard = state(*logged, counter, size, newest)
                states[name] = _together(states[name], of_shard) if name in states else of_shard
    encoders = prior.encoders if prior else _fitted(stream, splitter, raw)
    return Counted(counters, raw, encoders, finals, states, newest, mean)


def _together(first: CounterState, second: CounterState) -> CounterState:
    """The states of shards, which have keys of their own and zeros for the others."""
    pairs = {one.name: (getattr(first, one.name), getattr(second, one.name)) for one in dataclass_fields(CounterState)}
    return CounterState(
        **{
            name: np.concatenate(pair) if name.startswith("open_") else pair[0] + pair[1]
            for name, pair in pairs.items()
        }
    )


def _keys(stream: EncodedLog, of: str) -> Iterator[dict[str, Values]]:
    """What counters of items (users) read of each row, and its place in the log."""
    first = 0
    for chunk in stream.narrow():
        yield {
            "key": chunk.item if of == "item" else chunk.user,
            "time": chunk.time,
            "label": chunk.label,
            "instant": chunk.instant,
            "is_logged": chunk.is_logged,
            "place": np.arange(first, first + chunk.rows),
        }
        first += chunk.rows


def label_mean(stream: EncodedLog, splitter: Splitter) -> float:
    """Mean label of the log's training window."""
    train = stream.log.frame.filter(splitter.is_train)
    return float(train.select(pl.col(LABEL).cast(pl.Float64).mean()).collect(engine="streaming").item())


def _fitted(stream: EncodedLog, splitter: Splitter, raw: dict[str, np.ndarray]) -> Columns:
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
