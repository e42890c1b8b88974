"""What vector sets are worth before any training: coverage, shape, and whether near items are clicked together.

Clicks, tags and vectors are those of items of the training window; of all other items only coverage speaks. Shapes:
I rows of the catalogue, T items of the training window that have a vector, S items sampled of them, W dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

from features.contract.contract import Contract
from features.errors import DataError
from features.store.feature_set import FeatureSet
from features.store.schema import FIRST_VALUE
from features.store.vector_files import ItemVectors
from features.vectors.inspection.next_clicks import (
    NEAREST,
    Interval,
    TrainingClicks,
    cosines,
    interval,
    popular_hits,
    read_clicks,
    recall_hits,
    scores,
)
from features.vectors.inspection.tag_probe import probe
from features.vectors.neighbours import cosine_to, top_k
from features.vectors.semantic_ids import column_names
from features.vectors.transforms import blocks, mean_of

SAMPLED = 20_000  # items that lengths, variance and tags are read from
ASKED = 1_000  # items whose near twins and shared neighbours are looked up among all
TWINS = 0.999  # cosine, after centring, from which on two vectors are nearly one
DEAD = 1e-6  # range of a dimension, relative to the widest, that is rounding of a constant


@dataclass(frozen=True)
class Samples:
    """What pictures are drawn from: cosines of random and of co-clicked pairs, lengths of vectors as given.

    `variance_W` is the share of variance within the first 1, 2, … principal axes.
    """

    random_cosines: np.ndarray
    pair_cosines: np.ndarray
    variance_W: np.ndarray
    lengths: np.ndarray


@dataclass(frozen=True)
class SetReport:
    """What one vector set is like.

    Args:
        name: of the set.
        width: dimensions of a vector.
        items_covered: share of catalogue items that have a vector.
        clicks_covered: share of positive training rows whose item has one.
        norms: mean, deviation, and 0, 5, 50, 95 and 100 % quantiles of the vectors' lengths.
        dead_dimensions: dimensions that are the same for all items.
        effective_dimension: participation ratio (Σ λ)² / Σ λ² of the variances λ along principal axes: how many
            directions are in use.
        anisotropy: mean cosine of two random items; near 0 when vectors point everywhere.
        duplicates: share of items whose vector another item has too.
        near_duplicates: share with another item at a cosine above 0.999 after centring.
        candidates: items of the training window with a vector, among which neighbours are searched.
        pairs: co-clicked pairs of them that were looked up.
        recall: of the items clicked next by the same user, the share among the 10 nearest by cosine; None where there
            is no pair, or no more than 10 others to choose from.
        centred_recall: the same after the mean vector is taken away.
        random_recall: of 10 random candidates.
        popular_recall: of always naming the 10 most clicked candidates.
        probe: how well vectors tell an item's tags: mean AUC by item column; 0.5 is chance.
        samples: for pictures.
    """

    name: str
    width: int
    items_covered: float
    clicks_covered: float
    norms: tuple[float, ...]
    dead_dimensions: int
    effective_dimension: float
    anisotropy: float
    duplicates: float
    near_duplicates: float
    candidates: int
    pairs: int
    recall: Interval | None
    centred_recall: Interval | None
    random_recall: float
    popular_recall: float
    probe: dict[str, float]
    samples: Samples


@dataclass(frozen=True)
class Inspection:
    """All sets of a contract: how many `items` the catalogue has, and one report a set.

    `overlap` is, for two sets, the mean share of an item's 10 nearest that both agree on, after centring.
    """

    items: int
    sets: tuple[SetReport, ...]
    overlap: dict[tuple[str, str], float]


def inspect_sets(feature_set: FeatureSet, sets: list[ItemVectors], seed: int = 1) -> Inspection:
    """Measure every set against the clicks and tags of the training window.

    What is found of one set does not depend on the others. Besides the sets, memory holds blocks and samples, and
    one more set while two are compared.

    Args:
        feature_set: whose clicks and item columns are read.
        sets: vectors as their files hold them, on the rows of the feature set's catalogue.
        seed: of what is sampled.

    Raises:
        DataError: a set without a vector for any item of the training window.
    """
    clicks = read_clicks(feature_set, seed)
    columns = _tag_columns(feature_set)
    return Inspection(
        items=feature_set.schema.items - FIRST_VALUE,
        sets=tuple(_report(vector_set, clicks, columns, seed) for vector_set in sets),
        overlap={
            (vector_set.name, other.name): _overlap(vector_set, other, clicks.trained_I, seed)
            for place, vector_set in enumerate(sets)
            for other in sets[place + 1 :]
        },
    )


def _report(vector_set: ItemVectors, clicks: TrainingClicks, columns: dict[str, np.ndarray], seed: int) -> SetReport:
    rng = np.random.default_rng(seed)
    known_T = np.flatnonzero(vector_set.present_I & clicks.trained_I)
    if not len(known_T):
        raise DataError(
            f"embeddings.{vector_set.name}: none of its {int(vector_set.present_I.sum())} items is in the training "
            "window, so it cannot be judged. Take the set out of the contract, or give vectors of shown items."
        )
    sample_S = np.sort(rng.permutation(known_T)[:SAMPLED])
    vectors_SW = vector_set.vectors_IW[sample_S].astype(np.float64)
    lengths_S = np.linalg.norm(vectors_SW, axis=1)
    range_W = np.ptp(vectors_SW, axis=0)
    variance_W = np.maximum(np.linalg.eigvalsh(np.atleast_2d(np.cov(vectors_SW, rowvar=False, bias=True)))[::-1], 0)
    share_W = variance_W / max(float(variance_W.sum()), np.finfo(float).tiny)  # all 0 where nothing varies

    as_they_are_W, mean_W = np.zeros(vector_set.width, np.float32), mean_of(vector_set.vectors_IW, known_T)
    random_P2 = rng.choice(known_T, size=(SAMPLED, 2))
    random_P2 = random_P2[random_P2[:, 0] != random_P2[:, 1]]
    random_cosines = cosines(vector_set.vectors_IW, as_they_are_W, random_P2)

    known_P = vector_set.present_I[clicks.pairs_P2].all(axis=1)
    pairs_P2, user_P = clicks.pairs_P2[known_P], clicks.user_P[known_P]
    judged = len(pairs_P2) > 0 and len(known_T) > NEAREST + 1
    recall, centred_recall = (
        interval(recall_hits(vector_set.vectors_IW, centre_W, pairs_P2, known_T), user_P, seed) if judged else None
        for centre_W in (as_they_are_W, mean_W)
    )
    clicks_covered = clicks.clicks_I[vector_set.present_I].sum() / max(clicks.clicks_I.sum(), 1)
    return SetReport(
        name=vector_set.name,
        width=vector_set.width,
        items_covered=vector_set.coverage,
        clicks_covered=float(clicks_covered),
        norms=(
            float(lengths_S.mean()),
            float(lengths_S.std()),
            *np.quantile(lengths_S, [0, 0.05, 0.5, 0.95, 1]).tolist(),
        ),
        dead_dimensions=int((range_W <= DEAD * range_W.max()).sum()),
        effective_dimension=float(share_W.sum() ** 2 / max((share_W**2).sum(), np.finfo(float).tiny)),
        anisotropy=float(random_cosines.mean()) if len(random_cosines) else 1.0,
        duplicates=_duplicates(vector_set.vectors_IW, known_T),
        near_duplicates=_near_duplicates(vector_set.vectors_IW, mean_W, known_T, rng.permutation(known_T)[:ASKED]),
        candidates=len(known_T),
        pairs=len(pairs_P2),
        recall=recall,
        centred_recall=centred_recall,
        random_recall=min(1.0, NEAREST / max(len(known_T) - 1, 1)),
        popular_recall=float(popular_hits(clicks.clicks_I, pairs_P2, known_T).mean()) if len(pairs_P2) else 0.0,
        probe=probe(vectors_SW, {name: column[sample_S] for name, column in columns.items()}, seed),
        samples=Samples(
            random_cosines=random_cosines,
            pair_cosines=cosines(vector_set.vectors_IW, as_they_are_W, pairs_P2),
            variance_W=np.cumsum(share_W),
            lengths=lengths_S,
        ),
    )


def _tag_columns(feature_set: FeatureSet) -> dict[str, np.ndarray]:
    """Item columns of indices, without the id; semantic ids are made of vectors, and tell nothing new of them."""
    made = _made_of_vectors(feature_set.contract)
    fields = [field.name for field in feature_set.schema.item[1:] if field.kind != "numeric"]
    return {name: feature_set.items[name] for name in fields if name not in made}


def _made_of_vectors(contract: Contract) -> set[str]:
    coders = contract.vectors.semantic_ids.items()
    return {column for name, spec in coders for column in column_names(name, spec.levels)}


def _duplicates(vectors_IW: np.ndarray, items_T: np.ndarray) -> float:
    """Share of items whose vector another one of them has too, number by number."""
    digests: list[bytes] = []
    for rows in blocks(len(items_T)):
        block_BW = vectors_IW[items_T[rows]] + np.float32(0)  # -0 becomes 0
        digests += [blake2b(vector_W.tobytes(), digest_size=16).digest() for vector_W in block_BW]
    _, inverse, counts = np.unique(np.array(digests, "V16"), return_inverse=True, return_counts=True)
    return float((counts[inverse] > 1).mean())


def _near_duplicates(vectors_IW: np.ndarray, mean_W: np.ndarray, items_T: np.ndarray, asked_Q: np.ndarray) -> float:
    """Share of the items asked for that have a near twin among all; centred, lest one common direction be the twin."""
    has_Q = np.zeros(len(asked_Q), bool)
    for asked, scores_QB in scores(vectors_IW, mean_W, asked_Q, items_T):
        has_Q[asked] |= (scores_QB > TWINS).any(axis=1)
    return float(has_Q.mean())


def _overlap(vector_set: ItemVectors, other: ItemVectors, trained_I: np.ndarray, seed: int) -> float:
    both_C = np.flatnonzero(vector_set.present_I & other.present_I & trained_I)
    if len(both_C) <= NEAREST + 1:
        return 0.0
    asked_Q = np.random.default_rng(seed).permutation(both_C)[:ASKED]
    first_QK, second_QK = (_nearest(vectors.vectors_IW, asked_Q, both_C) for vectors in (vector_set, other))
    return float((first_QK[:, :, None] == second_QK[:, None, :]).any(axis=2).mean())


def _nearest(vectors_IW: np.ndarray, asked_Q: np.ndarray, candidates_C: np.ndarray) -> np.ndarray:
    mean_W = mean_of(vectors_IW, candidates_C)
    return top_k(asked_Q, candidates_C, NEAREST, cosine_to(vectors_IW, candidates_C, mean_W))
