"""Which items are clicked by the same users: a similarity that needs no content, from the training window alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Clicks:
    """Positive rows of the training window, C of them, in any order; the same pair may appear more than once.

    Args:
        user_C: user rows, int32.
        item_C: item rows of the catalogue, int32.
    """

    user_C: np.ndarray
    item_C: np.ndarray


class CoClicks:
    """Normalised co-clicks: `n_ij / sqrt(n_i n_j)` of users who clicked both over those who clicked each, 0 to 1.

    It is the cosine of the items' columns of the user-item matrix (item-based collaborative filtering, Sarwar et al.
    2001). Rows are computed when asked for: all pairs of a large catalogue fit into no memory.

    Args:
        clicks: of the training window.
        items: rows of the catalogue.
    """

    def __init__(self, clicks: Clicks, items: int) -> None:
        from scipy import sparse

        users = int(clicks.user_C.max(initial=-1)) + 1
        pair = np.unique(clicks.item_C.astype(np.int64) * users + clicks.user_C)
        item, user = np.divmod(pair, max(users, 1))
        users_of_I = np.bincount(item, minlength=items)
        weights = (1 / np.sqrt(users_of_I[item])).astype(np.float32)
        self._unit_IU: Any = sparse.csr_array((weights, (item, user)), shape=(items, max(users, 1)))

    def towards(self, items_C: np.ndarray) -> Any:
        """What `between` needs of its second side, a sparse matrix [users, C]."""
        return self._unit_IU[items_C].T.tocsr()

    def between(self, items_B: np.ndarray, towards_UC: Any) -> Any:
        """Sparse [B, C]: normalised co-clicks of each of `items_B` with each item that `towards` was called for."""
        return self._unit_IU[items_B] @ towards_UC
