"""Running counts and rates of items and users at every row of the log, before the rows are put into parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from features.chunk import COUNTER, INSTANT, LABEL, LOGGED, ROW, Arrays
from features.draws import drawn
from features.encoding.base import Columns
from features.encoding.encoder import Snapshot, fields
from features.encoding.number import NumericEncoder
from features.fitting.split import Splitter
from features.point_in_time.counters import final, running
from features.point_in_time.encoded_log import Stream
from features.store.shuffle import by_bucket

PLACE = "_place"  # of a row in the stream
MOST_FITTED = 2_000_000  # training rows that a counter's scale is fitted on, drawn evenly over the log
KEYS = ("user", "item", "time", "label", INSTANT, LOGGED)


@dataclass(frozen=True)
class Counted:
    """Raw counters of every row of the stream.

    Args:
        stream: whose rows they are.
        raw: by name, float64 [rows] in the stream's order (memory-mapped).
        mean: the rate that keys without rows have; None without counters.
    """

    stream: Stream
    raw: dict[str, np.ndarray] = field(default_factory=dict)
    mean: float | None = None

    def onto(self, chunks: Iterator[Arrays]) -> Iterator[Arrays]:
        """Add to each chunk of a full pass its counters: encoded as row columns, and raw under `COUNTER`."""
        first = 0
        encoder = self.stream.encoder
        for chunk in chunks:
            rows = slice(first, first + len(chunk["user"]))
            first = rows.stop
            for name, values in self.raw.items():
                raw_R = np.asarray(values[rows])
                columns = encoder.candidate if name in encoder.candidate else encoder.context
                chunk[name] = columns[name].encode(pl.Series(name, raw_R))
                chunk[COUNTER + name] = raw_R
            yield chunk


@dataclass(frozen=True)
class Scales:
    """What counters learned of an earlier version's training window.

    Args:
        mean: the rate that keys without rows have.
        encoders: of each counter, by name.
    """

    mean: float
    encoders: Columns


def count(stream: Stream, splitter: Splitter, buckets: int, scratch: Path, prior: Scales | None = None) -> Counted:
    """Run every declared counter over the log, fit its scale on training rows, and give both to the encoder.

    A row sees what came strictly before it, also what came before the window of a windowed build. Earlier events of
    other tables and drawn negatives are not counted, though the latter have counters of their own. Memory holds one
    bucket of items or users.

    Args:
        stream: whose encoder gets the columns: item counters as `candidate`, user counters as `context`.
        splitter: which rows train.
        buckets: how many pieces the log is counted in.
        scratch: folder for files that are needed until the build ends.
        prior: of the version whose days are kept: used as they are, so that all days have one scale.
    """
    counters = stream.contract.counters
    if not counters:
        return Counted(stream)
    scratch.mkdir(parents=True, exist_ok=True)
    places = sum(len(chunk["user"]) for chunk in stream.narrow())
    mean = prior.mean if prior else label_mean(stream, splitter)
    schema = stream.encoder.schema
    sizes = {"item": schema.items, "user": schema.users}
    raw: dict[str, np.ndarray] = {}
    finals: dict[str, np.ndarray] = {}
    newest = stream.newest_time()
    for of, size in sizes.items():
        wanted = {name: counter for name, counter in counters.items() if counter.of == of}
        if not wanted:
            continue
        for name in wanted:
            raw[name] = np.memmap(scratch / f"counter-{name}.f64", np.float64, "w+", shape=(places,))
            finals[name] = np.zeros(size, np.float32)
        for number, bucket in enumerate(by_bucket(_keys(stream), of, buckets, scratch / f"counters-{of}")):
            key, time, label = (np.asarray(bucket[column]) for column in (of, "time", "label"))
            instant = np.asarray(bucket[INSTANT])
            counted = np.asarray(bucket[LOGGED])
            mine = np.arange(number, size, buckets)
            for name, counter in wanted.items():
                raw[name][bucket[PLACE]] = running(key, time, label, counter, mean, counted, instant)
                state = final(key[counted], time[counted], label[counted], counter, mean, size, newest)
                finals[name][mine] = state[mine]
    _give_to_encoder(stream, prior.encoders if prior else _fitted(stream, splitter, raw), finals)
    return Counted(stream, raw, mean)


def _keys(stream: Stream) -> Iterator[Arrays]:
    first = 0
    for chunk in stream.narrow():
        rows = len(chunk["user"])
        yield {name: chunk[name] for name in KEYS} | {PLACE: np.arange(first, first + rows)}
        first += rows


def label_mean(stream: Stream, splitter: Splitter) -> float:
    """Mean label of the log's training window."""
    train = stream.log.frame.filter(splitter.is_train)
    return float(train.select(pl.col(LABEL).cast(pl.Float64).mean()).collect(engine="streaming").item())


def _fitted(stream: Stream, splitter: Splitter, raw: dict[str, np.ndarray]) -> Columns:
    chosen = _training_places(stream, splitter)
    return {
        name: NumericEncoder.fit(pl.Series(name, raw[name][chosen]), counter.column)
        for name, counter in stream.contract.counters.items()
    }


def _give_to_encoder(stream: Stream, fitted: Columns, finals: dict[str, np.ndarray]) -> None:
    encoder, counters = stream.encoder, stream.contract.counters
    for name, counter in counters.items():
        (encoder.candidate if counter.of == "item" else encoder.context)[name] = fitted[name]
    encoder.snapshot = Snapshot(
        items={name: values for name, values in finals.items() if counters[name].of == "item"},
        users={name: values for name, values in finals.items() if counters[name].of == "user"},
    )
    encoder.schema = encoder.schema.model_copy(
        update={"context": fields(encoder.context), "candidate": fields(encoder.candidate)}
    )


def _training_places(stream: Stream, splitter: Splitter) -> np.ndarray:
    found, first = [], 0
    for chunk in stream.narrow():
        trains = (splitter.assign(chunk, stream.encoder.users) == 0) & np.asarray(chunk[ROW])
        found.append(first + np.flatnonzero(trains))
        first += len(trains)
    places = np.concatenate(found)
    return places[drawn(0, len(places), max(-(-len(places) // MOST_FITTED), 1))]
