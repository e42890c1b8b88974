"""New items get their vectors as the build would have given them; and the next build goes on with what it learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.build.build import build_feature_set
from features.contract.contract import Contract
from features.contract.settings import merge, validate
from features.errors import DataError
from features.store.feature_set import FeatureSet
from features.vectors.new_items import encode_vectors
from tests.features.raw import CONTENT, ITEMS, raw_log

WIDTHS = {"text": 6, "image": 5}
SETS: dict[str, Any] = {
    "text": {"path": "text.parquet", "normalize": "centre", "reduce": {"method": "pca", "dim": 3}},
    "image": {"path": "image.parquet", "reduce": {"method": "truncate", "dim": 4}},
}
FUSIONS = {
    "both": {"sets": ["text", "image"], "dim": 3, "keep_parts": True},
    "shared": {"sets": ["text", "image"], "dim": 2, "keep_parts": True},
}


def raw_vectors() -> dict[str, np.ndarray]:
    """Of each item of the raw log; the last two have no image."""
    rng = np.random.default_rng(4)
    made = {name: rng.normal(1, 2, (ITEMS, width)).astype(np.float32) for name, width in WIDTHS.items()}
    made["image"][-2:] = np.nan
    return made


def built(
    folder: Path,
    sets: dict[str, Any] = SETS,
    vectors: dict[str, Any] | None = None,
    raw: dict[str, np.ndarray] | None = None,
) -> tuple[Contract, FeatureSet]:
    derived = {"fusion": FUSIONS} if vectors is None else vectors
    contract = raw_log(folder, over={"embeddings": sets, "vectors": derived})
    for name, values in (raw or raw_vectors()).items():
        has = ~np.isnan(values).any(1)
        ids = np.arange(101, 101 + ITEMS)[has]
        pl.DataFrame({"item_id": ids, "vector": values[has].tolist()}).write_parquet(folder / f"{name}.parquet")
    return contract, build_feature_set(contract, folder / "out").feature_set


def test_they_equal_those_of_the_build(tmp_path: Path) -> None:
    contract, feature_set = built(tmp_path)
    encoded = encode_vectors(feature_set.path, contract, feature_set.schema, raw_vectors(), ITEMS)
    assert list(encoded.sets) == ["text", "image", "both", "shared"] and encoded.columns == {}
    for name, (vectors, present) in encoded.sets.items():
        # Catalogue rows from 2 on are the items in order.
        np.testing.assert_allclose(vectors, feature_set.vectors(name)[2:], atol=1e-6)
        assert present.tolist() == feature_set.present(name)[2:].tolist()


FILLED: list[Any] = ["zero", "mean", {"by": "text", "k": 2}]


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("missing", FILLED, ids=["zero", "mean", "by"])
def test_what_is_derived_equals_the_build(tmp_path: Path, missing: Any, dtype: str) -> None:
    """Filled, fused, coded and rounded as the build did; two items have no vector at all."""
    sets = {"text": SETS["text"], "image": SETS["image"] | {"missing": missing, "dtype": dtype}}
    fusions = {"both": FUSIONS["both"] | {"dtype": dtype}, "shared": FUSIONS["shared"]}
    codes = {name: {"set": name, "levels": 2, "size": 3} for name in ("both", "image")}
    raw = raw_vectors()
    raw["image"][3] = raw["text"][7] = np.nan
    raw["text"][-1] = np.nan
    contract, feature_set = built(tmp_path, sets, {"fusion": fusions, "semantic_ids": codes}, raw)
    encoded = encode_vectors(feature_set.path, contract, feature_set.schema, raw, ITEMS)
    for name, (vectors, present) in encoded.sets.items():
        np.testing.assert_allclose(vectors, feature_set.vectors(name)[2:], atol=1e-6)
        assert present.tolist() == feature_set.present(name)[2:].tolist()
    assert list(encoded.columns) == ["both_1", "both_12", "image_1", "image_12"]
    for name, index in encoded.columns.items():
        assert index.tolist() == feature_set.items[name][2:].tolist()
    assert encoded.columns["image_1"][3] == 1 and (encoded.columns["both_1"][:-1] > 1).all()


def test_an_item_borrows_from_its_neighbours_alone(tmp_path: Path) -> None:
    """Worked out by hand: the two nearest by cosine in `text`, of items that have an image."""
    sets = {
        "text": {"path": "text.parquet", "normalize": "none"},
        "image": {"path": "image.parquet", "normalize": "none", "missing": {"by": "text", "k": 2}},
    }
    raw = raw_vectors()
    contract, feature_set = built(tmp_path, sets, {}, raw)
    asking = np.random.default_rng(1).normal(size=(1, WIDTHS["text"])).astype(np.float32)
    encoded = encode_vectors(feature_set.path, contract, feature_set.schema, {"text": asking}, 1)
    lends = ~np.isnan(raw["image"]).any(1)
    cosine = raw["text"] @ asking[0] / np.linalg.norm(raw["text"], axis=1)
    nearest = np.argsort(-np.where(lends, cosine, -np.inf))[:2]
    np.testing.assert_allclose(encoded.sets["image"][0][0], raw["image"][nearest].mean(0), atol=1e-6)
    assert encoded.sets["image"][1].tolist() == [False]


def test_a_set_left_out_is_missing(tmp_path: Path) -> None:
    contract, feature_set = built(tmp_path)
    encoded = encode_vectors(feature_set.path, contract, feature_set.schema, {"text": raw_vectors()["text"]}, ITEMS)
    assert not encoded.sets["image"][1].any() and not encoded.sets["image"][0].any()
    assert encoded.sets["both"][1].all() and encoded.sets["shared"][0].any()


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"text": np.zeros((2, 7))}, "set 'text' is 7 wide, not 6"),
        ({"text": np.zeros((2, 6)), "image": np.zeros((3, 5))}, "set 'image' has 3 rows for 2 items"),
        ({"texts": np.zeros((2, 6))}, "no set 'texts'. Did you mean 'text'"),
        ({"text": np.array([[0.0] * 6, [1, 2, np.nan, 4, 5, 6]])}, "1 of 2 vectors hold NaN or infinity.* number 1"),
        ({"text": np.array([[0.0] * 6, [1e39] * 6])}, "1 of 2 vectors hold NaN or infinity"),
        ({"text": np.array([[1e15] * 6, [3e38] * 6])}, r"1 of 2 vectors hold .* numbers beyond 1e\+15.* number 1"),
    ],
)
def test_what_does_not_fit_is_told(tmp_path: Path, raw: dict[str, np.ndarray], words: str) -> None:
    contract, feature_set = built(tmp_path)
    with pytest.raises(DataError, match=words):
        encode_vectors(feature_set.path, contract, feature_set.schema, raw, 2)


def test_a_windowed_build_goes_on_with_what_was_learned(tmp_path: Path) -> None:
    """New vectors and new items on the second day move none of the old items' vectors."""
    rng = np.random.default_rng(0)
    (tmp_path / "log").mkdir()
    for day in range(6):
        time = 1_772_323_200 + day * 86_400 + np.sort(rng.integers(0, 86_400, 80))
        items = rng.integers(101, 113 + 2 * day, 80)
        log = {"user_id": rng.integers(1, 9, 80), "item_id": items, "time": time, "rating": rng.integers(1, 6, 80)}
        log |= {"hour": time // 3600 % 24, "load": rng.random(80)}
        pl.DataFrame(log).write_parquet(tmp_path / f"log/{day}.parquet")
    over = {
        "interactions": {"path": "log/*.parquet"},
        "items": None,
        "users": None,
        "embeddings": SETS,
        "vectors": {"fusion": FUSIONS, "semantic_ids": {"topic": {"set": "text", "levels": 2, "size": 3}}},
        "split": {"by": "days", "valid": 1, "test": 1},
    }
    contract = validate(Contract, merge(CONTENT, over) | {"root": str(tmp_path)}, "raw")

    def build(day: int, items: int) -> FeatureSet:
        draw = np.random.default_rng(7).normal(1, 2, (40, 6)).astype(np.float32)
        for name, width in WIDTHS.items():
            table = {"item_id": np.arange(101, 101 + items), "vector": draw[:items, :width].tolist()}
            pl.DataFrame(table).write_parquet(tmp_path / f"{name}.parquet")
        return build_feature_set(contract, tmp_path / "out", f"2026-03-0{day}", window=4).feature_set

    first, second = build(5, items=20), build(6, items=24)
    assert second.manifest.days.keys() - first.manifest.days.keys() == {"2026-03-06"}
    old = first.schema.items
    for name in ("text", "image", "both", "shared"):
        np.testing.assert_array_equal(second.vectors(name)[:old], first.vectors(name))
    assert second.items["topic_12"][:old].tolist() == first.items["topic_12"].tolist()
    pl.DataFrame({"item_id": [101, 102], "vector": [[1.0, 2.0], [3.0, 4.0]]}).write_parquet(tmp_path / "text.parquet")
    with pytest.raises(DataError, match=r"text\.parquet: its vectors are 2 wide, 6 in the version before"):
        build_feature_set(contract, tmp_path / "out", "2026-03-06", window=4)
