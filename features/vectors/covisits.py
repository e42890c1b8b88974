"""Item vectors learned from users' pasts: items that stand near each other in them get vectors that are alike.

Shapes: E events, P pairs of items that co-occur, I items of such pairs, W width of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features.contract.contract import Contract
from features.contract.vectors import Embedding
from features.encoding.vocabulary import Vocabulary
from features.errors import DataError
from features.store.schema import FIRST_VALUE
from features.vectors.read import learned_file

NEIGHBOURS = 10  # events before and after one of the same user that count: pairs grow with events, not their square
ROUNDING = 1e-6  # of the longest vector: a shorter one is what rounding leaves of items that no direction holds
POWER_ITERATIONS = 7
SEED = 1


@dataclass(frozen=True)
class PastEvents:
    """Events of the training window, by user and time, E of them.

    Args:
        user_E: numbers of users, ascending.
        items: the items' ids, as keys.
    """

    user_E: np.ndarray
    items: pl.Series


@dataclass(frozen=True)
class CoOccurrences:
    """How often items stand near each other: each pair of two different ones once, the smaller index first.

    Args:
        ids: of the items, sorted; indices count in them.
        pairs_P2: int64 [P, 2], sorted.
        count_P: int64 [P], above 0.
    """

    ids: pl.Series
    pairs_P2: np.ndarray
    count_P: np.ndarray


def learn_sets(contract: Contract, events: Mapping[str, PastEvents], folder: Path) -> dict[str, dict[str, int]]:
    """Learn each set that says `learn`, and write it where `read_vectors` finds it.

    The files follow from the events alone, whatever the catalogue's order.

    Args:
        contract: whose sets are learned.
        events: to learn from, by what `learn` says.
        folder: of the feature set.

    Returns:
        By set, how many `events` there were, how many `pairs` of items co-occur, and how many `items` have a vector.

    Raises:
        DataError: fewer items co-occur with another one than a vector has numbers.
    """
    found = {source: (len(some.user_E), co_occurrences(some)) for source, some in events.items()}
    report = {}
    for name, spec in contract.learned_sets.items():
        number, counted = found[str(spec.learn)]
        matrix_II = associations(counted, spec.shift)
        vectors_IW = _vectors(name, spec, matrix_II, number)
        length_I = np.linalg.norm(vectors_IW, axis=1)
        has_I = length_I > ROUNDING * length_I.max()
        path = learned_file(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        vectors = pl.Series(vectors_IW[has_I].astype(np.float32), dtype=pl.Array(pl.Float32, spec.width))
        pl.DataFrame({spec.id: counted.ids.filter(pl.Series(has_I)), spec.vector: vectors}).write_parquet(path)
        report[name] = {"events": number, "pairs": len(counted.count_P), "items": int(has_I.sum())}
    return report


def co_occurrences(events: PastEvents, neighbours: int = NEIGHBOURS) -> CoOccurrences:
    """Count how often two different items are at most `neighbours` events apart in one user's past.

    Memory holds the events and the pairs that were found: one distance is counted after the other.
    """
    ids = events.items.unique().sort()
    item_E = Vocabulary(ids).encode(events.items).astype(np.int64) - FIRST_VALUE
    found = pl.DataFrame(schema={"pair": pl.Int64, "count": pl.Int64})
    for apart in range(1, min(neighbours, len(item_E) - 1) + 1):
        one_E, other_E = item_E[:-apart], item_E[apart:]
        near_E = (events.user_E[:-apart] == events.user_E[apart:]) & (one_E != other_E)
        one, other = one_E[near_E], other_E[near_E]
        pairs = pl.DataFrame({"pair": np.minimum(one, other) * len(ids) + np.maximum(one, other)})
        counted = pairs.group_by("pair").agg(pl.len().cast(pl.Int64).alias("count"))
        found = pl.concat([found, counted]).group_by("pair").agg(pl.col("count").sum())
    found = found.sort("pair")
    pair_P = found["pair"].to_numpy()
    return CoOccurrences(ids, np.stack(np.divmod(pair_P, max(len(ids), 1)), axis=1), found["count"].to_numpy())


def associations(counted: CoOccurrences, shift: float) -> Any:
    """Shifted positive pointwise mutual information of each pair, sparse and symmetric, float64 [I, I].

        max(log(n_ij n / (n_i n_j)) - log shift, 0),    n_i = Σ_j n_ij,  n = Σ_i n_i

    Source: Levy and Goldberg, Neural Word Embedding as Implicit Matrix Factorization (NeurIPS 2014), equations 5, 11.
    """
    from scipy import sparse

    one_P, other_P = counted.pairs_P2.T
    items = len(counted.ids)
    of_item_I = np.bincount(one_P, counted.count_P, items) + np.bincount(other_P, counted.count_P, items)
    value_P = np.log(counted.count_P * of_item_I.sum() / (of_item_I[one_P] * of_item_I[other_P])) - np.log(shift)
    kept_P = value_P > 0
    one_P, other_P, value_P = one_P[kept_P], other_P[kept_P], value_P[kept_P]
    places = np.r_[one_P, other_P], np.r_[other_P, one_P]
    return sparse.csr_array((np.r_[value_P, value_P], places), shape=(items, items))


def _vectors(name: str, spec: Embedding, matrix_II: Any, events: int) -> np.ndarray:
    """`U sqrt(Σ)` of the greatest singular values, float64 [I, W]; one start and one sign, so that builds agree."""
    associated = int((np.diff(matrix_II.indptr) > 0).sum())
    if associated < spec.width:
        raise DataError(
            f"embeddings.{name}: in the pasts that are learned from ({events:,} events) {associated:,} items co-occur "
            f"with another one more than {spec.shift:g} times as often as by chance, fewer than the set's width "
            f"{spec.width}. Lower its width, take a longer log, or take the set out of the contract."
        )
    from sklearn.utils.extmath import randomized_svd

    left_IW, strength_W, _ = randomized_svd(
        matrix_II,
        spec.width,
        n_iter=POWER_ITERATIONS,
        power_iteration_normalizer="QR",
        flip_sign=True,
        random_state=SEED,
    )
    made_IW: np.ndarray = left_IW * np.sqrt(strength_W)
    return made_IW
