"""What item vectors say of an item's tags: a small ridge regression, judged on items it has not seen.

Shapes: S items, W dimensions, T tags.
"""

from __future__ import annotations

import numpy as np

from features.store.schema import UNKNOWN

FEWEST_TAGGED = 20  # items of a tag: of fewer, those held out do not say how well it is told
MOST_TAGS = 12  # the most frequent ones of a column are asked for
RIDGE = 10.0  # penalty on standardised dimensions: as much as ten items' worth of evidence


def probe(vectors_SW: np.ndarray, columns: dict[str, np.ndarray], seed: int) -> dict[str, float]:
    """How well vectors tell each item column: mean AUC over its most frequent values; 0.5 is chance.

    A ridge regression of each value's presence is fitted on a random half of the items and judged on the other. A
    column without a value that is frequent enough is left out.

    Args:
        vectors_SW: float32 [S, width].
        columns: indices of the same items by column, int32 [S] or [S, max_len]; 0 and 1 say nothing.
        seed: of the halves.
    """
    order = np.random.default_rng(seed).permutation(len(vectors_SW))
    fitted, held = np.array_split(order, 2)
    inputs_SW = vectors_SW.astype(np.float64)
    inputs_SW -= inputs_SW[fitted].mean(axis=0)
    spread_W = inputs_SW[fitted].std(axis=0)
    inputs_SW /= np.where(spread_W > 0, spread_W, 1)
    gram_WW = inputs_SW[fitted].T @ inputs_SW[fitted] + RIDGE * np.eye(inputs_SW.shape[1])
    result = {}
    for name, column in columns.items():
        tagged_ST = _tagged(column)
        weights_WT = np.linalg.solve(
            gram_WW, inputs_SW[fitted].T @ (tagged_ST[fitted] - tagged_ST[fitted].mean(axis=0))
        )
        scores_ST = inputs_SW[held] @ weights_WT
        aucs = [auc(tagged_ST[held, tag], scores_ST[:, tag]) for tag in range(tagged_ST.shape[1])]
        told = [tag_auc for tag_auc in aucs if tag_auc is not None]
        if told:
            result[name] = float(np.mean(told))
    return result


def auc(label_S: np.ndarray, score_S: np.ndarray) -> float | None:
    """Area under the ROC curve, ties counted half; None where all labels are the same."""
    from scipy.stats import rankdata

    positive_S = label_S == 1
    positives, negatives = int(positive_S.sum()), int((~positive_S).sum())
    if not positives or not negatives:
        return None
    above = rankdata(score_S)[positive_S].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def _tagged(column: np.ndarray) -> np.ndarray:
    """Which items have each of the column's most frequent values, float64 [S, T]."""
    lists_SL = column.reshape(len(column), -1)
    values, counts = np.unique(lists_SL[lists_SL > UNKNOWN], return_counts=True)
    most = values[np.argsort(-counts, kind="stable")][:MOST_TAGS]
    tagged_ST = np.stack([(lists_SL == value).any(axis=1) for value in most], axis=1) if len(most) else lists_SL[:, :0]
    return tagged_ST[:, tagged_ST.sum(axis=0) >= FEWEST_TAGGED].astype(np.float64)
