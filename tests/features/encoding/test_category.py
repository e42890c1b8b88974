"""Encoders of names, by hand: the frozen hash, tags, and vocabularies that grow without moving an index."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.contract.columns import Categorical, Hashed, Tags
from features.encoding import category as columns_category
from features.encoding.category import CategoricalEncoder, HashedEncoder, TagsEncoder
from features.encoding.registry import fit_column
from features.encoding.vocabulary import Vocabulary


@pytest.mark.parametrize(
    ("value", "index"),
    [
        # First 16 digits of `printf TEXT | sha256sum`, as a number, modulo 1000003, plus 2.
        ("", 224_202),  # e3b0c44298fc1c14
        ("a", 441_832),  # ca978112ca1bbdca
        (17, 506_815),  # 4523540f1504cd17
        ("17", 506_815),
        (-3, 367_589),  # 615bdd17c2556f82
        (True, 683_449),  # b5bea41b6c623f7c, of `true`
        ("é", 257_779),  # 4a99557e4033c353
        ("日本", 483_492),  # cf2abf0c5be326cb
        ("item-42", 912_050),  # e8fa483c388a60a7
    ],
)
def test_the_hash_is_frozen(value: Any, index: int) -> None:
    """Models in use were trained on these indices: the numbers here must never change."""
    encoder = HashedEncoder(1_000_003)
    assert encoder.encode_one(value).tolist() == encoder.encode(pl.Series("c", [value])).tolist() == [index]


def test_hashed_columns_of_every_shape() -> None:
    encoder = HashedEncoder.fit(pl.Series("c", ["x"]), Hashed(type="hashed", buckets=10))
    assert encoder.field("c").size == 12
    # 1000003 above; here modulo 10: "a" 2, "17" 3, "é" 3.
    assert encoder.encode(pl.Series("c", ["a", None, "17", "é", "a"])).tolist() == [2, 1, 3, 3, 2]
    assert encoder.encode(pl.Series("c", [17.0, None])).tolist() == [3, 1]
    assert encoder.encode_one(17.0).tolist() == [3]
    assert encoder.encode(pl.Series("c", ["a", "17"], dtype=pl.Categorical)).tolist() == [2, 3]
    assert HashedEncoder(1).encode(pl.Series("c", ["a", "b", None])).tolist() == [2, 2, 1]


def test_buckets_are_filled_evenly() -> None:
    """20,000 values in 20 buckets: 1,000 each, with a deviation of 31."""
    index = HashedEncoder(20).encode(pl.Series("c", np.arange(20_000)))
    count = np.bincount(index, minlength=22)
    assert count[:2].tolist() == [0, 0] and np.abs(count[2:] - 1000).max() < 5 * 31


def read_back(encoder: HashedEncoder) -> HashedEncoder:
    """As the next process reads it."""
    stored: dict[str, Vocabulary] = {}

    def keep(vocabulary: Vocabulary) -> str:
        stored["examples"] = vocabulary
        return "examples"

    return HashedEncoder.from_json(json.loads(json.dumps(encoder.to_json(keep))), stored.__getitem__)


def test_a_raw_value_is_one_that_was_seen() -> None:
    encoder = HashedEncoder(50_000_000)
    index = encoder.encode(pl.Series("c", ["phone", None, 17, "é"], strict=False, dtype=pl.String))
    assert [read_back(encoder).raw_value(one) for one in index] == ["phone", None, "17", "é"]


def test_a_bucket_that_was_not_seen_has_no_raw_value() -> None:
    """A search for one that falls into it would take as many hashes as there are buckets."""
    assert HashedEncoder(50_000_000).raw_value(7) is None


def test_of_values_that_share_a_bucket_the_least_is_the_example() -> None:
    encoder = HashedEncoder(1)
    for chunk in (["m"], ["z", "b"], ["x"]):
        encoder.encode(pl.Series("c", chunk))
    assert encoder.raw_value(2) == "b"


@given(st.integers(1, 60), st.randoms(use_true_random=False))
def test_which_examples_are_kept_does_not_depend_on_the_chunks(rows: int, random: Any) -> None:
    values = [f"v{i}" for i in range(100)]
    kept = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns_category, "MOST_EXAMPLES", 9)
        for size in (100, rows):
            encoder = HashedEncoder(1_000_000)
            for start in range(0, 100, size):
                encoder.encode(pl.Series("c", values[start : start + size]))
            random.shuffle(values)
            kept.append(read_back(encoder).examples)
    assert kept[0] == kept[1] and len(kept[0]) == 9


def test_indices_without_an_example_give_way_to_one_that_has() -> None:
    encoder = HashedEncoder(1_000_003)
    # "a" 441832, "17" 506815, "é" 257779: see above.
    encoder.encode(pl.Series("c", ["a", "17", "é"]))
    found = encoder.with_examples(np.array([441_832, 441_833, 900_000, 5, 1, 0]))
    assert found.tolist() == [441_832, 506_815, 506_815, 257_779, 1, 0]
    assert HashedEncoder(1_000_003).with_examples(np.array([441_832, 1])).tolist() == [1, 1]


def test_tags_by_hand() -> None:
    encoder = TagsEncoder.fit(pl.Series("c", [["b", "a"], ["c"]]), Tags(type="tags", max_len=2))
    column = pl.Series("c", [["c", "x", "a", "b"], ["x"], [], None, ["b"]])
    # a 2, b 3, c 4: unknown tags make room for known ones; nothing known is [1, 0].
    assert encoder.encode(column).tolist() == [[4, 2], [1, 0], [1, 0], [1, 0], [3, 0]]
    fixed = pl.Series("c", [["a", "c"]], dtype=pl.Array(pl.String, 2))
    assert encoder.encode(fixed).tolist() == [[2, 4]]
    assert encoder.special_row(0).tolist() == [[0, 0]] and encoder.special_row(1).tolist() == [[1, 0]]


def test_a_column_without_any_tags_has_no_type_of_its_own() -> None:
    """As a file of few rows, a part of a log or a request's column may have it."""
    nothing = pl.Series("c", [None, None])
    encoder = TagsEncoder.fit(pl.Series("c", [["b", "a"]]), Tags(type="tags", max_len=2))
    assert encoder.encode(nothing).tolist() == [[1, 0], [1, 0]]
    whole = TagsEncoder.fit(pl.Series("c", [[3, 4]]), Tags(type="tags", max_len=2))
    assert whole.encode(nothing).tolist() == [[1, 0], [1, 0]]
    assert TagsEncoder.fit(nothing, Tags(type="tags", max_len=2)).encode(nothing).tolist() == [[1, 0], [1, 0]]


def test_tags_in_a_text_column() -> None:
    spec = Tags(type="tags", max_len=3, separator="|")
    encoder = TagsEncoder.fit(pl.Series("c", ["Drama|Action", "", None, "Action||War|"]), spec)
    # Action 2, Drama 3, War 4: nothing stands between two bars or behind the last.
    assert encoder.vocabulary.values.to_list() == ["Action", "Drama", "War"]
    column = pl.Series("c", ["War|Action", "|", "", None, "New|Drama"])
    expected = [[4, 2, 0], [1, 0, 0], [1, 0, 0], [1, 0, 0], [3, 0, 0]]
    assert encoder.encode(column).tolist() == expected
    lists = [["War", "Action"], [], [], None, ["New", "Drama"]]
    assert [encoder.encode_one(value)[0].tolist() for value in lists] == expected
    assert encoder.encode(pl.Series("c", [None, None])).tolist() == [[1, 0, 0]] * 2


def test_a_separator_is_no_regular_expression() -> None:
    encoder = TagsEncoder.fit(pl.Series("c", ["a.*b.*c"]), Tags(type="tags", separator=".*"))
    assert encoder.vocabulary.values.to_list() == ["a", "b", "c"]


@given(st.lists(st.text("ab|", max_size=8), max_size=8))
def test_text_and_lists_of_the_same_tags_are_the_same(column: list[str]) -> None:
    encoder = TagsEncoder.fit(pl.Series("c", ["a|b|ab"]), Tags(type="tags", max_len=2, separator="|"))
    encoded = encoder.encode(pl.Series("c", column, dtype=pl.String))
    for row, text in zip(encoded, column, strict=True):
        assert row.tolist() == encoder.encode_one([tag for tag in text.split("|") if tag])[0].tolist()


def test_a_categorical_column_grows() -> None:
    spec = Categorical(type="categorical", min_count=2, max_size=4)
    first = pl.Series("c", ["m", "m", "x", "x", "b"])
    encoder = fit_column(first, spec, "log.csv")
    assert isinstance(encoder, CategoricalEncoder)
    # c and a twice, d three times, b once again: one place is left for d, and one for a before c.
    more = pl.Series("c", ["c", "c", "d", "d", "d", "a", "a", "b", "m"])
    extended = fit_column(more, spec, "log.csv", prior=encoder)
    assert isinstance(extended, CategoricalEncoder)
    assert encoder.vocabulary.values.to_list() == ["m", "x"]
    assert extended.vocabulary.values.to_list() == ["m", "x", "a", "d"]
    assert extended.encode(pl.Series("c", ["m", "x", "a", "d", "c", "b"])).tolist() == [2, 3, 4, 5, 1, 1]
    full = fit_column(pl.Series("c", ["z"] * 9), spec, "log.csv", prior=extended)
    assert full.field("c").size == extended.field("c").size == 6


def test_a_column_of_distinct_values_and_their_counts() -> None:
    spec = Categorical(type="categorical", min_count=3)
    distinct, times = pl.Series("c", ["a", "b", None]), pl.Series([2, 3, 9], dtype=pl.UInt32)
    encoder = CategoricalEncoder.fit(distinct, spec, times)
    assert encoder.vocabulary.values.to_list() == ["b"]
    assert encoder.extended(distinct, spec, pl.Series([3, 1, 9])).vocabulary.values.to_list() == ["b", "a"]


def test_tags_grow() -> None:
    spec = Tags(type="tags", max_len=2, separator="|")
    encoder = fit_column(pl.Series("c", ["m|x"]), spec, "items.csv")
    extended = fit_column(pl.Series("c", ["b|m", None, "a"]), spec, "items.csv", prior=encoder)
    assert extended.encode(pl.Series("c", ["x|m", "b|a"])).tolist() == [[3, 2], [5, 4]]
    assert extended.field("c").max_len == 2


def test_several_lists_of_tags_are_encoded_as_a_column_is() -> None:
    encoder = TagsEncoder(Vocabulary(pl.Series(["a", "b", "c"])), max_len=2)
    lists = [["c", "a", "b"], [], None, ["nobody"], ["b"]]
    encoded = encoder.encode_many(lists)
    assert encoded.tolist() == [[4, 2], [1, 0], [1, 0], [1, 0], [3, 0]] and encoded.dtype == np.int64
    assert encoded.tolist() == encoder.encode(pl.Series("tags", lists)).tolist()
    assert encoder.encode_many([]).shape == (0, 2)
