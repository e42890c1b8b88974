"""Whether near items are clicked one after the other: what the clicks of a training window say of a vector set.

Shapes: I rows of the catalogue, C candidates, P pairs of items, W dimensions, U users.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from features.store.feature_set import FeatureSet
from features.vectors.projections import to_unit
from features.vectors.transforms import blocks

NEAREST = 10
PAIRS = 10_000  # that are looked up, of all in the window: an interval of about ±0.01 around a recall of 0.3
BOOTSTRAPS = 400
LEVEL = 1e-6  # cosines this close are one: rounding of float32 in two products of the same vectors
ASKED_A_BLOCK = 1024


@dataclass(frozen=True)
class Interval:
    """A share, with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class TrainingClicks:
    """What the training window says of items.

    Args:
        trained_I: bool [items], items with any row in the window.
        clicks_I: positive rows of each item, int64 [items].
        pairs_P2: item rows, int32 [P, 2]: two different items that a user clicked one after the other.
        user_P: the user of each pair, int32.
    """

    trained_I: np.ndarray
    clicks_I: np.ndarray
    pairs_P2: np.ndarray
    user_P: np.ndarray


def read_clicks(feature_set: FeatureSet, seed: int) -> TrainingClicks:
    """The training window, part by part; of the pairs in it, at most `PAIRS`, each with the same chance."""
    rng = np.random.default_rng(seed)
    rows_I = np.zeros(feature_set.schema.items, np.int64)
    clicks_I = np.zeros_like(rows_I)
    sample_P3 = np.empty((0, 3), np.int32)
    key_P = np.empty(0)
    for part in feature_set.rows("train"):  # rows stand by user and time
        taken = part["label"] == 1
        user, item = part["user"][taken], part["item"][taken]
        rows_I += np.bincount(part["item"], minlength=len(rows_I))
        clicks_I += np.bincount(item, minlength=len(rows_I))
        at = np.flatnonzero((user[1:] == user[:-1]) & (item[1:] != item[:-1]))
        found_P3 = np.stack([item[at], item[at + 1], user[at]], axis=1)
        sample_P3, key_P = np.concatenate([sample_P3, found_P3]), np.concatenate([key_P, rng.random(len(at))])
        least = np.argsort(key_P)[:PAIRS]
        sample_P3, key_P = sample_P3[least], key_P[least]
    return TrainingClicks(rows_I > 0, clicks_I, sample_P3[:, :2], sample_P3[:, 2])


def recall_hits(
    vectors_IW: np.ndarray, mean_W: np.ndarray, pairs_P2: np.ndarray, candidates_C: np.ndarray
) -> np.ndarray:
    """Whether the second item of each pair is among the `NEAREST` of the first by cosine, float64 [P] from 0 to 1.

    Items at the same distance as the second share the places that are left: a set of equal vectors finds no more than
    chance, `NEAREST / (C - 1)`.

    Args:
        vectors_IW: float32 [items, width].
        mean_W: taken from every vector first; zeros to compare them as they are.
        pairs_P2: item rows, int32 [P, 2], all of them candidates.
        candidates_C: item rows that are searched, ascending; the first of a pair is not its own neighbour.
    """
    wanted_P = cosines(vectors_IW, mean_W, pairs_P2)
    nearer_P, level_P = np.zeros(len(pairs_P2), np.int64), np.zeros(len(pairs_P2), np.int64)
    for asked, scores_QB in scores(vectors_IW, mean_W, pairs_P2[:, 0], candidates_C):
        at_least_Q = (scores_QB >= wanted_P[asked, None] - LEVEL).sum(axis=1)
        nearer_Q = (scores_QB > wanted_P[asked, None] + LEVEL).sum(axis=1)
        nearer_P[asked] += nearer_Q
        level_P[asked] += at_least_Q - nearer_Q
    return np.clip((NEAREST - nearer_P) / np.maximum(level_P, 1), 0, 1)


def popular_hits(clicks_I: np.ndarray, pairs_P2: np.ndarray, candidates_C: np.ndarray) -> np.ndarray:
    """Whether the second item of each pair is among the `NEAREST` most clicked candidates but the first, bool [P]."""
    rank_I = np.full(len(clicks_I), len(clicks_I))
    rank_I[candidates_C[np.argsort(-clicks_I[candidates_C], kind="stable")]] = np.arange(len(candidates_C))
    first_P, second_P = rank_I[pairs_P2].T
    return second_P - (first_P < second_P) < NEAREST


def interval(hits_P: np.ndarray, user_P: np.ndarray, seed: int) -> Interval:
    """Mean with a bootstrap over users: the pairs of one user are no independent witnesses."""
    _, place_P = np.unique(user_P, return_inverse=True)
    hits_U, pairs_U = np.bincount(place_P, hits_P), np.bincount(place_P)
    users = len(pairs_U)
    drawn_BU = np.random.default_rng(seed).multinomial(users, np.full(users, 1 / users), size=BOOTSTRAPS)
    low, high = np.quantile((drawn_BU @ hits_U) / (drawn_BU @ pairs_U), [0.025, 0.975])
    return Interval(float(hits_P.mean()), float(low), float(high))


def scores(
    vectors_IW: np.ndarray, mean_W: np.ndarray, asked_Q: np.ndarray, candidates_C: np.ndarray
) -> Iterator[tuple[slice, np.ndarray]]:
    """Cosines of a block of items with a block of candidates, again and again until all have met all.

    Memory holds one block: at most 1,024 x 8,192 cosines and the directions they are made of.

    Yields:
        which of `asked_Q`, and their cosines, float32 [asked, candidates of the block]; -inf of an item with itself.
    """
    for rows in blocks(len(candidates_C)):
        items_B = candidates_C[rows]
        directions_BW = _directions(vectors_IW, mean_W, items_B)
        for start in range(0, len(asked_Q), ASKED_A_BLOCK):
            asked = slice(start, min(start + ASKED_A_BLOCK, len(asked_Q)))
            scores_QB = _directions(vectors_IW, mean_W, asked_Q[asked]) @ directions_BW.T
            place_Q = np.minimum(np.searchsorted(items_B, asked_Q[asked]), len(items_B) - 1)
            itself = np.flatnonzero(items_B[place_Q] == asked_Q[asked])
            scores_QB[itself, place_Q[itself]] = -np.inf
            yield asked, scores_QB


def cosines(vectors_IW: np.ndarray, mean_W: np.ndarray, pairs_P2: np.ndarray) -> np.ndarray:
    """Cosine of the two items of each pair, float32 [P]; 0 where one has no direction."""
    first_PW, second_PW = (_directions(vectors_IW, mean_W, pairs_P2[:, side]) for side in (0, 1))
    return np.asarray(np.einsum("pw,pw->p", first_PW, second_PW))


def _directions(vectors_IW: np.ndarray, mean_W: np.ndarray, items_V: np.ndarray) -> np.ndarray:
    return to_unit(vectors_IW[items_V] - mean_W)
