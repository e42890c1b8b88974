"""What vector sets are worth before any training: coverage, shape, and whether near items are clicked together.

Everything is measured on the training window. Shapes: I items with a vector, W dimensions, P pairs of items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features.feature_set import FeatureSet
from features.schema import FIRST_VALUE, UNKNOWN, Field
from features.vectors.embeddings import ItemVectors

NEAREST = 10
PAIRS = 4_000  # co-clicked pairs that are looked up: an interval of about 0.015 around a recall of 0.3
SAMPLED = 20_000  # items that shape is measured on
BLOCK = 512
BOOTSTRAPS = 400
FEWEST_TAGGED, MOST_TAGS = 20, 12  # a probe needs so many items of a tag; the most frequent tags are probed
RIDGE = 10.0  # of the probe, on standardised dimensions


@dataclass(frozen=True)
class Interval:
    """A share, with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class SetReport:
    """What one vector set is like.

    Args:
        name: of the set.
        width: dimensions of a vector.
        items_covered: share of catalogue items that have a vector.
        clicks_covered: share of positive training rows whose item has one.
        norms: 0, 5, 50, 95 and 100 % quantiles of the vectors' lengths.
        dead_dimensions: dimensions that are the same for all items.
        effective_dimension: (Σ λ)² / Σ λ² of the variances λ along principal axes: how many directions are in use.
        anisotropy: mean cosine of two random items; near 0 when vectors point everywhere.
        duplicates: share of items whose vector another item has too.
        recall: of the items clicked next by the same user, the share among the 10 nearest by cosine.
        centred_recall: the same after the mean vector is taken away.
        probe: how well vectors tell an item's tags: mean AUC by item column; 0.5 is chance.
        random_cosines, pair_cosines: samples for a picture: of random pairs, of co-clicked ones.
        variance: share of variance within the first 1, 2, … principal axes.
        norm_sample: lengths of some vectors.
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
    recall: Interval | None
    centred_recall: Interval | None
    probe: dict[str, float]
    random_cosines: np.ndarray
    pair_cosines: np.ndarray
    variance: np.ndarray
    norm_sample: np.ndarray


@dataclass(frozen=True)
class Inspection:
    """All sets of a contract.

    Args:
        items: of the catalogue.
        pairs: co-clicked pairs that were looked up.
        random_recall: of a set that knows nothing.
        popular_recall: of always naming the 10 most clicked items.
        sets: one report each.
        overlap: for two sets, the share of an item's 10 nearest that both agree on.
    """

    items: int
    pairs: int
    random_recall: float
    popular_recall: float
    sets: tuple[SetReport, ...]
    overlap: dict[tuple[str, str], float]


def inspect(feature_set: FeatureSet, sets: list[ItemVectors], seed: int = 1) -> Inspection:
    """Measure every set against the clicks and tags of the training window.

    Args:
        feature_set: whose clicks and item columns are read.
        sets: vectors as their files hold them, on the rows of the feature set's catalogue.
        seed: of what is sampled.
    """
    rng = np.random.default_rng(seed)
    clicked = _clicked_items(feature_set)
    pairs = _next_clicks(feature_set, rng)
    clicks_I = np.bincount(clicked, minlength=feature_set.schema.items)
    popular = np.argsort(-clicks_I, kind="stable")[:NEAREST]
    items = feature_set.schema.items - FIRST_VALUE
    reports = tuple(_report(one, feature_set, clicked, pairs, rng) for one in sets)
    overlap = {
        (one.name, other.name): _overlap(one, other, rng)
        for place, one in enumerate(sets)
        for other in sets[place + 1 :]
    }
    return Inspection(
        items=items,
        pairs=len(pairs),
        random_recall=min(NEAREST / max(items - 1, 1), 1.0),
        popular_recall=float(np.isin(pairs[:, 1], popular).mean()) if len(pairs) else 0.0,
        sets=reports,
        overlap=overlap,
    )


def _report(
    one: ItemVectors, feature_set: FeatureSet, clicked: np.ndarray, pairs: np.ndarray, rng: np.random.Generator
) -> SetReport:
    rows = np.flatnonzero(one.present_I)
    vectors_IW = one.vectors_IW[rows]
    sample = vectors_IW[rng.permutation(len(rows))[:SAMPLED]].astype(np.float64)
    length = np.linalg.norm(sample, axis=1)
    unit = sample / np.maximum(length, 1e-12)[:, None]
    variance = np.maximum(np.linalg.eigvalsh(np.cov(sample, rowvar=False, bias=True).reshape(one.width, -1))[::-1], 0)
    first, second = rng.integers(len(unit), size=(2, SAMPLED))
    random_cosines = (unit[first] * unit[second]).sum(1)[first != second]
    place_I = np.full(len(one.present_I), -1)
    place_I[rows] = np.arange(len(rows))
    found = place_I[pairs]
    found = found[(found >= 0).all(1)]
    plain = _unit(vectors_IW)
    return SetReport(
        name=one.name,
        width=one.width,
        items_covered=one.coverage,
        clicks_covered=float(one.present_I[clicked].mean()) if len(clicked) else 0.0,
        norms=tuple(np.quantile(length, [0, 0.05, 0.5, 0.95, 1]).tolist()),
        dead_dimensions=int((vectors_IW.min(0) == vectors_IW.max(0)).sum()),
        effective_dimension=float(variance.sum() ** 2 / max((variance**2).sum(), 1e-300)),
        anisotropy=float(random_cosines.mean()) if len(random_cosines) else 1.0,
        duplicates=_duplicates(vectors_IW),
        recall=_recall(plain, found, rng),
        centred_recall=_recall(_unit(vectors_IW - vectors_IW.mean(0)), found, rng),
        probe=_probe(feature_set, rows, vectors_IW, rng),
        random_cosines=random_cosines,
        pair_cosines=(plain[found[:, 0]] * plain[found[:, 1]]).sum(1),
        variance=np.cumsum(variance) / max(variance.sum(), 1e-300),
        norm_sample=length,
    )


def _clicked_items(feature_set: FeatureSet) -> np.ndarray:
    parts = [part["item"][part["label"] == 1] for part in feature_set.rows("train")]
    return np.concatenate(parts)


def _next_clicks(feature_set: FeatureSet, rng: np.random.Generator) -> np.ndarray:
    """Pairs of different items that a user clicked one after the other, int [P, 2]; rows stand by user and time."""
    found = []
    for part in feature_set.rows("train"):
        taken = part["label"] == 1
        user, item = part["user"][taken], part["item"][taken]
        follows = (user[1:] == user[:-1]) & (item[1:] != item[:-1])
        found.append(np.stack([item[:-1][follows], item[1:][follows]], axis=1))
    pairs = np.concatenate(found)
    return pairs[rng.permutation(len(pairs))[:PAIRS]]


def _unit(vectors_IW: np.ndarray) -> np.ndarray:
    return vectors_IW / np.maximum(np.linalg.norm(vectors_IW, axis=1, keepdims=True), 1e-12)


def _recall(unit_IW: np.ndarray, pairs_P2: np.ndarray, rng: np.random.Generator) -> Interval | None:
    """Share of pairs whose second item is among the 10 nearest of the first, by blocks of rows."""
    if not len(pairs_P2):
        return None
    hit_P = np.empty(len(pairs_P2), bool)
    for start in range(0, len(pairs_P2), BLOCK):
        first, second = pairs_P2[start : start + BLOCK].T
        cosine = unit_IW[first] @ unit_IW.T
        rows = np.arange(len(first))
        wanted = cosine[rows, second].copy()
        cosine[rows, first] = -np.inf
        hit_P[start : start + BLOCK] = (cosine > wanted[:, None]).sum(1) < NEAREST
    draws = rng.binomial(len(hit_P), hit_P.mean(), BOOTSTRAPS) / len(hit_P)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(float(hit_P.mean()), float(low), float(high))


def _duplicates(vectors_IW: np.ndarray) -> float:
    as_bytes = np.ascontiguousarray(vectors_IW).view([("", vectors_IW.dtype)] * vectors_IW.shape[1]).reshape(-1)
    _, inverse, counts = np.unique(as_bytes, return_inverse=True, return_counts=True)
    return float((counts[inverse] > 1).mean())


def _probe(
    feature_set: FeatureSet, rows: np.ndarray, vectors_IW: np.ndarray, rng: np.random.Generator
) -> dict[str, float]:
    """Mean AUC of a ridge regression for each frequent value of a column, fitted on half of the items."""
    result = {}
    order = rng.permutation(len(rows))
    half = len(rows) // 2
    spread = vectors_IW.std(0)
    inputs = (vectors_IW - vectors_IW.mean(0)) / np.where(spread > 0, spread, 1)
    fit, held = inputs[order[:half]].astype(np.float64), inputs[order[half:]].astype(np.float64)
    inverse = np.linalg.inv(fit.T @ fit + RIDGE * np.eye(fit.shape[1])) @ fit.T
    for field in feature_set.schema.item[1:]:
        if field.kind == "numeric":
            continue
        tagged = _tagged(field, feature_set.items[field.name][rows])
        if not tagged.shape[1]:
            continue
        score = held @ (inverse @ (tagged[order[:half]] - tagged[order[:half]].mean(0)))
        aucs = [_auc(tagged[order[half:], tag], score[:, tag]) for tag in range(tagged.shape[1])]
        known = [auc for auc in aucs if auc is not None]
        if known:
            result[field.name] = float(np.mean(known))
    return result


def _tagged(field: Field, values: np.ndarray) -> np.ndarray:
    """Which items have each of the most frequent values, float [I, tags]."""
    lists = values.reshape(len(values), -1)
    counts = np.bincount(lists.reshape(-1), minlength=field.size)
    counts[: UNKNOWN + 1] = 0
    usual = [tag for tag in np.argsort(-counts, kind="stable")[:MOST_TAGS] if counts[tag] >= FEWEST_TAGGED]
    return (
        np.stack([(lists == tag).any(1) for tag in usual], axis=1).astype(float)
        if usual
        else np.empty((len(values), 0))
    )


def _auc(label: np.ndarray, score: np.ndarray) -> float | None:
    positive = label == 1
    if not positive.any() or positive.all():
        return None
    rank = np.empty(len(score))
    rank[np.argsort(score, kind="stable")] = np.arange(len(score))
    above = rank[positive].sum() - positive.sum() * (positive.sum() - 1) / 2
    return float(above / (positive.sum() * (~positive).sum()))


def _overlap(one: ItemVectors, other: ItemVectors, rng: np.random.Generator) -> float:
    both = np.flatnonzero(one.present_I & other.present_I)
    if len(both) <= NEAREST + 1:
        return 0.0
    asked = rng.permutation(len(both))[:BLOCK]
    near = [_nearest(_unit(vectors.vectors_IW[both]), asked) for vectors in (one, other)]
    return float(np.mean([len(set(a) & set(b)) / NEAREST for a, b in zip(*near, strict=True)]))


def _nearest(unit_IW: np.ndarray, asked: np.ndarray) -> np.ndarray:
    cosine = unit_IW[asked] @ unit_IW.T
    cosine[np.arange(len(asked)), asked] = -np.inf
    return np.argpartition(-cosine, NEAREST, axis=1)[:, :NEAREST]
