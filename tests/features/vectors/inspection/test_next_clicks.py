"""Recall of what is clicked next, by hand and against a literal reference; the tag probe's AUC, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

import features.vectors.inspection.next_clicks as next_clicks
from features.build.build import build_feature_set
from features.contract.contract import Contract
from features.store.feature_set import FeatureSet
from features.store.schema import FIRST_VALUE
from features.vectors.inspection.next_clicks import interval, popular_hits, read_clicks, recall_hits
from features.vectors.inspection.report import _duplicates
from features.vectors.inspection.tag_probe import auc, probe


def as_they_are(vectors_IW: np.ndarray) -> np.ndarray:
    return np.zeros(vectors_IW.shape[1], np.float32)


def test_the_ten_nearest_by_hand() -> None:
    angles = np.linspace(0, 3, 30)
    vectors_IW = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    # Of item 0, items 1 to 10 are the nearest; item 11 is not, nor is 25.
    pairs_P2 = np.array([[0, 1], [0, 10], [0, 11], [0, 25]])
    assert recall_hits(vectors_IW, as_they_are(vectors_IW), pairs_P2, np.arange(30)).tolist() == [1, 1, 0, 0]
    # Among the even items alone, 2, 4, … 20 are its nearest.
    assert recall_hits(
        vectors_IW, as_they_are(vectors_IW), np.array([[0, 20], [0, 22]]), np.arange(0, 30, 2)
    ).tolist() == [
        1,
        0,
    ]


def test_equally_near_items_share_the_places_that_are_left() -> None:
    # Item 0 has 4 items at cosine 1 (1 to 4) and 12 at cosine 0 (5 to 16): these share 10 - 4 places.
    vectors_IW = np.array([[1, 0]] * 5 + [[0, 1]] * 12 + [[-1, 0]] * 3, np.float32)
    hits = recall_hits(vectors_IW, as_they_are(vectors_IW), np.array([[0, 3], [0, 9], [0, 18]]), np.arange(20))
    assert hits.tolist() == [1, 6 / 12, 0]


def test_vectors_of_zeros_find_what_chance_finds() -> None:
    hits = recall_hits(
        np.zeros((41, 3), np.float32), np.zeros(3, np.float32), np.array([[0, 1], [7, 40]]), np.arange(41)
    )
    assert hits.tolist() == [10 / 40, 10 / 40]


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against all cosines at once, sorted; in blocks of 7 candidates and 5 items asked for."""
    rng = np.random.default_rng(0)
    vectors_IW = rng.normal(size=(60, 6)).astype(np.float32)
    candidates_C = np.sort(rng.permutation(60)[:45])
    pairs_P2 = rng.choice(candidates_C, size=(80, 2))
    pairs_P2 = pairs_P2[pairs_P2[:, 0] != pairs_P2[:, 1]]
    mean_W = vectors_IW[candidates_C].mean(axis=0)
    centred = vectors_IW.astype(np.float64) - mean_W
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    literal = [
        second in sorted((one for one in candidates_C if one != first), key=lambda one: -unit[first] @ unit[one])[:10]
        for first, second in pairs_P2
    ]
    monkeypatch.setattr("features.vectors.transforms.BLOCK", 7)
    monkeypatch.setattr(next_clicks, "ASKED_A_BLOCK", 5)
    assert recall_hits(vectors_IW, mean_W, pairs_P2, candidates_C).tolist() == [float(one) for one in literal]
    assert 0 < np.mean(literal) < 1


def test_the_most_clicked_by_hand() -> None:
    clicks_I = np.array([0, 0, *range(20, 0, -1)])  # items 2, 3, 4, … from the most clicked down
    candidates_C = np.arange(2, 22)
    # Items 2 to 11 are the ten most clicked. Who asks from within them leaves room for item 12.
    pairs_P2 = np.array([[20, 11], [20, 12], [5, 12], [5, 13], [12, 2]])
    assert popular_hits(clicks_I, pairs_P2, candidates_C).tolist() == [True, False, True, False, True]
    # Without items 2 to 4, room is left up to item 14.
    assert popular_hits(clicks_I, np.array([[20, 14], [20, 15]]), candidates_C[3:]).tolist() == [True, False]


def test_pairs_of_one_user_are_one_witness() -> None:
    """100 users of 25 pairs, all found or none: as wide as 100 pairs, not as 2,500 (1.96 · 0.5 / √100 ≈ 0.098)."""
    user_P = np.repeat(np.arange(100), 25)
    together = interval((user_P % 2).astype(float), user_P, seed=0)
    assert together.value == 0.5 and 0.07 < 0.5 - together.low < 0.13 and 0.07 < together.high - 0.5 < 0.13
    alone = interval((user_P % 2).astype(float), np.arange(2500), seed=0)
    assert 0.01 < alone.high - alone.value < 0.03


def clicked(folder: Path) -> FeatureSet:
    rows = [
        # user, item, second, clicked: user 1 clicks a, (not b), c, c, d; user 2 clicks d; user 3 clicks b, a.
        (1, "a", 1, 1),
        (1, "b", 2, 0),
        (1, "c", 3, 1),
        (1, "c", 4, 1),
        (2, "d", 5, 1),
        (1, "d", 6, 1),
        (3, "b", 7, 1),
        (3, "a", 8, 1),
        (1, "a", 9, 1),  # valid
        (1, "b", 10, 1),  # test
    ]
    pl.DataFrame(rows, schema=["user", "item", "time", "clicked"], orient="row").with_columns(
        time=pl.col("time") + 1_700_000_000
    ).write_parquet(folder / "log.parquet")
    contract = Contract.model_validate(
        {
            "name": "hand",
            "root": str(folder),
            "interactions": {"path": "log.parquet", "user": "user", "item": "item", "time": "time", "label": "clicked"},
            "split": {"by": "time", "valid": 0.1, "test": 0.1},
        }
    )
    return build_feature_set(contract, folder / "out").feature_set


def test_next_clicks_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = clicked(tmp_path)
    found = read_clicks(built, seed=0)
    a, b, c, d = range(FIRST_VALUE, FIRST_VALUE + 4)
    assert sorted(map(tuple, found.pairs_P2.tolist())) == sorted([(a, c), (c, d), (b, a)])
    assert found.clicks_I.tolist() == [0, 0, 2, 1, 2, 2] and found.trained_I.tolist() == [False, False, *[True] * 4]
    by_pair = dict(zip(map(tuple, found.pairs_P2.tolist()), found.user_P.tolist(), strict=True))
    assert by_pair[a, c] == by_pair[c, d] != by_pair[b, a]
    monkeypatch.setattr(next_clicks, "PAIRS", 1)
    drawn = {tuple(read_clicks(built, seed).pairs_P2[0].tolist()) for seed in range(30)}
    assert drawn == {(a, c), (c, d), (b, a)}


def test_duplicates_by_hand() -> None:
    vectors = np.array([[9, 9], [1, 0], [1, -0.0], [2, 1], [0, 0], [1, 0], [2, 1]], np.float32)
    assert _duplicates(vectors, np.array([1, 2, 3, 4, 5])) == pytest.approx(3 / 5)


def test_auc_by_hand() -> None:
    assert auc(np.array([0, 1, 0, 1]), np.array([0.1, 0.4, 0.35, 0.8])) == 1.0
    assert auc(np.array([1, 0, 0, 1]), np.array([0.1, 0.4, 0.35, 0.8])) == 0.5
    assert auc(np.array([0, 1, 1]), np.array([0.5, 0.5, 0.7])) == 0.75
    assert auc(np.array([1, 1]), np.array([0.1, 0.4])) is None


def test_the_probe_asks_for_frequent_tags_alone() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(400, 5))
    told = np.where(vectors[:, 0] > 0, 2, 3)  # the first dimension says it
    rare = np.where(np.arange(400) < 10, 2, 1)  # 10 items have a value, the others none that is known
    lists = np.stack([np.where(vectors[:, 1] > 0, 2, 0), rng.integers(3, 5, size=400)], axis=1)
    found = probe(vectors, {"told": told, "rare": rare, "lists": lists}, seed=1)
    assert set(found) == {"told", "lists"}
    assert found["told"] > 0.98
    assert 0.6 < found["lists"] < 0.75  # one value of three is told (AUC 1), two are not (0.5)
