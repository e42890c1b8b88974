"""Batches of rows to score, cut between requests where a model compares the candidates of one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import polars as pl
import pyarrow as pa

from features.errors import DataError
from features.requests.request_rows import RowEncoder


def whole_lists(batches: Iterable[pa.RecordBatch], rows: RowEncoder) -> Iterator[pa.RecordBatch]:
    """The same rows in the same order; where lists are compared, all rows of one list are in one batch.

    Memory holds a batch, its longest list and a number for each list.

    Args:
        batches: of the file to score.
        rows: how it is read.

    Raises:
        DataError: the rows of a list do not follow each other.
    """
    if rows.request is None:
        yield from batches
        return
    seen: set[int] = set()
    held: list[pa.RecordBatch] = []
    for batch in batches:
        waiting = pa.Table.from_batches([*held, batch]).combine_chunks()
        cut = int(_begins(_frame(waiting), rows)[-1:].sum())
        held = waiting.slice(cut).to_batches()
        if cut:
            yield _checked(waiting.slice(0, cut), rows, seen)
    if held:
        yield _checked(pa.Table.from_batches(held), rows, seen)


def _begins(table: pl.DataFrame, rows: RowEncoder) -> np.ndarray:
    """Where lists begin in a table, int64."""
    number_R = rows.list_numbers(table)
    return np.flatnonzero(np.r_[True, number_R[1:] != number_R[:-1]])[: len(number_R)]


def _checked(lists: pa.Table, rows: RowEncoder, seen: set[int]) -> pa.RecordBatch:
    """Whole lists as a batch, remembered. Raises DataError for one that was seen before or occurs twice."""
    table = _frame(lists)
    user, request = rows.list_ids(table).columns
    begun = rows.list_ids(table)[_begins(table, rows)].filter(pl.col(request).is_not_null())
    for key, number in zip(begun.iter_rows(), begun.hash_rows(seed=1).to_list(), strict=True):
        if number in seen:
            raise DataError(
                f"column {request!r}: rows of request {key[1]!r} (user {key[0]!r}) do not follow each other. The model "
                f"compares the candidates of a request: sort the rows by {user!r} and {request!r}."
            )
        seen.add(number)
    (batch,) = lists.combine_chunks().to_batches()
    return batch


def _frame(table: pa.Table) -> pl.DataFrame:
    return pl.DataFrame(pl.from_arrow(table))
