"""Rows that come in chunks, put aside by a key and given back bucket by bucket, in bounded memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from features.chunk import Arrays, Column
from features.store.arrow import to_arrow, to_numpy


def by_bucket(
    chunks: Iterable[Arrays], key: str, buckets: int, folder: Path, advance: Callable[[int], object] = lambda rows: None
) -> Iterator[Arrays]:
    """Rows of each bucket in turn, in the order they came in; a row's bucket is its `key` modulo `buckets`.

    Memory holds one chunk while rows come in and one bucket while they go out. A single bucket stays in memory;
    more go by way of files in `folder`, which is gone when the last bucket was taken.

    Args:
        chunks: columns of equal length; the same columns in each chunk.
        key: an integer column.
        buckets: how many.
        folder: for the files; must not exist.
        advance: told the rows of each chunk that came in.
    """
    if buckets == 1:
        kept = []
        for columns in chunks:
            kept.append(columns)
            advance(len(columns[key]))
        yield {name: _joined([columns[name] for columns in kept]) for name in kept[0]}
        return
    folder.mkdir(parents=True)
    try:
        _write(chunks, key, buckets, folder, advance)
        for bucket in range(buckets):
            path = folder / f"{bucket}.arrow"
            with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
                table = reader.read_all().combine_chunks()
            yield {name: _numpy(table[name]) for name in table.column_names}
            path.unlink()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def taken(column: Column, index: np.ndarray) -> Column:
    """The column's entries at these places; a boolean index chooses."""
    if isinstance(column, pa.LargeListArray):
        return column.filter(to_arrow(index)) if index.dtype == bool else column.take(to_arrow(index))
    return column[index]


def _write(chunks: Iterable[Arrays], key: str, buckets: int, folder: Path, advance: Callable[[int], object]) -> None:
    writers: list[pa.RecordBatchStreamWriter] = []
    try:
        for columns in chunks:
            batch = _batch(columns)
            if not writers:
                writers = [pa.ipc.new_stream(str(folder / f"{one}.arrow"), batch.schema) for one in range(buckets)]
            bucket_R = np.asarray(columns[key]) % buckets
            # An int8 radix sort is several times faster than one of int32.
            order = np.argsort(bucket_R.astype(np.int8 if buckets <= 127 else np.int32), kind="stable")
            batch = batch.take(to_arrow(order))
            ends = np.searchsorted(bucket_R[order], np.arange(buckets + 1))
            for one, writer in enumerate(writers):
                writer.write_batch(batch.slice(ends[one], ends[one + 1] - ends[one]))
            advance(len(order))
    finally:
        for writer in writers:
            writer.close()


def _batch(columns: Arrays) -> Any:
    arrays = [column if isinstance(column, pa.LargeListArray) else to_arrow(column) for column in columns.values()]
    return pa.RecordBatch.from_arrays(arrays, names=list(columns))


def _joined(columns: list[Column]) -> Column:
    if isinstance(columns[0], pa.LargeListArray):
        return pa.concat_arrays(columns)
    return np.concatenate(columns)


def _numpy(column: pa.ChunkedArray) -> Column:
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    return array if pa.types.is_large_list(array.type) else to_numpy(array)
