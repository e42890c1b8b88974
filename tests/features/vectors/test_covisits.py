"""Vectors learned from pasts: co-occurrences, associations and vectors worked out by hand, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.errors import DataError
from features.vectors.covisits import CoOccurrences, PastEvents, associations, co_occurrences, learn_sets
from features.vectors.read import learned_file
from tests.features.vector_files import contract_of

# The first user saw a b c a a, the second one a b: a row an event.
TOY = PastEvents(np.array([1, 1, 1, 1, 1, 2, 2]), pl.Series("item", list("abcaaab")))


def counts(found: CoOccurrences) -> dict[str, int]:
    ids = found.ids.to_list()
    return {ids[i] + ids[j]: n for (i, j), n in zip(found.pairs_P2.tolist(), found.count_P.tolist(), strict=True)}


@pytest.mark.parametrize(
    ("neighbours", "expected"),
    [
        # a-b b-c c-a, not a-a; a-b.
        (1, {"ab": 2, "bc": 1, "ac": 1}),
        # And a-c b-a c-a of the first user; nothing of the last of one user and the first of the next.
        (2, {"ab": 3, "bc": 1, "ac": 3}),
        (3, {"ab": 4, "bc": 1, "ac": 3}),
    ],
)
def test_different_items_of_one_past_meet_within_so_many_events(neighbours, expected):
    assert counts(co_occurrences(TOY, neighbours)) == expected


def test_without_events_nothing_meets():
    assert len(co_occurrences(PastEvents(np.empty(0, np.int64), pl.Series("item", [], pl.Int64))).count_P) == 0


def toy_matrix(shift: float) -> np.ndarray:
    found: np.ndarray = associations(co_occurrences(TOY, 1), shift).toarray()
    return found


def test_associations_are_logarithms_of_how_much_more_often_than_by_chance_items_met():
    # n_ab 2, n_bc 1, n_ac 1: n_a 3, n_b 3, n_c 2, n 8. ab: 2 * 8 / 9; bc and ac: 1 * 8 / 6.
    ab, c = np.log(16 / 9), np.log(4 / 3)
    np.testing.assert_allclose(toy_matrix(1), [[0, ab, c], [ab, 0, c], [c, c, 0]], atol=1e-12)


def test_a_shift_is_taken_away_and_nothing_is_below_zero():
    ab = np.log(16 / 9 / 1.5)
    np.testing.assert_allclose(toy_matrix(1.5), [[0, ab, 0], [ab, 0, 0], [0, 0, 0]], atol=1e-12)


def learn(folder: Path, events: PastEvents, **over: Any) -> tuple[pl.DataFrame, dict[str, dict[str, int]]]:
    contract = contract_of(folder, {"co": {"path": None, "learn": "history", **over}})
    report = learn_sets(contract, {"history": events}, folder)
    return pl.read_parquet(learned_file(folder, "co")), report


def star(points: int) -> PastEvents:
    """Each user saw the hub 0 and one of the points 1, 2, …"""
    return PastEvents(np.repeat(np.arange(points), 2), pl.Series([x for i in range(points) for x in (0, i + 1)]))


def test_vectors_are_singular_vectors_times_roots_of_singular_values(tmp_path):
    # Of 3 points: n_0i 1, n_0 3, n_i 1, n 6: each association is log(6 / 3). The greatest singular value of a star of
    # three edges x is √3 x, twice; its two directions hold the hub alone and the points alone.
    table, _ = learn(tmp_path, star(3), width=2)
    vectors = np.stack(table["vector"].to_list())
    x = np.log(2)
    gram = np.zeros((4, 4))
    gram[0, 0] = np.sqrt(3) * x
    gram[1:, 1:] = np.sqrt(3) * x / 3
    np.testing.assert_allclose(vectors @ vectors.T, gram, atol=1e-6)


def test_items_that_users_share_are_near_each_other(tmp_path):
    draw = np.random.default_rng(0)
    # 40 users see 12 items each of one of two groups of 20.
    items = [draw.permutation(20)[:12] + 20 * (user % 2) for user in range(40)]
    table, _ = learn(tmp_path, PastEvents(np.repeat(np.arange(40), 12), pl.Series(np.concatenate(items))), width=2)
    unit = np.stack(table["vector"].to_list())
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    group = table["item_id"].to_numpy() // 20
    cosines = unit @ unit.T
    assert cosines[group[:, None] == group].min() > 0.9 > 0.1 > abs(cosines[group[:, None] != group]).max()


def test_an_item_that_never_meets_another_has_no_vector(tmp_path):
    alone = PastEvents(np.r_[np.repeat(np.arange(3), 2), 9], pl.Series([0, 1, 0, 2, 0, 3, 7]))
    table, report = learn(tmp_path, alone, width=2)
    assert table["item_id"].to_list() == [0, 1, 2, 3]
    assert report == {"co": {"events": 7, "pairs": 3, "items": 4}}


def test_an_item_that_no_direction_holds_has_no_vector(tmp_path):
    # Items 50 and 51 co-occur with each other alone: log(1202) against log(1.2) of the six that all co-occur 40 times.
    events = PastEvents(np.r_[np.repeat(np.arange(40), 6), 99, 99], pl.Series(np.r_[np.tile(np.arange(6), 40), 50, 51]))
    table, _ = learn(tmp_path, events, width=1)
    assert table["item_id"].to_list() == [50, 51]


def test_the_file_follows_from_the_events_alone(tmp_path):
    written = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        np.random.default_rng(len(written)).normal(size=1000)
        learn(folder, star(40), width=8)
        written.append(learned_file(folder, "co").read_bytes())
    assert written[0] == written[1]


def test_ids_may_be_text(tmp_path):
    table, _ = learn(tmp_path, TOY, width=2)
    assert table["item_id"].to_list() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("over", "words"),
    [
        (
            {"width": 5},
            r"embeddings.co: .* \(6 events\) 4 items co-occur .* more than 1 times .* fewer than the set's width 5",
        ),
        ({"width": 2, "shift": 2}, r"0 items co-occur with another one more than 2 times as often .* Lower its width"),
    ],
)
def test_too_few_co_occurrences_are_named(tmp_path, over, words):
    with pytest.raises(DataError, match=words):
        learn(tmp_path, star(3), **over)


def test_the_report_can_be_written_as_json(tmp_path):
    assert json.loads(json.dumps(learn(tmp_path, star(3), width=2)[1]))["co"]["items"] == 4
