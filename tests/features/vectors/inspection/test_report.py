"""Inspection tells planted vector sets apart: a good one, noise, a copy, dead dimensions, all pointing one way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.build.build import build_feature_set
from features.contract.contract import Contract
from features.encoding.encoder import Encoder
from features.errors import DataError
from features.store.feature_set import FeatureSet
from features.store.schema import FIRST_VALUE
from features.store.vector_files import ItemVectors
from features.vectors.inspection.advice import LEARNED, advise, is_useful
from features.vectors.inspection.next_clicks import interval, popular_hits, read_clicks, recall_hits
from features.vectors.inspection.report import Inspection, SetReport, inspect_sets
from features.vectors.read import read_vectors

ITEMS, GROUPS, USERS, ROWS = 300, 15, 120, 6_000


def planted(folder: Path, *, late_clicks: float = 0.8) -> tuple[FeatureSet, list[ItemVectors]]:
    """Users click within a group of 20 items; `good` vectors know the group. The last fifth of the rows is no training.

    Items 0 to 298 are shown in all of the log, item 299 in its last fifth alone.
    """
    rng = np.random.default_rng(0)
    group = np.arange(ITEMS) % GROUPS
    favourite = rng.integers(GROUPS, size=USERS)
    user = rng.integers(USERS, size=ROWS)
    item = np.minimum(rng.integers(ITEMS // GROUPS, size=ROWS) * GROUPS + favourite[user], ITEMS - 2)
    item[-1] = ITEMS - 1
    time = 1_700_000_000 + np.sort(rng.integers(10**6, size=ROWS))
    chance = np.where(np.arange(ROWS) < 0.8 * ROWS, 0.8, late_clicks)
    table = {"user": user, "item": item, "time": time, "clicked": rng.random(ROWS) < chance}
    pl.DataFrame(table).write_parquet(folder / "log.parquet")
    names = [f"g{one}" for one in group]
    pl.DataFrame({"item": np.arange(ITEMS), "group": names}).write_parquet(folder / "items.parquet")
    good = rng.normal(size=(GROUPS, 24))[group] + 0.4 * rng.normal(size=(ITEMS, 24))
    placeholder = rng.normal(size=(ITEMS, 24))
    placeholder[rng.permutation(ITEMS)[:120]] = 1
    sets = {
        "good": good,
        "copy": good * 2 + 0.01 * rng.normal(size=good.shape),
        "noise": rng.normal(size=(ITEMS, 24)),
        "one_way": good + 12,
        "dead": np.concatenate([good, np.full((ITEMS, 40), 0.1)], axis=1),
        "half": good[:90],
        "few_noise": rng.normal(size=(60, 24)),
        "placeholder": placeholder,
        "constant": np.full((ITEMS, 8), 0.1),
    }
    for name, vectors in sets.items():
        table = {"item_id": np.arange(len(vectors)), "vector": vectors.astype(np.float32).tolist()}
        pl.DataFrame(table).write_parquet(folder / f"{name}.parquet")
    content: dict[str, Any] = {
        "name": "planted",
        "root": str(folder),
        "interactions": {"path": "log.parquet", "user": "user", "item": "item", "time": "time", "label": "clicked"},
        "items": {"path": "items.parquet", "id": "item", "columns": {"group": {"type": "categorical"}}},
        "embeddings": {name: {"path": f"{name}.parquet"} for name in sets},
        "vectors": {"semantic_ids": {"topic": {"set": "good", "levels": 2, "size": 4}}},
        "split": {"by": "time", "valid": 0.1, "test": 0.1},
    }
    contract = Contract.model_validate(content)
    built = build_feature_set(contract, folder / "out").feature_set
    items = Encoder.load(built.path).items
    return built, [read_vectors(name, contract, items, built.path) for name in contract.embeddings]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureSet, list[ItemVectors]]:
    return planted(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def found(given: tuple[FeatureSet, list[ItemVectors]]) -> Inspection:
    return inspect_sets(*given)


@pytest.fixture(scope="module")
def reports(found: Inspection) -> dict[str, SetReport]:
    return {one.name: one for one in found.sets}


def numbers(report: SetReport) -> dict[str, Any]:
    return {name: value for name, value in vars(report).items() if name != "samples"}


def test_recall_is_that_of_a_known_group(reports: dict[str, SetReport]) -> None:
    # The next click is one of 19 others of its group, of which 10 are nearest.
    good = reports["good"].recall
    assert good is not None and good.low < 10 / 19 < good.high
    assert reports["good"].candidates == ITEMS - 1 and reports["good"].random_recall == pytest.approx(10 / 298)
    useful = {name for name, report in reports.items() if is_useful(report)}
    assert useful == {"good", "copy", "one_way", "dead", "half"}


def test_users_are_what_the_interval_draws(
    given: tuple[FeatureSet, list[ItemVectors]], reports: dict[str, SetReport]
) -> None:
    built, sets = given
    half = next(one for one in sets if one.name == "half")
    clicks = read_clicks(built, seed=1)
    both_P = half.present_I[clicks.pairs_P2].all(axis=1)
    known_T = np.flatnonzero(half.present_I & clicks.trained_I)
    hits_P = popular_hits(clicks.clicks_I, clicks.pairs_P2[both_P], known_T)
    assert reports["half"].pairs == both_P.sum() and reports["half"].popular_recall == hits_P.mean()
    good = recall_hits(sets[0].vectors_IW, np.zeros(24, np.float32), clicks.pairs_P2, np.flatnonzero(clicks.trained_I))
    assert reports["good"].recall == interval(good, clicks.user_P, seed=1)


def test_what_knows_nothing_finds_no_more_than_chance(reports: dict[str, SetReport]) -> None:
    for name in ("noise", "few_noise", "constant"):
        recall = reports[name].recall
        assert recall is not None and recall.low <= reports[name].random_recall * 1.001
    constant = reports["constant"].recall
    assert constant is not None and constant.value == pytest.approx(10 / 298)
    # Against the 60 items that it covers, not against the catalogue: 10 of 59 are found by chance.
    assert reports["few_noise"].random_recall == pytest.approx(10 / 59)


def test_shapes_are_seen(found: Inspection, reports: dict[str, SetReport]) -> None:
    assert reports["dead"].dead_dimensions == 40 and reports["good"].dead_dimensions == 0
    assert reports["constant"].dead_dimensions == 8 and reports["constant"].effective_dimension == 0
    assert reports["one_way"].anisotropy > 0.9 and abs(reports["good"].anisotropy) < 0.1
    assert reports["half"].items_covered == pytest.approx(0.3) and 0.2 < reports["half"].clicks_covered < 0.4
    assert reports["noise"].effective_dimension > 18 > reports["good"].effective_dimension
    assert reports["constant"].norms == pytest.approx((0.1 * 8**0.5, *[0] * 1, *[0.1 * 8**0.5] * 5), abs=1e-6)
    assert reports["good"].duplicates == reports["good"].near_duplicates == 0
    assert reports["placeholder"].duplicates == pytest.approx(0.4, abs=0.01) and reports["constant"].duplicates == 1
    assert reports["placeholder"].near_duplicates == reports["placeholder"].duplicates
    assert found.overlap["good", "copy"] > 0.9 and found.overlap["good", "noise"] < 0.2
    assert found.overlap["good", "one_way"] > 0.9


def test_tags_are_told_by_vectors_that_know_them(reports: dict[str, SetReport]) -> None:
    # Columns of semantic ids are made of the vectors: they are not asked for.
    assert set(reports["good"].probe) == {"group"}
    assert reports["good"].probe["group"] > 0.95 and 0.4 < reports["noise"].probe["group"] < 0.6
    assert reports["constant"].probe["group"] == 0.5


def test_the_advice_tells_them_apart(found: Inspection) -> None:
    advice = advise(found)
    assert advice["good"].startswith("Use it (") and "`" not in advice["noise"]
    for name in ("noise", "few_noise", "constant"):
        assert advice[name].startswith("Leave it out"), name
    assert "`normalize: centre`" in advice["one_way"] and "`normalize: centre`" not in advice["good"]
    assert "`reduce: {method: pca, dim: 20}`" in advice["dead"]
    assert "`reduce" not in advice["good"]
    assert "`missing: {by: clicks}`" in advice["half"]
    assert "40% of items have a twin" in advice["placeholder"]
    family = {"good", "copy", "dead", "one_way", "half"}
    twins = {name for name in family if "one of the two is enough" in advice[name]}
    assert len(twins) == 4
    assert advice[""].startswith(f"Use {(family - twins).pop()!r}")


def test_clicks_that_a_set_was_learned_from_do_not_judge_it(found: Inspection) -> None:
    advice = advise(found, {"good", "noise"})
    assert advice["good"] == advice["noise"] == LEARNED
    assert advice[""].startswith("Use ") and "'good'" not in advice[""]


def test_learned_sets_alone_are_left_to_validation(found: Inspection) -> None:
    assert advise(found, {one.name for one in found.sets})[""] == LEARNED


def test_the_seed_fixes_everything_and_no_set_depends_on_another(
    given: tuple[FeatureSet, list[ItemVectors]], found: Inspection, reports: dict[str, SetReport]
) -> None:
    again = inspect_sets(*given)
    assert [numbers(one) for one in again.sets] == [numbers(one) for one in found.sets]
    assert again.overlap == found.overlap
    built, sets = given
    alone = inspect_sets(built, [sets[2]])
    assert numbers(alone.sets[0]) == numbers(reports["noise"])
    other = inspect_sets(built, [sets[0]], seed=2)
    assert other.sets[0].recall != reports["good"].recall


def test_only_the_training_window_speaks(
    given: tuple[FeatureSet, list[ItemVectors]], reports: dict[str, SetReport], tmp_path: Path
) -> None:
    """Other clicks after training, and another vector of the item that came then: not a number moves."""
    built, sets = planted(tmp_path, late_clicks=0.05)
    assert built.manifest.windows["test"].positives < given[0].manifest.windows["test"].positives / 3
    late = FIRST_VALUE + ITEMS - 1
    assert not any((part["item"] == late).any() for part in built.rows("train"))
    sets[0].vectors_IW[late] = 1e6
    assert numbers(inspect_sets(built, sets[:1]).sets[0]) == numbers(reports["good"])


def test_sets_of_few_items(given: tuple[FeatureSet, list[ItemVectors]]) -> None:
    built, sets = given
    # Items 0 to 10 are of 11 groups, 0 to 30 two or three of each group: only of these are two clicked by one user.
    found = inspect_sets(built, [few(sets[0], number) for number in (1, 2, 11, 31)])
    assert [one.candidates for one in found.sets] == [1, 2, 11, 31]
    assert [one.recall is None for one in found.sets] == [True, True, True, False]
    assert [one.random_recall for one in found.sets] == pytest.approx([1, 1, 1, 1 / 3])
    advice = advise(found)
    assert advice["good1"].startswith("Cannot be judged by 0 next clicks on 1 items")
    assert advice[""] == "Use 'good31' alone."
    nothing = advise(inspect_sets(built, [few(sets[0], 2)]))
    assert nothing[""] == "No set finds what is clicked next better than chance: expect little of vectors here."


def test_a_set_of_items_after_training_alone_is_refused(given: tuple[FeatureSet, list[ItemVectors]]) -> None:
    built, sets = given
    only_late = np.zeros_like(sets[0].present_I)
    only_late[FIRST_VALUE + ITEMS - 1] = True
    late = ItemVectors("late", sets[0].vectors_IW, only_late, sets[0].filled_I)
    with pytest.raises(DataError, match=r"embeddings\.late: none of its 1 items is in the training window"):
        inspect_sets(built, [late])


def few(one: ItemVectors, number: int) -> ItemVectors:
    """The set with the vectors of the first items alone."""
    present_I = np.zeros_like(one.present_I)
    present_I[FIRST_VALUE : FIRST_VALUE + number] = True
    return ItemVectors(f"{one.name}{number}", one.vectors_IW, present_I, one.filled_I)
