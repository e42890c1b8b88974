"""In which order an epoch reads its rows: shuffled in bounded memory, decided by seed and epoch, split exactly.

Shapes: B rows of a batch. A row is named by its number in stored order, part after part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from features.errors import ConfigError

# A permutation of so many rows takes 64 MB; smaller sets are shuffled as a whole.
WINDOW_ROWS = 2**23


@dataclass(frozen=True)
class EpochOrder:
    """The batches of one epoch, as row numbers.

    Shuffled, the parts come in random order, are joined to windows of at least `window_rows` rows, and rows are
    permuted within a window; batches run on from one window into the next. Memory holds a window and a batch,
    whatever the number of rows. The order follows from (seed, epoch) alone.

    With `lists_of`, lists are permuted in place of rows: the rows of one stand side by side, in stored order. The end
    of a batch may cut a list.

    With several processes, each global batch of `processes · batch_size` rows is cut evenly: together the processes
    see the global order, each row once, and all make the same number of batches. A last rest of fewer rows than there
    are processes joins the batch before it, so that no process has an empty one.

    Args:
        part_rows: rows of each stored part.
        batch_size: rows of a batch, of one process.
        seed: of the shuffled order.
        epoch: from 0.
        shuffle: false keeps the stored order.
        drop_last: leave out a last global batch that is not full.
        process: which of the processes this is, from 0.
        processes: how many there are.
        window_rows: fewest rows that are permuted together.
        lists_of: the number of each row's list within a part, from 0, of the part with this number; int [rows].

    Raises:
        ConfigError: fewer rows than processes.
    """

    part_rows: Sequence[int]
    batch_size: int
    seed: int = 0
    epoch: int = 0
    shuffle: bool = False
    drop_last: bool = False
    process: int = 0
    processes: int = 1
    window_rows: int = WINDOW_ROWS
    lists_of: Callable[[int], np.ndarray] | None = None

    def __post_init__(self) -> None:
        rows = sum(self.part_rows)
        if 0 < rows < self.processes:
            raise ConfigError(
                f"{rows:,} rows cannot be shared among {self.processes:,} processes. Start at most {rows:,}."
            )

    def __len__(self) -> int:
        """Batches of the epoch."""
        whole, rest = divmod(sum(self.part_rows), self._global_batch)
        return whole + (rest >= self.processes and not self.drop_last)

    def batches(self, start: int = 0) -> Iterator[np.ndarray]:
        """Row numbers of each batch from number `start` on, int64 [B]; none is made of those before."""
        ahead: list[np.ndarray] = []
        waiting, left = 0, len(self) - start
        for rows in self._windows(start * self._global_batch):
            ahead.append(rows)
            waiting += len(rows)
            # The last batch waits for a rest that may join it.
            whole = min(waiting // self._global_batch, left - 1)
            if whole <= 0:
                continue
            joined = np.concatenate(ahead) if len(ahead) > 1 else ahead[0]
            for batch in np.split(joined[: whole * self._global_batch], whole):
                yield self._share(batch)
            left -= whole
            ahead, waiting = [joined[whole * self._global_batch :]], waiting - whole * self._global_batch
        if left > 0:
            last = np.concatenate(ahead)
            yield self._share(last[: self._global_batch] if self.drop_last else last)

    @property
    def _global_batch(self) -> int:
        return self.batch_size * self.processes

    def _share(self, batch: np.ndarray) -> np.ndarray:
        rows = len(batch)
        return batch[rows * self.process // self.processes : rows * (self.process + 1) // self.processes]

    def _windows(self, skip: int) -> Iterator[np.ndarray]:
        """Rows of each window in their order, without the first `skip` of the epoch."""
        starts = np.cumsum([0, *self.part_rows])
        for number, parts in enumerate(self._parts_of_windows()):
            size = sum(self.part_rows[part] for part in parts)
            if skip >= size:
                skip -= size
                continue
            rows = np.concatenate([np.arange(starts[part], starts[part + 1]) for part in parts])
            if self.shuffle:
                draw = np.random.default_rng([self.seed % 2**32, self.epoch, number])
                if self.lists_of is None:
                    draw.shuffle(rows)
                else:
                    rows = rows[_by_drawn_list([self.lists_of(part) for part in parts], draw)]
            yield rows[skip:]
            skip = 0

    def _parts_of_windows(self) -> list[list[int]]:
        parts = np.arange(len(self.part_rows))
        if not self.shuffle:
            return [[part] for part in parts.tolist()]
        np.random.default_rng([self.seed % 2**32, self.epoch]).shuffle(parts)
        windows: list[list[int]] = [[]]
        rows = 0
        for part in parts.tolist():
            if rows >= self.window_rows:
                windows.append([])
                rows = 0
            windows[-1].append(part)
            rows += self.part_rows[part]
        return windows


def _by_drawn_list(lists: Sequence[np.ndarray], draw: np.random.Generator) -> np.ndarray:
    """The order of rows in which the lists of all parts come in random order, each in one piece."""
    counts = [int(list_R.max(initial=-1)) + 1 for list_R in lists]
    starts = np.cumsum([0, *counts])
    place_L = draw.permutation(starts[-1])
    place_R = np.concatenate([place_L[start + list_R] for start, list_R in zip(starts, lists, strict=False)])
    return np.argsort(place_R, kind="stable")
