"""Rows and histories of a feature set, memory-mapped, to batches: vectorised, ids only.

Shapes: B rows, S history positions (newest last, padding in front), U distinct items in the batch.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

from ctr.data.batch import Batch
from ctr.data.epoch_sampler import EpochOrder
from features.contract.contract import LABEL_PREFIX
from features.errors import DataError
from features.store.feature_set import FeatureSet, SplitName, part_file
from features.store.schema import PADDING, UNKNOWN
from features.store.versions import Versions, instants_of

BATCHES_AHEAD = 3

T = TypeVar("T")


class Loader:
    """The batches of one split, epoch by epoch.

    A row stores only where its history ends; its items are copied from the flat events when its batch is
    made. The order of an epoch follows from (seed, epoch) alone (`ctr.data.epoch_sampler`): a resumed run sees the
    batches of the interrupted one. `labels`, and rows without shuffling, go part by part as they are stored.
    Where tables have versions, all of a row (its target, each event's item, its user) reads those of the row's instant.

    Args:
        feature_set: what to read; nothing of it is copied into memory beyond one batch.
        split: train, valid or test.
        batch_size: rows of a batch; the last one of an epoch may be smaller.
        seed: of the shuffled order.
        shuffle: draw the rows in random order, another one each epoch.
        drop_last: leave out a last batch smaller than `batch_size`. The rows left out differ by epoch.
        process: which of several training processes this is, from 0.
        processes: how many share the rows; each makes batches of `batch_size`, all the same number of them.
        chosen: numbers of the rows that are read, ascending; default all.
        by_request: draw requests in random order in place of rows, and number them in each batch. A request is the rows
            of one user and one id within a part; a row without an id is one of its own. The end of a batch may cut one.

    Raises:
        DataError: a column that the schema promises, or that of requests, is missing.
    """

    def __init__(
        self,
        feature_set: FeatureSet,
        split: SplitName,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = False,
        drop_last: bool = False,
        process: int = 0,
        processes: int = 1,
        chosen: np.ndarray | None = None,
        by_request: bool = False,
    ) -> None:
        self.schema = feature_set.schema
        self._rows = feature_set.rows(split)
        self._events = feature_set.events(split)
        self._items = None if feature_set.item_versions is None else ItemVersions(feature_set.item_versions)
        self._users = feature_set.user_versions
        self._by_request = by_request
        self._require_columns(feature_set, split)
        part_rows = [len(part["item"]) for part in self._rows]
        self._starts = np.cumsum([0, *part_rows])
        self._chosen = chosen
        if chosen is not None:
            part_rows = np.diff(np.searchsorted(chosen, self._starts)).tolist()
        self._order = EpochOrder(
            part_rows,
            batch_size,
            seed,
            0,
            shuffle,
            drop_last,
            process=process,
            processes=processes,
            lists_of=self._lists_of if by_request else None,
        )

    @property
    def rows(self) -> int:
        """Rows of the split, or of the chosen ones."""
        return int(self._starts[-1]) if self._chosen is None else len(self._chosen)

    @cached_property
    def labels(self) -> np.ndarray:
        """0 or 1 of the whole split, float32, in stored order."""
        return self.column("label").astype(np.float32)

    def column(self, name: str) -> np.ndarray:
        """One row column of the whole split, [rows], in stored order."""
        return np.concatenate([part[name] for part in self._rows])

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self._order)

    def epoch(self, epoch: int, start_batch: int = 0) -> Generator[Batch, None, None]:
        """The batches of an epoch from `start_batch` on, made ahead by a thread that this generator owns."""
        return prefetch(self._batches(epoch, start_batch))

    def _batches(self, epoch: int, start_batch: int) -> Generator[Batch, None, None]:
        items = DistinctItems(self.schema.items if self._items is None else self._items.count)
        for rows_B in replace(self._order, epoch=epoch).batches(start_batch):
            # The order inside a batch means nothing to training; in stored order each part is one slice.
            rows_B = np.sort(rows_B)
            yield self._batch(rows_B if self._chosen is None else self._chosen[rows_B], items)

    def _batch(self, rows_B: np.ndarray, items: DistinctItems) -> Batch:
        """The batch of these rows, which are sorted."""
        # Each entry: a part, the slice of the batch that lies in it, and these rows counted in the part.
        bounds = np.searchsorted(rows_B, self._starts)
        spans = [
            (part, slice(start, stop), rows_B[start:stop] - self._starts[part])
            for part, (start, stop) in enumerate(pairwise(bounds))
            if stop > start
        ]

        def gather(name: str) -> np.ndarray:
            return np.concatenate([self._rows[part][name].take(rows) for part, _, rows in spans])

        end_B, len_B = gather("history_end"), gather("history_len")
        positions = max(1, int(len_B.max()))
        in_front_BS = np.arange(positions) < positions - len_B[:, None]

        def gather_events(name: str) -> np.ndarray:
            values_BS = np.zeros((len(rows_B), positions), self._events[0][name].dtype)
            for part, span, _ in spans:
                newest_before(self._events[part][name], end_B[span], out=values_BS[span])
            # Not a product with the mask: a missing number (NaN) would stay one.
            np.copyto(values_BS, PADDING, where=in_front_BS)
            return values_BS

        target_B, history_BS = gather("item"), gather_events("item")
        if self._items is not None:
            instant_B = self._instants(spans)
            target_B = self._items.number(target_B, instant_B)
            history_BS = self._items.number(history_BS, instant_B[:, None])
        items_U, place = items.find(target_B, history_BS)
        target_B, history_BS = place.take(target_B), place.take(history_BS)
        item_versions_U = None
        if self._items is not None:
            items_U, item_versions_U = self._items.pairs(items_U)
        user_B = gather("user")
        user_versions_B = None if self._users is None else self._users.find(user_B, self._instants(spans))
        weighted = "weight" in self._rows[0]
        return Batch(
            items_U=torch.from_numpy(items_U),
            target_B=torch.from_numpy(target_B),
            history_BS=torch.from_numpy(history_BS),
            user_B=_tensor(user_B),
            label_B=torch.from_numpy(gather("label").astype(np.float32)),
            weight_B=torch.from_numpy(gather("weight").astype(np.float32)) if weighted else torch.ones(len(rows_B)),
            events={field.name: _tensor(gather_events(field.name)) for field in self.schema.event},
            context={field.name: _tensor(gather(field.name)) for field in self.schema.context},
            candidate={field.name: _tensor(gather(field.name)) for field in self.schema.candidate},
            labels={name: _tensor(gather(LABEL_PREFIX + name)) for name in self.schema.labels},
            item_versions_U=None if item_versions_U is None else torch.from_numpy(item_versions_U),
            user_versions_B=None if user_versions_B is None else torch.from_numpy(user_versions_B),
            list_B=torch.from_numpy(self._lists(spans, user_B, gather("request"))) if self._by_request else None,
        )

    def _lists_of(self, part: int) -> np.ndarray:
        """The number of each row's request among those of a part; of the chosen rows alone."""
        user_R, request_R = self._rows[part]["user"], self._rows[part]["request"]
        if self._chosen is not None:
            start, stop = np.searchsorted(self._chosen, self._starts[part : part + 2])
            rows = self._chosen[start:stop] - self._starts[part]
            user_R, request_R = user_R[rows], request_R[rows]
        return list_numbers(request_R, user_R)

    @staticmethod
    def _lists(spans: list[tuple[int, slice, np.ndarray]], user_B: np.ndarray, request_B: np.ndarray) -> np.ndarray:
        """The number of each row's request among those of a batch. One over midnight is in two parts, and two lists."""
        part_B = np.concatenate([np.full(len(rows), part) for part, _, rows in spans])
        return list_numbers(request_B, user_B, part_B)

    def _instants(self, spans: list[tuple[int, slice, np.ndarray]]) -> np.ndarray:
        """As of when the rows of a batch read items and users, µs."""
        return np.concatenate([instants_of(self._rows[part]).take(rows) for part, _, rows in spans])

    def _require_columns(self, feature_set: FeatureSet, split: SplitName) -> None:
        columns = [field.name for field in (*self.schema.context, *self.schema.candidate)]
        columns += [LABEL_PREFIX + name for name in self.schema.labels]
        rows = {"user", "item", "label", "history_end", "history_len", *columns}
        rows |= {"time"} if self._items is not None or self._users is not None else set()
        rows |= {"request"} if self._by_request else set()
        events = {"item", *(field.name for field in self.schema.event)}
        for folder, parts, needed in ((f"rows/{split}", self._rows, rows), ("events", self._events, events)):
            for number, part in enumerate(parts):
                if missing := sorted(needed - set(part)):
                    raise DataError(
                        f"{feature_set.path / folder / part_file(number)}: no column {missing[0]!r}. "
                        "Build the feature set again with `quadrank features`."
                    )


def list_numbers(request_R: np.ndarray, *others_R: np.ndarray) -> np.ndarray:
    """Numbers from 0 of the lists that rows with equal keys are, int32 [R]; a request below 0 is equal to none."""
    order = np.lexsort((request_R, *others_R))
    begins_R = request_R[order] < 0
    for key_R in (request_R, *others_R):
        sorted_R = key_R[order]
        begins_R[1:] |= sorted_R[1:] != sorted_R[:-1]
    begins_R[:1] = True
    number_R = np.empty(len(order), np.int32)
    number_R[order] = np.cumsum(begins_R) - 1
    return number_R


def newest_before(events: np.ndarray, end_B: np.ndarray, out: np.ndarray) -> None:
    """Write the S events before each end into `out` [B, S]; anything where there are fewer.

    A row's events lie side by side, so they are copied as one run; an index of each is made only for the few rows
    of a part whose run would begin before its first event.
    """
    positions = out.shape[1]
    whole = end_B >= positions
    if whole.all():
        out[:] = sliding_window_view(events, positions)[end_B - positions]
        return
    if whole.any():
        out[whole] = sliding_window_view(events, positions)[end_B[whole] - positions]
    if len(events):
        out[~whole] = events.take(np.maximum(end_B[~whole, None] + np.arange(-positions, 0), 0))


class DistinctItems:
    """Finds the distinct items of a batch by marking them: O(items + B S), no sorting.

    Args:
        items: rows of the item catalogue.
    """

    def __init__(self, items: int) -> None:
        self._marked = np.zeros(items, bool)
        self._place = np.zeros(items, np.int32)

    def find(self, *indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Distinct item rows, int32 [U], padding first; and the place of each item among them, int32 [items].

        The second array is valid for the given items until the next call.
        """
        self._marked[PADDING] = True
        for values in indices:
            self._marked[values] = True
        items_U = np.flatnonzero(self._marked).astype(np.int32)
        self._place[items_U] = np.arange(len(items_U), dtype=np.int32)
        self._marked[items_U] = False
        return items_U, self._place


class ItemVersions:
    """Numbers each pair of an item and one of its versions, so that a batch holds a pair once.

    The row of the stacked table is a pair's number; it names the item too. But all items share the unknown row before
    their first version begins: those pairs are numbered by item, after the stacked table.

    Args:
        versions: of the item table.
    """

    def __init__(self, versions: Versions) -> None:
        self._versions = versions
        self._stacked = versions.size + len(versions.row_V)
        self.count = self._stacked + versions.size

    def number(self, items: np.ndarray, time: np.ndarray) -> np.ndarray:
        """Numbers of the pairs of these items at these times (µs), int32 in the shape of `items`."""
        rows = self._versions.find(items, time)
        return np.where(rows == UNKNOWN, self._stacked + items, rows).astype(np.int32)

    def pairs(self, numbers_U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Item rows and rows of the stacked table, int32 [U] each."""
        before_first = numbers_U >= self._stacked
        is_version = (numbers_U >= self._versions.size) & ~before_first
        items_U = np.where(before_first, numbers_U - self._stacked, numbers_U)
        items_U[is_version] = self._versions.row_V[numbers_U[is_version] - self._versions.size]
        return items_U.astype(np.int32), np.where(before_first, UNKNOWN, numbers_U).astype(np.int32)


def prefetch(source: Iterable[T], ahead: int = BATCHES_AHEAD) -> Generator[T, None, None]:
    """Iterate over `source` in a background thread, at most `ahead` results in front of the consumer.

    The thread ends when `source` does, or when the generator is closed or dropped. What `source` raises is
    raised here, after the results before it.
    """
    results: queue.Queue[T | _End] = queue.Queue(ahead)
    abandoned = threading.Event()

    def put(result: T | _End) -> None:
        while not abandoned.is_set():
            try:
                return results.put(result, timeout=0.1)
            except queue.Full:
                continue

    def produce() -> None:
        error: BaseException | None = None
        try:
            for result in source:
                put(result)
                if abandoned.is_set():
                    return
        except BaseException as raised:  # handed to the consumer, who raises it
            error = raised
        put(_End(error))

    thread = threading.Thread(target=produce, name="prefetch", daemon=True)
    thread.start()
    try:
        while not isinstance(result := results.get(), _End):
            yield result
        if result.error is not None:
            raise result.error
    finally:
        abandoned.set()
        thread.join()


class _End:
    """Comes after the last result, with what ended the source early."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def _tensor(values: np.ndarray) -> torch.Tensor:
    """Indices as int32, numbers as float32."""
    kind = np.int32 if values.dtype.kind in "iu" else np.float32
    return torch.from_numpy(values.astype(kind, copy=False))
