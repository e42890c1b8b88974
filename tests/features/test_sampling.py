"""What is drawn at random: the same whatever the chunks, of every slot of a page, and by ids alone."""

from __future__ import annotations

import hashlib

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.draws import drawn
from features.encoding.vocabulary import Vocabulary, id_hashes


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(1, 9), st.integers(0, 3))
def test_chunks_of_any_size_draw_the_same_rows(sizes: list[int], one_in: int, seed: int) -> None:
    starts = np.cumsum([0, *sizes])
    places = [start + drawn(int(start), size, one_in, seed) for start, size in zip(starts, sizes, strict=False)]
    assert np.concatenate(places).tolist() == drawn(0, sum(sizes), one_in, seed).tolist()


def test_each_group_of_neighbours_gives_one_row() -> None:
    assert (drawn(0, 60_000, 6) // 6).tolist() == list(range(10_000))


def test_every_slot_of_a_page_is_drawn_alike() -> None:
    """Pages of six rows and one row in six: every k-th row would be the first of its page."""
    shares = np.bincount(drawn(0, 60_000, 6) % 6, minlength=6) / 10_000
    assert shares == pytest.approx([1 / 6] * 6, abs=0.015)  # four standard deviations


def test_another_seed_draws_other_rows() -> None:
    assert np.isin(drawn(0, 10_000, 10, seed=1), drawn(0, 10_000, 10, seed=2)).mean() < 0.2


def test_the_hash_of_a_text_id_is_that_of_its_text() -> None:
    expected = int.from_bytes(hashlib.sha256(b"b").digest()[:8], "big")
    assert id_hashes(Vocabulary(pl.Series(["a", "b"]))).tolist()[3] == expected


@pytest.mark.parametrize("ids", [[5, 9], ["n5", "n9"]])
def test_an_id_keeps_its_hash_where_another_comes_before_it(ids: list[int] | list[str]) -> None:
    longer = [ids[0], type(ids[0])(str(ids[0]).replace("5", "7")), ids[1]]
    before, after = (id_hashes(Vocabulary(pl.Series(one))) for one in (ids, longer))
    assert after[[0, 1, 2, 4]].tolist() == before.tolist()
    assert len(set(after[2:].tolist())) == 3
