from __future__ import annotations

import json
from dataclasses import asdict
from math import log2
from types import SimpleNamespace

import numpy as np
import pytest

from ctr.evaluation.baselines import popularity_scores
from ctr.evaluation.catalog_coverage import ListMeasure, ValueCalibration, best_rows, gini, top_lists
from features.errors import ConfigError, DataError, NumericalError
from features.store.schema import Field, Schema
from features.store.versions import ROW, VALID_FROM, Versions, columns_as_of
from tests.toy import toy_feature_set

# Training: item 2 has 4 rows and 3 clicks, item 3 has 2 and 1, item 4 a row without a click, 5 and 6 nothing.
TRAIN = {"item": np.array([2, 2, 2, 2, 3, 3, 4]), "label": np.array([1, 1, 1, 0, 1, 0, 0], np.float32)}
# Two users of three rows: their lists of two are items 2, 3 and items 2, 5.
TEST = {
    "user": np.array([2, 3, 2, 3, 2, 3]),
    "item": np.array([2, 2, 3, 4, 5, 5]),
    "label": np.array([1, 0, 0, 0, 1, 1], np.float32),
}
SCORES = np.array([0.9, 0.8, 0.5, 0.2, 0.1, 0.6])


def by_hand(versions: dict[str, np.ndarray] | None = None, **columns: np.ndarray) -> SimpleNamespace:
    """As much of a feature set as lists read; `columns` replace those of the test rows."""
    test = {**TEST, **columns}
    rows = {"train": [TRAIN], "test": [{"time": np.arange(len(test["item"])), **test}]}
    fields = (
        Field(name="item_id", kind="categorical", size=4),
        Field(name="genre", kind="categorical", size=4),
        Field(name="director", kind="categorical", size=35),
        Field(name="tags", kind="tags", size=4, max_len=2),
        Field(name="price", kind="numeric"),
    )
    items = {
        "genre": np.array([0, 1, 2, 3, 3, 1, 2]),
        "tags": np.array([[0, 0], [1, 0], [2, 3], [0, 0], [2, 0], [3, 0], [2, 0]]),
    }
    return SimpleNamespace(
        rows=rows.__getitem__,
        schema=Schema(items=7, users=4, item=fields, user=fields[:1], history_max_len=1),
        items_as_of=lambda item, time: columns_as_of(items, versions and Versions(items, versions), item, time),
    )


def test_lists_by_hand():
    found = top_lists(by_hand(), "test", SCORES, k=2)
    assert (found.groups, found.groups_cut, found.rows, found.items) == (2, 2, 4, 4)
    assert found.coverage.listed == 3 / 4  # 2, 3 and 5 of 2, 3, 4 and 5
    # Listed 2, 1, 0, 1 times: 2 (0·1 + 1·2 + 1·3 + 2·4) / (4·4) - 5/4. Shown 2, 1, 1, 2 times: 2·17/(4·6) - 5/4.
    assert (found.gini.listed, found.gini.shown) == (pytest.approx(0.375), pytest.approx(1 / 6))
    # 7 training rows and one more for each of five items: items 2 to 5 have 5, 3, 2 and 1 of 12.
    listed = (2 * log2(12 / 5) + log2(4) + log2(12)) / 4
    shown = (2 * log2(12 / 5) + log2(4) + log2(6) + 2 * log2(12)) / 6
    assert (found.novelty.listed, found.novelty.shown) == (pytest.approx(listed), pytest.approx(shown))
    # Item 2 is head with 3 of 4 clicks, item 3 torso: before it stand 75 %. Item 5 alone is new.
    assert (found.tail_share.listed, found.tail_share.shown) == (1 / 4, 3 / 6)
    assert (found.new_share.listed, found.new_share.shown) == (1 / 4, 2 / 6)
    assert found.calibration == pytest.approx(2.8 / 2)


def test_random_lists_show_what_the_scores_did_not_cause():
    """User 2 has 100 rows of item 2, user 3 one row of the new item 5: half of the lists of one are new, always."""
    rows = {
        "user": np.repeat([2, 3], [100, 1]),
        "item": np.repeat([2, 5], [100, 1]),
        "label": np.ones(101, np.float32),
    }
    found = top_lists(by_hand(**rows), "test", np.linspace(0, 1, 101), k=1)
    assert found.new_share == ListMeasure(listed=1 / 2, random=1 / 2, shown=pytest.approx(1 / 101))
    assert found.gini == ListMeasure(listed=0, random=0, shown=pytest.approx(2 * (1 + 200) / (2 * 101) - 3 / 2))
    # Three rows a user, of which the scores choose the new one: a random list of one has it in one of three.
    rows = {
        "user": np.repeat(np.arange(500), 3),
        "item": np.tile([2, 3, 5], 500),
        "label": np.ones(1500, np.float32),
    }
    found = top_lists(by_hand(**rows), "test", np.tile([0.1, 0.2, 0.3], 500), k=1)
    assert (found.new_share.listed, found.new_share.shown) == (1, 1 / 3)
    # 5,000 draws: a standard deviation of 0.7 %.
    assert found.new_share.random == pytest.approx(1 / 3, abs=0.03)
    assert found.coverage == ListMeasure(listed=pytest.approx(1 / 3), random=1, shown=1)


def test_calibration_by_value_by_hand():
    """Director has 33 values, the id is no group, price no category. Tags: 2 and 3 on item 2, 3 on item 5."""
    found = top_lists(by_hand(), "test", SCORES, k=2).by_value
    assert found == (
        ValueCalibration("genre", 1, 1, 1, pytest.approx(0.6)),
        ValueCalibration("genre", 2, 2, 1, pytest.approx(1.7)),
        ValueCalibration("genre", 3, 1, 0, None),
        ValueCalibration("tags", 2, 2, 1, pytest.approx(1.7)),
        ValueCalibration("tags", 3, 3, 2, pytest.approx(2.3 / 2)),
    )


def test_a_listed_row_counts_for_the_value_its_item_had_then():
    """Item 2 has genre 3 at time 0, when user 2 is shown it, and 2 from time 1 on."""
    versions = {ROW: np.array([2, 2], np.int32), VALID_FROM: np.array([0, 1]), "genre": np.array([3, 2])}
    found = [one for one in top_lists(by_hand(versions), "test", SCORES, k=2).by_value if one.field == "genre"]
    assert found == [
        ValueCalibration("genre", 1, 1, 1, pytest.approx(0.6)),
        ValueCalibration("genre", 2, 1, 0, None),
        ValueCalibration("genre", 3, 2, 1, pytest.approx(1.4)),
    ]


def test_a_request_is_the_group_where_rows_name_one():
    users = np.array([2, 2, 3, 3, 3, 3])
    found = top_lists(by_hand(request=np.array([7, 7, 8, 8, 8, 8]), user=users), "test", SCORES, k=1)
    # Lists of one: item 2 for request 7, item 5 (0.6) for request 8.
    assert (found.groups, found.rows, found.coverage.listed, found.new_share.listed) == (2, 2, 2 / 4, 1 / 2)
    alike = top_lists(by_hand(request=np.zeros(6, np.int64), user=users), "test", SCORES, k=1)
    assert (alike.groups, alike.coverage) == (2, found.coverage), "each user has a request 0"
    partly = top_lists(by_hand(request=np.array([7, 7, 8, 8, -1, -1])), "test", SCORES, k=1)
    assert partly.new_share.listed == 0  # the users' best: item 2 for both


def test_groups_that_fit_into_a_list_are_shown_whole():
    found = top_lists(by_hand(), "test", SCORES, k=3)
    assert (found.groups_cut, found.rows, found.coverage) == (0, 6, ListMeasure(1, 1, 1))
    for one in (found.gini, found.novelty, found.tail_share, found.new_share):
        assert one.listed == pytest.approx(one.random) == pytest.approx(one.shown)
    assert found.calibration == pytest.approx(3.1 / 3)


def test_best_rows_are_the_k_highest_of_each_group():
    scores = np.array([0.1, 0.9, 0.3, 0.2, 0.4, 0.7])
    groups = np.array([5, 5, 1, 5, 1, 9])
    assert best_rows(scores, groups, 1).tolist() == [False, True, False, False, True, True]
    assert best_rows(scores, groups, 2).tolist() == [False, True, True, True, True, True]


def test_ties_are_broken_at_random_and_not_by_order():
    groups = np.repeat(np.arange(1000), 4)
    listed = best_rows(np.full(4000, 0.5), groups, 1)
    places = np.flatnonzero(listed) % 4
    assert (np.bincount(groups[listed]) == 1).all()
    # 250 of each expected, with a standard deviation of 14.
    assert (np.abs(np.bincount(places, minlength=4) - 250) < 60).all()
    np.testing.assert_array_equal(listed, best_rows(np.full(4000, 0.5), groups, 1))


def test_gini_is_0_for_equal_shares_and_near_1_for_one_item():
    assert gini(np.array([3, 3, 3])) == pytest.approx(0)
    assert gini(np.array([0, 0, 0, 8])) == pytest.approx(3 / 4)


def test_lists_without_a_click_have_no_calibration():
    found = top_lists(by_hand(label=np.zeros(6, np.float32)), "test", SCORES, k=2)
    assert found.calibration is None and {one.ratio for one in found.by_value} == {None}


def test_wrong_input_is_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        top_lists(by_hand(), "test", SCORES, k=0)
    with pytest.raises(DataError, match="6 rows"):
        top_lists(by_hand(), "test", SCORES[:5])
    with pytest.raises(NumericalError, match=r"2 of 6 .* -1.5 in row 1"):
        top_lists(by_hand(), "test", np.array([0.5, -1.5, 0.5, np.nan, 0.5, 0.5]))
    empty = by_hand(**{name: values[:0] for name, values in TEST.items()})
    with pytest.raises(DataError, match="empty"):
        top_lists(empty, "test", SCORES[:0])


def test_a_feature_set_gives_lists_that_json_can_hold(tmp_path):
    feature_set = toy_feature_set(tmp_path / "toy")
    found = top_lists(feature_set, "test", popularity_scores(feature_set, "test"), k=1)
    assert 0 < found.rows == found.groups and 0 < found.groups_cut < found.groups
    assert found.novelty.listed < found.novelty.random  # popularity lists the popular
    assert {one.field for one in found.by_value} == {"genre", "tags"}
    assert json.loads(json.dumps(asdict(found), allow_nan=False))["gini"]["listed"] == found.gini.listed
