"""How many candidates the requests had that a model is trained on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from features.calendar import DAY
from features.store.feature_set import ListSizes, PartEntry, read_arrow


def list_sizes(folder: Path, parts: Iterable[PartEntry], by_day: bool) -> ListSizes:
    """The sizes of the requests that training rows belong to; a row without a request id is a request of one.

    Args:
        folder: of the feature set.
        parts: its parts, each with all rows of its users in a split (or on a day).
        by_day: whether each day has requests of its own.
    """
    found = [np.empty(0, np.int64)]
    for part in parts:
        if part.split == "train" and part.window is not None:
            rows = read_arrow(folder / part.rows)
            known = rows["request"] >= 0
            day = rows["time"][known] // DAY if by_day else np.zeros(int(known.sum()), np.int64)
            key_3R = np.stack([rows["user"][known].astype(np.int64), rows["request"][known], day])
            found += [np.unique(key_3R, axis=1, return_counts=True)[1], np.ones(int((~known).sum()), np.int64)]
    least, low, high, greatest = np.quantile(np.concatenate(found), [0, 0.01, 0.99, 1], method="inverted_cdf")
    return ListSizes(least=int(least), low=int(low), high=int(high), greatest=int(greatest))
