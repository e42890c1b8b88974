"""Metrics of ranked lists, one list a request: AUC, MRR and nDCG as the MIND benchmark defines them, with intervals.

Shapes: N rows, G groups that have both classes, U users.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from ctr.data.loader import list_numbers
from ctr.evaluation.bootstrap import UserDraws, percentile_interval
from ctr.evaluation.metrics import group_aucs
from features.errors import DataError
from features.store.feature_set import FeatureSet, SplitName

CUTS = (5, 10)


def requests_of(feature_set: FeatureSet, split: SplitName) -> np.ndarray | None:
    """Which request each row belongs to, numbered from 0, int64 [N]; None if the log does not name one for every row.

    A request is told by its user and its id, since logs may number the requests of each user on their own. As in
    training, one over midnight is two where the split is by days.
    """
    parts = feature_set.rows(split)
    if not sum(len(part["user"]) for part in parts) or not all("request" in part for part in parts):
        return None
    if any((part["request"] < 0).any() for part in parts):
        return None
    part_N = np.repeat(np.arange(len(parts)), [len(part["user"]) for part in parts])
    user_N, request_N = (np.concatenate([part[name] for part in parts]) for name in ("user", "request"))
    return list_numbers(request_N, user_N, part_N).astype(np.int64)


def groups_of(feature_set: FeatureSet, split: SplitName) -> np.ndarray:
    """The list that each row belongs to, [N]: its request, or its user if the log names no requests."""
    requests = requests_of(feature_set, split)
    return np.concatenate([part["user"] for part in feature_set.rows(split)]) if requests is None else requests


def list_auc(labels: np.ndarray, scores: np.ndarray, lists: np.ndarray, weights: np.ndarray) -> float:
    """The `group_auc` of `ranking_metrics`, alone; NaN if no list has both classes and a weight.

    Args:
        labels: 0 or 1, [N].
        scores: any finite numbers that rank, [N].
        lists: that each row belongs to, [N].
        weights: row weights, [N]; the weight of a list is the mean weight of its rows.

    Raises:
        NumericalError: a score is not finite.
    """
    _, weight_G = judged_lists(labels, lists, weights)
    if not weight_G.sum() > 0:
        return float("nan")
    auc_G, _ = group_aucs(labels, scores, lists)
    return float(np.average(auc_G, weights=weight_G))


def judged_lists(labels: np.ndarray, lists: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First row and mean row weight of each list of both classes, [G] each, in the order of `group_aucs`."""
    _, first_L, list_N = np.unique(lists, return_index=True, return_inverse=True)
    rows_L, positive_L = np.bincount(list_N), np.bincount(list_N, labels)
    kept_L = np.flatnonzero((positive_L > 0) & (positive_L < rows_L))
    kept_L = kept_L[np.argsort(first_L[kept_L])]
    return first_L[kept_L], (np.bincount(list_N, weights) / rows_L)[kept_L]


def ranking_metrics(
    labels: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray,
    weights: np.ndarray | None = None,
    *,
    clusters: np.ndarray,
    seed: int = 0,
) -> dict[str, float]:
    """Means over groups, with the 95 % percentile interval that other users would have given.

        group_auc   chance that a clicked row outranks one that was not
        mrr         Σ (label / rank) / Σ label
        ndcg_k      Σ_{rank <= k} label / log2(rank + 1), over the same sum of the best order

    (Wu et al. 2020, "MIND: A Large-scale Dataset for News Recommendation".) A group of one class is left out. Rows of
    equal score each count the mean over their ranks, so row order has no effect.

    Args:
        labels: 0 or 1, [N].
        scores: any finite numbers that rank, [N].
        groups: request or user of each row, [N].
        weights: row weights, [N]; none means ones. The weight of a list is the mean weight of its rows; within
            a list, weights have no effect.
        clusters: user of each row, [N]; the bootstrap draws users with all of their lists. A list belongs to the user
            of its first row.
        seed: of the bootstrap.

    Returns:
        `group_auc`, `mrr`, `ndcg_5`, `ndcg_10`, each with `_low` and `_high` if two users or more have a weight; and
        `groups`, the number of groups with both classes.

    Raises:
        DataError: no group has both classes, or all groups that have them weigh 0.
        NumericalError: a score is not finite.
    """
    auc_G, _ = group_aucs(labels, scores, groups)
    if not len(auc_G):
        raise DataError(
            f"none of the {len(np.unique(groups)):,} groups has both labels, so no list can be judged. "
            "Choose a split with clicks."
        )
    table = _ranked(labels, scores, groups, np.ones(len(labels)) if weights is None else weights, clusters)
    weight_G, users = table["weight"].to_numpy(), UserDraws(table["cluster"].to_numpy())
    if not weight_G.sum() > 0:
        raise DataError(
            f"weights: the {len(auc_G):,} groups that have both labels weigh 0. Check `interactions.weight`."
        )
    by_group = {"group_auc": auc_G} | {name: table[name].to_numpy() for name in ("mrr", *(f"ndcg_{k}" for k in CUTS))}
    # The last column is the weight itself: sums over drawn users, divided by it, are the means of a resample.
    weighed_GM = np.stack([*by_group.values(), np.ones_like(auc_G)], axis=1) * weight_G[:, None]
    total_M = weighed_GM.sum(axis=0)
    result: dict[str, float] = {"groups": float(len(auc_G))}
    result |= {name: float(total_M[place] / total_M[-1]) for place, name in enumerate(by_group)}
    sums_UM = users.sums(weighed_GM)
    if np.count_nonzero(sums_UM[:, -1]) > 1:
        drawn_BM = np.stack([times_U @ sums_UM for times_U in users.by_user(seed)])
        drawn_BM = drawn_BM[drawn_BM[:, -1] > 0]  # a resample of users without a weight has no mean
        low, high = percentile_interval(drawn_BM[:, :-1] / drawn_BM[:, -1:])
        for place, name in enumerate(by_group):
            result |= {f"{name}_low": float(low[place]), f"{name}_high": float(high[place])}
    return result


def _ranked(
    labels: np.ndarray, scores: np.ndarray, groups: np.ndarray, weights: np.ndarray, clusters: np.ndarray
) -> pl.DataFrame:
    """A row for each group with both classes: mrr, ndcg, weight and user."""
    rank = pl.col("rank").cast(pl.Float64)
    ideal = pl.col("ideal").cast(pl.Float64)
    label = pl.col("label")
    gains = {f"gain_{k}": pl.when(rank <= k).then(1 / (rank + 1).log(2)).otherwise(0.0) for k in CUTS}
    best = {f"best_{k}": pl.when(ideal <= k).then(label / (ideal + 1).log(2)).otherwise(0.0) for k in CUTS}
    frame = pl.DataFrame(
        {
            "group": np.asarray(groups),
            "label": np.asarray(labels, np.float64),
            "score": scores,
            "weight": np.asarray(weights, np.float64),
            "cluster": np.asarray(clusters),
        }
    )
    in_group = frame.filter(
        (pl.col("label").sum().over("group") > 0) & (pl.col("label").sum().over("group") < pl.len().over("group"))
    )
    placed = in_group.with_columns(
        rank=pl.col("score").rank("ordinal", descending=True).over("group"),
        ideal=pl.col("label").rank("ordinal", descending=True).over("group"),
    ).with_columns(gain_mrr=1 / rank, **gains, **best)
    # Rows of equal score get the mean over their ranks.
    names = ["gain_mrr", *gains]
    shared = placed.with_columns(pl.col(name).mean().over("group", "score") for name in names)
    return shared.group_by("group", maintain_order=True).agg(
        weight=pl.col("weight").mean(),
        cluster=pl.col("cluster").first(),
        mrr=(pl.col("gain_mrr") * label).sum() / label.sum(),
        **{f"ndcg_{k}": (pl.col(f"gain_{k}") * label).sum() / pl.col(f"best_{k}").sum() for k in CUTS},
    )
