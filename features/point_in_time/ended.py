"""What is known of each key of a counter when the log ends, gathered from the shards that it was counted in.

Shapes: K keys.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from features.contract.log import Counter
from features.encoding.snapshot import CounterState, Snapshot
from features.point_in_time.counters import final


class Ended(NamedTuple):
    """What is known of K keys right after the log's newest row.

    Args:
        keys: combined, ascending, int64 [K]; the one more row of `values` and `state`, if any, is of other keys.
        values: float [K].
        state: of K rows.
    """

    keys: np.ndarray
    values: np.ndarray
    state: CounterState

    @classmethod
    def gathered(cls, shards: list[Ended], counter: Counter, snapshot: Snapshot, dense: int | None) -> Ended:
        """The keys of all shards, and a last row of keys that did not occur.

        Args:
            shards: each with keys of its own.
            counter: whose.
            snapshot: with the means.
            dense: rows are the keys themselves, which are so many, and there is no last row.
        """
        key_S = np.concatenate([of.keys for of in shards])
        keys = np.sort(key_S)
        place_S = key_S if dense is not None else np.searchsorted(keys, key_S)
        rows = len(keys) + 1 if dense is None else dense
        nothing = np.zeros(0, np.int64)
        (fresh,) = final(nothing, nothing, nothing, counter, snapshot.mean_of(counter), 1, snapshot.newest)

        def spread(values: list[np.ndarray], other: float = 0.0) -> np.ndarray:
            joined = np.concatenate(values)
            result = np.full(rows, other, joined.dtype)
            result[place_S] = joined
            return result

        states = [of.state for of in shards]
        first_S = np.cumsum([0, *(len(of.keys) for of in shards)])
        opened = [first + one.open_row for first, one in zip(first_S.tolist(), states, strict=False)]
        return cls(
            keys,
            spread([of.values.astype(np.float32) for of in shards], fresh),
            CounterState(
                spread([one.count for one in states]),
                spread([one.total for one in states]),
                spread([one.time for one in states]),
                place_S[np.concatenate(opened)],
                *(
                    np.concatenate([getattr(one, f"open_{name}") for one in states])
                    for name in ("time", "count", "total")
                ),
            ),
        )
