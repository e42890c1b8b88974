"""Golden requests of columns that are hashed: written with values that the log had, found without a search."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pytest

from ctr.export.golden_requests import (
    LoggedRow,
    _refuse_skew,
    _requests,
    chosen_rows,
    logged_request,
    raw_request,
    replayable,
)
from features.build.build import build_feature_set
from features.encoding.encoder import Encoder
from features.encoding.request import parse_request
from features.requests.past_columns import RequestEncoder
from features.store.feature_set import FeatureSet
from features.store.schema import UNKNOWN
from tests.features.raw import ROWS, Tables, raw_log
from tests.features.rich_counters import contract, draw_log, write

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


def below_zero(tables: Tables) -> None:
    """Ids of half of the items and users, and those of their tables and vectors."""
    for name, column in (("log", "item_id"), ("log", "user_id"), ("items", "item_id"), ("text", "item_id"),
                         ("users", "user_id")):  # fmt: skip
        sign = pl.when(pl.col(column) % 2 == 0).then(-1).otherwise(1)
        tables[name] = tables[name].with_columns((pl.col(column).cast(pl.Int64) * sign).alias(column))


def test_ids_that_no_request_can_name_give_way_to_others(tmp_path: Path) -> None:
    over = {"checks": {"negative_id": "warn"}}
    made = build_feature_set(raw_log(tmp_path, below_zero, over), tmp_path / "out").feature_set
    encoder = Encoder.load(made.path)
    requests, draw = RequestEncoder(encoder), np.random.default_rng(0)
    found = list(_requests(made, requests, draw))
    assert len(found) >= 8
    for name, request, stored in found:
        encoded = requests.encode(parse_request(request, encoder.contract))
        if stored is not None:
            _refuse_skew(name, encoded, stored.encoded(made.schema, made.users))
            assert len(encoded.history_item) == len(stored.history_item)


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


def test_a_counter_without_a_value_is_0_in_request_and_case_alike(tmp_path: Path) -> None:
    """A request cannot say that there is none: what it leaves out is read from the bundle."""
    write(tmp_path, draw_log(1, requests=20))
    built = build_feature_set(contract(tmp_path), tmp_path / "out").feature_set
    encoder, without = Encoder.load(built.path), set()
    for part, rows in enumerate(built.rows("test")):
        for index in range(len(rows["user"])):
            stored = logged_request(built, LoggedRow(part, index), np.array([2, 3]))
            case = replayable(stored, encoder)
            encoded = encoder.encode_request(parse_request(raw_request(case, encoder), encoder.contract))
            for name in encoder.contract.counters:
                side = "candidate" if name in encoder.candidate else "context"
                before, after = getattr(stored, side)[name], getattr(case, side)[name]
                if np.isnan(before).any():
                    without.add(name)
                    nothing = {**encoder.candidate, **encoder.context}[name].encode_one(0)
                    assert (after == nothing).all()
                else:
                    np.testing.assert_array_equal(after, before)
                np.testing.assert_allclose(getattr(encoded, side)[name], after, rtol=1e-5, atol=1e-5)
    assert {"user_item", "user_kind"} <= without


def test_where_hours_go_on_a_request_without_a_past_names_its_time(tmp_path: Path) -> None:
    write(tmp_path, draw_log(1))
    hours = {"seen": {"of": "item", "value": "since"}}
    log = {**contract(tmp_path).model_dump()["interactions"], "context": {}}
    built = build_feature_set(contract(tmp_path, hours, interactions=log), tmp_path / "out").feature_set
    made = _requests(built, RequestEncoder(Encoder.load(built.path)), np.random.default_rng(0))
    (alone,) = (request for name, request, _ in made if name == "candidates alone")
    row = chosen_rows(built)[0]
    assert alone["time"] == built.rows("test")[row.part]["time"][row.index] / 1_000_000
