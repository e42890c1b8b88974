"""Inspection tells planted vector sets apart: a good one, noise, a copy, dead dimensions, all pointing one way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.build import build_feature_set
from features.contract import Contract
from features.encoder import Encoder
from features.feature_set import FeatureSet
from features.vectors.advice import advise, is_useful
from features.vectors.embeddings import ItemVectors, read_vectors
from features.vectors.inspection import Inspection, _auc, _duplicates, _recall, inspect

ITEMS, GROUPS, USERS, ROWS = 300, 15, 120, 6_000


def planted(folder: Path) -> tuple[FeatureSet, list[ItemVectors]]:
    """Users click within a group of 20 items; `good` vectors know the group."""
    rng = np.random.default_rng(0)
    group = np.arange(ITEMS) % GROUPS
    favourite = rng.integers(GROUPS, size=USERS)
    user = rng.integers(USERS, size=ROWS)
    item = rng.integers(ITEMS // GROUPS, size=ROWS) * GROUPS + favourite[user]
    time = 1_700_000_000 + np.sort(rng.integers(10**6, size=ROWS))
    pl.DataFrame({"user": user, "item": item, "time": time, "clicked": rng.random(ROWS) < 0.8}).write_parquet(
        folder / "log.parquet"
    )
    names = [f"g{one}" for one in group]
    pl.DataFrame({"item": np.arange(ITEMS), "group": names}).write_parquet(folder / "items.parquet")
    good = rng.normal(size=(GROUPS, 24))[group] + 0.4 * rng.normal(size=(ITEMS, 24))
    sets = {
        "good": good,
        "copy": good * 2 + 0.01 * rng.normal(size=good.shape),
        "noise": rng.normal(size=(ITEMS, 24)),
        "one_way": good + 12,
        "dead": np.concatenate([good, np.full((ITEMS, 40), 0.5)], axis=1),
        "half": good[:90],
    }
    for name, vectors in sets.items():
        table = pl.DataFrame({"item_id": np.arange(len(vectors)), "vector": vectors.astype(np.float32).tolist()})
        table.write_parquet(folder / f"{name}.parquet")
    content: dict[str, Any] = {
        "name": "planted",
        "root": str(folder),
        "interactions": {"path": "log.parquet", "user": "user", "item": "item", "time": "time", "label": "clicked"},
        "items": {"path": "items.parquet", "id": "item", "columns": {"group": {"type": "categorical"}}},
        "embeddings": {name: {"path": f"{name}.parquet"} for name in sets},
    }
    contract = Contract.model_validate(content)
    built = build_feature_set(contract, folder / "out").feature_set
    items = Encoder.load(built.path).items
    return built, [read_vectors(name, contract, items) for name in contract.embeddings]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Inspection:
    return inspect(*planted(tmp_path_factory.mktemp("planted")))


def test_recall_is_that_of_a_known_group(found: Inspection) -> None:
    reports = {one.name: one for one in found.sets}
    # The next click is one of 19 others of its group, of which 10 are nearest.
    good = reports["good"].recall
    assert good is not None and good.low < 10 / 19 < good.high
    noise = reports["noise"].recall
    assert noise is not None and noise.low < found.random_recall < noise.high
    assert found.random_recall == pytest.approx(10 / 299)
    assert {one.name: is_useful(one, found) for one in found.sets} == {
        "good": True,
        "copy": True,
        "noise": False,
        "one_way": True,
        "dead": True,
        "half": True,
    }


def test_shapes_are_seen(found: Inspection) -> None:
    reports = {one.name: one for one in found.sets}
    assert reports["dead"].dead_dimensions == 40 and reports["good"].dead_dimensions == 0
    assert reports["one_way"].anisotropy > 0.9 and abs(reports["good"].anisotropy) < 0.1
    assert reports["half"].items_covered == pytest.approx(0.3) and 0.2 < reports["half"].clicks_covered < 0.4
    assert reports["good"].probe["group"] > 0.95 and 0.4 < reports["noise"].probe["group"] < 0.6
    assert found.overlap["good", "copy"] > 0.9 and found.overlap["good", "noise"] < 0.2
    assert reports["noise"].effective_dimension > 18 > reports["good"].effective_dimension


def test_the_advice_tells_them_apart(found: Inspection) -> None:
    advice = advise(found)
    assert advice["good"].startswith("Use it") and advice["noise"].startswith("Leave it out")
    assert "normalize: centre" in advice["one_way"] and "reduced to about" in advice["dead"]
    assert "missing" in advice["half"]
    family = {"good", "copy", "dead", "one_way", "half"}
    twins = {name for name in family if "one of the two is enough" in advice[name]}
    assert len(twins) == 4
    assert advice[""] == f"Use {(family - twins).pop()!r}; the others have not shown that they help."


def test_the_seed_fixes_everything(found: Inspection, tmp_path: Path) -> None:
    again = inspect(*planted(tmp_path))
    for one, other in zip(found.sets, again.sets, strict=True):
        assert (one.recall, one.probe, one.anisotropy) == (other.recall, other.probe, other.anisotropy)
    assert found.overlap == again.overlap


def test_duplicates_by_hand() -> None:
    assert _duplicates(np.array([[1, 2], [1, 2], [2, 1], [0, 0], [1, 2]], np.float32)) == pytest.approx(0.6)


def test_recall_by_hand() -> None:
    angles = np.linspace(0, 3, 30)
    unit = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    # Of item 0, items 1 to 10 are the nearest; item 11 is not.
    recall = _recall(unit, np.array([[0, 1], [0, 10], [0, 11], [0, 25]]), np.random.default_rng(0))
    assert recall is not None and recall.value == 0.5


def test_auc_by_hand() -> None:
    assert _auc(np.array([0, 1, 0, 1]), np.array([0.1, 0.4, 0.35, 0.8])) == 1.0
    assert _auc(np.array([1, 0, 0, 1]), np.array([0.1, 0.4, 0.35, 0.8])) == 0.5
    assert _auc(np.array([1, 1]), np.array([0.1, 0.4])) is None
