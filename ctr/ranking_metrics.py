"""Metrics of ranked lists, one list a request: AUC, MRR and nDCG as the MIND benchmark defines them, with intervals.

Shapes: N rows, G groups that have both classes.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from ctr.metrics import group_aucs
from features.errors import DataError
from features.feature_set import FeatureSet, SplitName

CUTS = (5, 10)
RESAMPLES = 1000


def requests_of(feature_set: FeatureSet, split: SplitName) -> np.ndarray | None:
    """The request of each row, int64 [N]; None where the log names none, or not for every row."""
    parts = feature_set.rows(split)
    if not all("request" in part for part in parts):
        return None
    requests = np.concatenate([part["request"] for part in parts]).astype(np.int64)
    return requests if len(requests) and requests.min() >= 0 else None


def groups_of(feature_set: FeatureSet, split: SplitName) -> np.ndarray:
    """What a list is shown to, [N]: the request of each row, or its user where the log names no requests."""
    requests = requests_of(feature_set, split)
    return np.concatenate([part["user"] for part in feature_set.rows(split)]) if requests is None else requests


def ranking_metrics(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Mean over groups, unweighted, with the 95 % interval that other groups of the kind would have given.

        group_auc   chance that a clicked row outranks one that was not
        mrr         Σ (label / rank) / Σ label
        ndcg_k      Σ_{rank <= k} label / log2(rank + 1), over the same sum of the best order

    (Wu et al. 2020, "MIND: A Large-scale Dataset for News Recommendation".) A group of one class is left out. Rows of
    equal score share the mean of what their ranks would give, so that row order never matters.

    Args:
        labels: 0 or 1, [N].
        scores: any finite numbers that rank, [N].
        groups: request or user of each row, [N].
        seed: of the bootstrap.

    Returns:
        `group_auc`, `mrr`, `ndcg_5`, `ndcg_10`, each with `_low` and `_high`; and `groups`, how many there are.

    Raises:
        DataError: no group has both classes.
        NumericalError: a score is not finite.
    """
    auc_G, *_ = group_aucs(labels, scores, groups)
    if not len(auc_G):
        raise DataError(f"none of the {len(np.unique(groups)):,} groups has both labels: there is no list to judge.")
    table = _ranked(labels, scores, groups)
    by_group = {"group_auc": auc_G} | {name: table[name].to_numpy() for name in ("mrr", *(f"ndcg_{k}" for k in CUTS))}
    values_GM = np.stack(list(by_group.values()), axis=1)
    generator = np.random.default_rng(seed)
    groups_drawn = (generator.integers(0, len(values_GM), len(values_GM)) for _ in range(RESAMPLES))
    # How often each was drawn, times its values: five times faster than gathering them.
    drawn = np.stack([np.bincount(one, minlength=len(values_GM)) @ values_GM for one in groups_drawn]) / len(values_GM)
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    result: dict[str, float] = {"groups": float(len(values_GM))}
    for place, name in enumerate(by_group):
        result |= {
            name: float(values_GM[:, place].mean()),
            f"{name}_low": float(low[place]),
            f"{name}_high": float(high[place]),
        }
    return result


def _ranked(labels: np.ndarray, scores: np.ndarray, groups: np.ndarray) -> pl.DataFrame:
    """One row a group with both classes: mrr and ndcg."""
    rank = pl.col("rank").cast(pl.Float64)
    ideal = pl.col("ideal").cast(pl.Float64)
    label = pl.col("label")
    gains = {f"gain_{k}": pl.when(rank <= k).then(1 / (rank + 1).log(2)).otherwise(0.0) for k in CUTS}
    best = {f"best_{k}": pl.when(ideal <= k).then(label / (ideal + 1).log(2)).otherwise(0.0) for k in CUTS}
    frame = pl.DataFrame({"group": np.asarray(groups), "label": np.asarray(labels, np.float64), "score": scores})
    in_group = frame.filter(
        (pl.col("label").sum().over("group") > 0) & (pl.col("label").sum().over("group") < pl.len().over("group"))
    )
    placed = in_group.with_columns(
        rank=pl.col("score").rank("ordinal", descending=True).over("group"),
        ideal=pl.col("label").rank("ordinal", descending=True).over("group"),
    ).with_columns(gain_mrr=1 / rank, **gains, **best)
    # Ties share the mean of their places.
    names = ["gain_mrr", *gains]
    shared = placed.with_columns(pl.col(name).mean().over("group", "score") for name in names)
    return shared.group_by("group", maintain_order=True).agg(
        mrr=(pl.col("gain_mrr") * label).sum() / label.sum(),
        **{f"ndcg_{k}": (pl.col(f"gain_{k}") * label).sum() / pl.col(f"best_{k}").sum() for k in CUTS},
    )
