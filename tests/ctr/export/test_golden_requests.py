"""Golden requests of columns that are hashed: written with values that the log had, found without a search."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any, cast

import numpy as np
import polars as pl
import pytest

from ctr.export.golden_requests import chosen_rows, logged_request, raw_request, replayable
from features.build.build import build_feature_set
from features.encoding.encoder import Encoder
from features.encoding.request import parse_request
from features.store.feature_set import FeatureSet
from features.store.schema import UNKNOWN
from tests.features.raw import ROWS, Tables, raw_log

BUCKETS = 50_000_000
QUERY = {"query": {"type": "hashed", "buckets": BUCKETS}}


def with_queries(tables: Tables) -> None:
    tables["log"] = tables["log"].with_columns(query=pl.Series([f"q{i % 50}" for i in range(ROWS)]))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    folder = tmp_path_factory.mktemp("hashed")
    over: dict[str, Any] = {"interactions": {"context": QUERY}, "history": {"columns": QUERY}}
    return build_feature_set(raw_log(folder, with_queries, over), folder / "out").feature_set


def test_logged_rows_become_requests_that_encode_to_what_is_stored(built: FeatureSet) -> None:
    encoder = Encoder.load(built.path)
    for row in chosen_rows(built):
        stored = logged_request(built, row, np.array([2, 3]))
        case = replayable(stored, encoder)
        request = raw_request(case, encoder)
        encoded = encoder.encode_request(parse_request(request, encoder.contract))
        assert encoded.context["query"].tolist() == stored.context["query"].tolist()
        assert encoded.history_events["query"].tolist() == stored.history_events["query"].tolist()


def test_nobody_in_particular_asks_without_a_user(built: FeatureSet) -> None:
    encoder = Encoder.load(built.path)
    known = logged_request(built, chosen_rows(built)[0], np.array([2]))
    assert raw_request(known, encoder)["user"] == encoder.users.value(known.user)
    assert raw_request(replace(known, user=UNKNOWN), encoder)["user"] is None


def test_the_longest_history_is_found_in_the_part_that_holds_it() -> None:
    class TwoParts:
        def rows(self, split: str) -> list[dict[str, np.ndarray]]:
            assert split == "test"
            return [{"history_len": np.array([1, 0, 2])}, {"history_len": np.array([400, 3])}]

    longest = chosen_rows(cast(FeatureSet, TwoParts()))[-1]
    assert (longest.part, longest.index) == (1, 0)


def test_an_index_without_an_example_gives_way_in_request_and_case_alike(built: FeatureSet) -> None:
    encoder = Encoder.load(built.path)
    stored = logged_request(built, chosen_rows(built)[0], np.array([2]))
    stored.context["query"][:] = BUCKETS  # of no value in the log
    case = replayable(stored, encoder)
    request = raw_request(case, encoder)
    query = request["context"]["query"]
    index = 2 + int.from_bytes(hashlib.sha256(query.encode()).digest()[:8], "big") % BUCKETS
    assert query in {f"q{i}" for i in range(50)} and case.context["query"].tolist() == [index]
