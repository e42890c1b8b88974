"""A share of the training rows: that of some users, each with all of their rows; the other splits stay whole."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from features.store.feature_set import FeatureSet, SplitName

# Multiplication by an odd number near 2^32 over the golden ratio spreads neighbours evenly (Knuth, TAOCP 3, 6.4).
_SPREAD = np.uint64(2654435769)
_SPAN = 2**32


class TrainingShare(FeatureSet):
    """A feature set whose training rows are those of a share of its users.

    Events stay whole: the history of a row that is kept is what it was. Which users are kept follows from their index
    alone, so all trials have the same rows. The kept rows are held in memory.

    Args:
        whole: where rows come from.
        share: of the users, above 0 and at most 1.
    """

    def __init__(self, whole: FeatureSet, share: float) -> None:
        super().__init__(whole.path, whole.manifest)
        self._share = share
        kept = self._kept
        labels = np.concatenate([part["label"] for part in kept])
        window = whole.manifest.windows["train"].model_copy(
            update={"rows": len(labels), "positives": int((labels > 0).sum())}
        )
        self.manifest = whole.manifest.model_copy(update={"windows": {**whole.manifest.windows, "train": window}})

    def rows(self, split: SplitName) -> list[dict[str, np.ndarray]]:
        """The row columns of a split, one dict a part."""
        return self._kept if split == "train" else super().rows(split)

    @cached_property
    def _kept(self) -> list[dict[str, np.ndarray]]:
        parts = []
        for part in super().rows("train"):
            chosen = of_share(part["user"], self._share)
            parts.append({name: values[chosen] for name, values in part.items()})
        return parts


def of_share(users: np.ndarray, share: float) -> np.ndarray:
    """Which of these users belong to a share of all users, bool in the shape of `users`."""
    spread = (users.astype(np.uint64) * _SPREAD) % np.uint64(_SPAN)
    return spread < np.uint64(round(share * _SPAN))
