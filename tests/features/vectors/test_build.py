"""The entry to vectors: missing policies by hand, what is written and reported, and settings that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.contract.contract import Contract
from features.errors import ConfigError
from features.store.schema import Field, VectorSet
from features.vectors.build import build_vectors, needs_clicks
from features.vectors.coclicks import Clicks, CoClicks
from tests.features.vector_files import VectorFiles, contract_of

NONE = [np.nan, np.nan]
# Items 0 and 1 lend, 2 is new and does not; 3, 4 and 5 have no text vector, 5 no image vector either.
TEXT = [[1.0, 0.0], [0.0, 2.0], [8.0, 8.0], NONE, NONE, NONE]
IMAGE = [[1.0, 0.0], [1.0, 0.2], [0.0, 1.0], [0.9, 0.1], [0.0, 1.0], NONE]
TRAINED = [True, True, False, True, False, True]


def clicks_of(*pairs: tuple[int, int]) -> Clicks:
    """User and item (its id, row - 2) of each click."""
    user, item = np.array(pairs, np.int32).reshape(-1, 2).T
    return Clicks(user, item + np.int32(2))


def filled(folder: Path, missing: Any, clicks: Clicks | None = None, image: Any = IMAGE) -> VectorFiles:
    files = VectorFiles(folder, {"text": TEXT, "image": image}, TRAINED)
    files.build({"text": {"normalize": "none", "missing": missing}, "image": {"normalize": "none"}}, clicks=clicks)
    return files


def test_zero_is_the_default(tmp_path: Path) -> None:
    files = VectorFiles(tmp_path, {"text": TEXT}, TRAINED)
    result = files.build()
    assert files.vectors("text").tolist() == [*TEXT[:3], [0, 0], [0, 0], [0, 0]]
    assert files.present("text") == [True, True, True, False, False, False]
    assert result.coverage == {"text": 0.5} and result.report["filled"] == {"text": 0}
    assert result.sets == (VectorSet(name="text", width=2, complete=False),)


def test_mean_of_training_items(tmp_path: Path) -> None:
    files = filled(tmp_path, "mean")
    assert files.vectors("text").tolist() == [*TEXT[:3], [0.5, 1], [0.5, 1], [0.5, 1]]
    assert files.present("text") == [True, True, True, False, False, False]  # still: filled is not present
    assert not files.stored("text")[0][:2].any()  # padding and unknown stay zero


def test_neighbours_by_another_set(tmp_path: Path) -> None:
    # Nearest by image: of 3 item 1 (cosine .996) before 0 (.994); of 4 item 1 (.196), since new item 2 does not lend.
    files = filled(tmp_path, {"by": "image", "k": 1})
    assert files.vectors("text").tolist() == [*TEXT[:3], [0, 2], [0, 2], [0, 0]]
    assert files.present("text") == [True, True, True, False, False, False]
    # Two of three asked for are there: their mean, whichever is nearer.
    assert filled(tmp_path, {"by": "image", "k": 3}).vectors("text")[3].tolist() == [0.5, 1]


def test_only_items_with_both_vectors_are_compared(tmp_path: Path) -> None:
    # Item 1 has no image vector and lends nothing by it; that of item 4 is zero and points to nobody.
    image = [IMAGE[0], NONE, *IMAGE[2:4], [0.0, 0.0], NONE]
    files = filled(tmp_path, {"by": "image", "k": 3}, image=image)
    assert files.vectors("text").tolist() == [*TEXT[:3], [1, 0], [0, 0], [0, 0]]


def test_neighbours_by_clicks(tmp_path: Path) -> None:
    # Item 3 goes with 0 at 1/sqrt(1*3) and with 1 at 1/sqrt(1*1); item 4 with new item 2 alone; 5 with nobody.
    clicks = clicks_of((7, 3), (7, 0), (7, 1), (8, 0), (9, 0), (5, 4), (5, 2), (7, 3))
    assert filled(tmp_path, {"by": "clicks", "k": 1}, clicks).vectors("text").tolist() == [
        *TEXT[:3],
        [0, 2],
        [0, 0],
        [0, 0],
    ]
    assert filled(tmp_path, {"by": "clicks", "k": 5}, clicks).vectors("text")[3].tolist() == [0.5, 1]


def test_two_sets_may_fill_each_other(tmp_path: Path) -> None:
    files = VectorFiles(tmp_path, {"a": [[1.0, 0], [0, 1], [1, 0], NONE], "b": [[3.0, 1], [1, 3], NONE, [3, 1]]})
    spec = {"normalize": "none"}
    result = files.build({"a": spec | {"missing": {"by": "b", "k": 1}}, "b": spec | {"missing": {"by": "a", "k": 1}}})
    # What one borrowed is not lent on: item 3 takes `a` of item 0 by `b`, item 2 takes `b` of item 0 by `a`.
    assert files.vectors("a")[3].tolist() == [1, 0] and files.vectors("b")[2].tolist() == [3, 1]
    assert result.report["filled"] == {"a": 1, "b": 1}


@pytest.mark.parametrize("missing", ["mean", {"by": "image", "k": 2}, {"by": "clicks", "k": 2}])
def test_a_new_item_lends_nothing(tmp_path: Path, missing: Any) -> None:
    clicks = clicks_of((1, 0), (1, 3), (2, 1), (2, 4), (3, 2), (3, 5))
    files = VectorFiles(tmp_path, {"text": TEXT, "image": IMAGE}, TRAINED)
    spec = {"text": {"normalize": "none", "missing": missing}, "image": {}}
    files.build(spec, clicks=clicks)
    before = files.vectors("text")
    files.sets["text"][2], files.sets["image"][2] = [-5, 3], [1, 0]
    files.build(spec, clicks=clicks)
    after = files.vectors("text")
    others = [0, 1, 3, 4, 5]
    np.testing.assert_array_equal(before[others], after[others])
    assert after[2].tolist() == [-5, 3]


PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), min_size=1, max_size=30)


@given(PAIRS)
def test_co_clicks_are_users_of_both_over_users_of_each(pairs: list[tuple[int, int]]) -> None:
    co_clicks = CoClicks(clicks_of(*pairs), 9)
    asked, towards = np.array([2, 5, 8, 0]), np.array([3, 4, 5, 6, 7, 8])
    found = co_clicks.between(asked, co_clicks.towards(towards)).toarray()
    users = {item: {u for u, i in pairs if i + 2 == item} for item in range(9)}
    for i, one in enumerate(asked):
        for j, other in enumerate(towards):
            both = len(users[one] & users[other])
            expected = both / np.sqrt(len(users[one]) * len(users[other])) if both else 0
            assert found[i, j] == pytest.approx(expected, rel=1e-5)


def test_everything_at_once(tmp_path: Path) -> None:
    """Each product of one contract, in its place and on the rows of the catalogue."""
    draw = np.random.default_rng(0)
    text, image = draw.normal(size=(2, 40, 6))
    text[3], image[3] = np.nan, np.nan
    files = VectorFiles(tmp_path, {"text": text, "image": image, "sound": draw.normal(size=(40, 3))})
    vectors = {
        "fusion": {"both": {"sets": ["text", "image"], "dim": 3, "dtype": "int8"}},
        "semantic_ids": {"codes": {"set": "both", "levels": 2, "size": 4}},
    }
    result = files.build({"text": {}, "image": {}, "sound": {"dtype": "float16"}}, vectors)
    assert [one.name for one in result.sets] == ["sound", "both"] and [one.width for one in result.sets] == [3, 3]
    assert result.coverage == {"text": 39 / 40, "image": 39 / 40, "sound": 1, "both": 39 / 40}
    assert [field.name for field in result.item_fields] == ["codes_1", "codes_12"] == list(result.item_columns)
    assert all(isinstance(field, Field) and field.kind == "categorical" for field in result.item_fields)
    for field in result.item_fields:
        column = result.item_columns[field.name]
        assert column.dtype == np.int32 and column.shape == (42,) and column.max() == field.size - 1
        assert column[0] == 0 and column[1] == 1 and column[5] == 1 and (np.delete(column, [0, 1, 5]) >= 2).all()
    assert set(result.report["semantic_ids"]["codes"]) == {"perplexity", "collisions", "reconstruction_error"}
    written = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert written == [
        "embeddings/both.npy",
        "embeddings/both.present.npy",
        "embeddings/both.scale.npy",
        "embeddings/sound.npy",
        "embeddings/sound.present.npy",
        "semantic_ids/codes/codebooks.npy",
        "semantic_ids/codes/coder.json",
        "semantic_ids/codes/prefixes-1.npy",
        "semantic_ids/codes/prefixes-2.npy",
        "transforms/both/axes-0.npy",
        "transforms/both/axes-1.npy",
        "transforms/both/mean-0.npy",
        "transforms/both/mean-1.npy",
        "transforms/both/transform.json",
        "transforms/image/transform.json",
        "transforms/sound/transform.json",
        "transforms/text/transform.json",
    ]


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    sets = {"text": draw.normal(size=(300, 6)), "image": draw.normal(size=(300, 5))}
    vectors = {
        "fusion": {"both": {"sets": ["text", "image"], "dim": 4}},
        "semantic_ids": {"codes": {"set": "both", "size": 16}},
    }
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        VectorFiles(tmp_path / folder, sets).build(vectors=vectors)
    written = [path for path in (tmp_path / "one/out").rglob("*") if path.is_file()]
    assert len(written) == 14
    for path in written:
        assert path.read_bytes() == (tmp_path / "two/out" / path.relative_to(tmp_path / "one/out")).read_bytes(), path


@pytest.mark.parametrize(
    ("missing", "expected"),
    [("zero", False), ("mean", False), ({"by": "image"}, False), ({"by": "clicks"}, True)],
)
def test_clicks_are_asked_for_where_needed(tmp_path: Path, missing: Any, expected: bool) -> None:
    contract: Contract = contract_of(tmp_path, {"text": {"missing": missing}, "image": {}})
    assert needs_clicks(contract) is expected


@pytest.mark.parametrize(
    ("missing", "vectors", "words"),
    [
        ({"by": "sound"}, {}, r"embeddings.text.missing.by: 'sound' is no other vector set. Choose .* clicks, image"),
        ({"by": "text"}, {}, r"embeddings.text.missing.by: 'text' is no other vector set"),
        (
            "zero",
            {"semantic_ids": {"c": {"set": "text", "size": 2}}},
            r"semantic_ids.c: 'c_12' is an item column already. Rename one",
        ),
    ],
    ids=["no such set", "itself", "taken"],
)
def test_settings_that_cannot_be_are_named(tmp_path: Path, missing: Any, vectors: Any, words: str) -> None:
    files = VectorFiles(tmp_path, {"text": TEXT, "image": IMAGE}, TRAINED)
    with pytest.raises(ConfigError, match=words):
        files.build({"text": {"missing": missing}, "image": {}}, vectors, columns={"c_12": np.ones(8, np.int32)})


def test_forgotten_clicks_are_a_mistake_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="needs the clicks"):
        filled(tmp_path, {"by": "clicks"})


def test_no_sets_are_nothing(tmp_path: Path) -> None:
    files = VectorFiles(tmp_path, {"text": TEXT})
    result = build_vectors(
        contract_of(tmp_path, {}),
        None,
        files.trained_I,
        {},
        None,
        tmp_path / "out",  # type: ignore[arg-type]
    )
    assert result.sets == () and result.report == {} and not (tmp_path / "out").exists()
