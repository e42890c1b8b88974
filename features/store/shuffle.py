"""Divides rows that come in chunks into shards by a key, in bounded memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from features.chunk import Values, concatenated
from features.store.arrow import to_arrow, to_numpy


def shuffle_by_key(
    chunks: Iterable[dict[str, Values]],
    key: str,
    shards: int,
    folder: Path,
    advance: Callable[[int], object] = lambda rows: None,
) -> Iterator[dict[str, Values]]:
    """The rows of each shard in turn, in the order they came in. A row's shard is its `key` modulo `shards`.

    A single shard stays in memory. More shards go through one file each: memory then holds one chunk while rows come in
    and one shard while they go out; what sorts a shard needs three to four times its size.

    Args:
        chunks: columns of equal length, numpy arrays or Arrow lists; every chunk has the same columns.
        key: name of an integer column.
        shards: how many.
        folder: for the files; must not exist. It is removed after the last shard.
        advance: called with the number of rows of each chunk that came in.
    """
    if shards == 1:
        kept = []
        for columns in chunks:
            kept.append(columns)
            advance(len(columns[key]))
        yield {name: concatenated([columns[name] for columns in kept]) for name in kept[0]}
        return
    folder.mkdir(parents=True)
    try:
        _write(chunks, key, shards, folder, advance)
        for shard in range(shards):
            path = folder / f"{shard}.arrow"
            with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
                table = reader.read_all().combine_chunks()
            yield {name: _values(table[name]) for name in table.column_names}
            path.unlink()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(
    chunks: Iterable[dict[str, Values]], key: str, shards: int, folder: Path, advance: Callable[[int], object]
) -> None:
    writers: list[pa.RecordBatchStreamWriter] = []
    try:
        for columns in chunks:
            batch = _batch(columns)
            if not writers:
                writers = [pa.ipc.new_stream(str(folder / f"{shard}.arrow"), batch.schema) for shard in range(shards)]
            shard_R = np.asarray(columns[key]) % shards
            # An int8 radix sort is several times faster than one of int32.
            order = np.argsort(shard_R.astype(np.int8 if shards <= 127 else np.int32), kind="stable")
            batch = batch.take(to_arrow(order))
            ends = np.searchsorted(shard_R[order], np.arange(shards + 1))
            for writer, start, stop in zip(writers, ends, ends[1:], strict=False):
                writer.write_batch(batch.slice(start, stop - start))
            advance(len(order))
    finally:
        for writer in writers:
            writer.close()


def _batch(columns: dict[str, Values]) -> pa.RecordBatch:
    arrays = [values if isinstance(values, pa.LargeListArray) else to_arrow(values) for values in columns.values()]
    return pa.RecordBatch.from_arrays(arrays, names=list(columns))


def _values(column: pa.ChunkedArray) -> Values:
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    return array if pa.types.is_large_list(array.type) else to_numpy(array)
