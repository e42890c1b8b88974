"""What FuxiCTR is given, row by row; FuxiCTR itself is not installed here."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks.fuxictr_rows import MAX_LEN, write_data
from features.build import build_feature_set
from features.contract import load_contract
from features.encoder import Encoder
from features.simulator.simulate import simulate
from tests.pipelines.test_commands import ROOT


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peer")
    simulate(folder / "raw", rows=4_000, users=100, items=80, seed=1)
    contract = load_contract(ROOT / "conf/data/simulated.yaml", root=str(folder / "raw"))
    # FuxiCTR's loader for histories takes no category of a row it has no vocabulary of: all of ours have one.
    feature_set = build_feature_set(contract, folder).feature_set
    write_data(feature_set, folder / "out")
    return feature_set, folder / "out"


def test_histories_are_what_was_liked_strictly_before(written):
    feature_set, out = written
    rows, histories = (
        pq.read_table(out / "test.parquet"),
        pq.read_table(out / "test_histories.parquet")["full_item_seq"],
    )
    encoder = Encoder.load(feature_set.path)
    clicked = encoder.event["clicked"]
    at = 0
    some = 0
    for part, events in zip(feature_set.rows("test"), feature_set.events("test"), strict=True):
        said = np.array([clicked.raw_value(one) for one in events["clicked"]])
        for end, length in zip(part["history_end"], part["history_len"], strict=True):
            past = slice(end - length, end)
            expected = events["item"][past][said[past] == 1][-MAX_LEN:].tolist()
            # An empty one would make FuxiCTR divide by zero: it gets the unknown item.
            assert histories[at].as_py() == (expected or [1]) and rows["seq_len"][at].as_py() == max(len(expected), 1)
            some += len(expected) > 0
            at += 1
    assert at == len(rows) and some > 50


def test_rows_carry_labels_counters_and_users_in_stored_order(written):
    feature_set, out = written
    table = pq.read_table(out / "valid.parquet")
    parts = feature_set.rows("valid")
    for name, column in (("label", "label"), ("item_rate", "row_item_rate"), ("item", "item_index")):
        np.testing.assert_allclose(table[column].to_numpy(), np.concatenate([part[name] for part in parts]))
    user = np.concatenate([part["user"] for part in parts])
    np.testing.assert_array_equal(table["user_country"].to_numpy(), feature_set.users["country"][user])
    assert not any(np.isnan(table[name].to_numpy()).any() for name in table.column_names)


def test_the_map_names_every_column(written):
    _, out = written
    described = json.loads((out / "feature_map.json").read_text())
    names = {name for one in described["features"] for name in one}
    columns = set(pq.read_table(out / "train.parquet").column_names) | set(
        pq.read_table(out / "items.parquet").column_names
    )
    assert columns - names == {"label"} and names <= columns
