from __future__ import annotations

import numpy as np
import pytest

from ctr.metrics import auc
from ctr.significance import seeded_aucs
from features.errors import DataError


def drawn(rows: int = 2000, seeds: int = 3) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    signal = draw.normal(size=rows)
    labels = (signal + draw.normal(size=rows) > 0).astype(float)
    return labels, signal + 0.3 * draw.normal(size=(seeds, rows))


def test_the_value_is_the_mean_over_seeds():
    labels, scores_SN = drawn()
    found = seeded_aucs(labels, {"a": scores_SN}, resamples=50)["a"]
    interval = found.interval()
    assert interval.value == pytest.approx(np.mean([auc(labels, one) for one in scores_SN]))
    assert interval.low < interval.value < interval.high


def test_a_ranker_is_not_better_than_itself_and_pairing_is_sharp():
    labels, scores_SN = drawn()
    worse = scores_SN + 0.2 * np.random.default_rng(1).normal(size=scores_SN.shape)
    found = seeded_aucs(labels, {"a": scores_SN[:1], "again": scores_SN[:1], "worse": worse[:1]}, resamples=200)
    same = found["a"].minus(found["again"])
    assert (same.value, same.low, same.high) == (0, 0, 0)
    difference = found["a"].minus(found["worse"])
    assert difference.low > 0
    # Hard rows are hard for both: the difference is known better than either value.
    own = found["a"].interval()
    assert difference.high - difference.low < 0.7 * (own.high - own.low)


def test_seeds_that_differ_widen_the_interval():
    labels, scores_SN = drawn()
    spread = np.stack([scores_SN[0], scores_SN[1] + 3 * np.random.default_rng(2).normal(size=len(labels))])
    found = seeded_aucs(labels, {"one": spread[:1], "both": spread}, resamples=200)
    widths = {name: one.interval().high - one.interval().low for name, one in found.items()}
    assert widths["both"] > 2 * widths["one"]


def test_what_cannot_be_compared_is_refused():
    labels, scores_SN = drawn()
    with pytest.raises(DataError, match="scores of a"):
        seeded_aucs(labels, {"a": scores_SN[:, :-1]})
    with pytest.raises(DataError, match="both classes"):
        seeded_aucs(np.ones(len(labels)), {"a": scores_SN})
