"""What FuxiCTR's loader reads: rows in stored order, histories of events that say what they said, missing flags."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks.peers.fuxictr_data import COMPONENTS, histories_of, write_data
from features.encoding.encoder import Encoder
from features.errors import ConfigError
from features.store.feature_set import SPLITS, FeatureSet, write_arrow
from features.store.schema import PADDING, UNKNOWN
from features.store.versions import ITEM_VERSIONS, ROW, VALID_FROM
from tests.toy import HISTORY_LEN, WIDTHS, toy_feature_set


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    feature_set = toy_feature_set(folder / "features", rows=600, users=30, items=20)
    write_data(feature_set, "all", folder / "out")
    return feature_set, folder / "out"


def values(folder, table):
    """Columns of a table, a list column as a matrix."""
    return {name: np.array(column.to_pylist()) for name, column in zip(*columns_of(folder / table), strict=True)}


def columns_of(path):
    table = pq.read_table(path)
    return table.column_names, table.columns


def histories(folder, split):
    return pq.read_table(histories_of(folder, split))["full_item_seq"].to_pylist()


def described(folder):
    content = json.loads((folder / "feature_map.json").read_text())
    return {name: spec for one in content["features"] for name, spec in one.items()}


@pytest.mark.parametrize("split", SPLITS)
def test_every_past_event_is_there_with_all_that_it_said(toy, split):
    feature_set, out = toy
    items, found = values(out, "items.parquet"), iter(histories(out, split))
    lengths = iter(values(out, f"{split}.parquet")["seq_len"])
    some = 0
    for rows, events in zip(feature_set.rows(split), feature_set.events(split), strict=True):
        for end, length in zip(rows["history_end"], rows["history_len"], strict=True):
            past, history = slice(end - length, end), next(found)
            assert next(lengths) == max(length, 1)
            if not length:
                # FuxiCTR would divide by zero: an empty history gets the unknown item.
                assert history == [UNKNOWN]
                continue
            some += 1
            item = feature_set.items["item_id"][events["item"][past]]
            np.testing.assert_array_equal(items["item_item_id"][history], item)
            np.testing.assert_array_equal(items["event_label"][history], events["label"][past])
            residual, missing = items["event_residual"][history].T
            np.testing.assert_array_equal(missing == 1, np.isnan(events["residual"][past]))
            np.testing.assert_allclose(residual, np.nan_to_num(events["residual"][past]))
    assert next(found, None) is None
    assert some > 30


def test_a_target_says_nothing_of_an_event(toy):
    feature_set, out = toy
    items, targets = values(out, "items.parquet"), slice(UNKNOWN, feature_set.schema.items)
    assert (items["event_label"][targets] == UNKNOWN).all()
    np.testing.assert_array_equal(items["event_residual"][targets], np.tile([0, 1], (feature_set.schema.items - 1, 1)))
    np.testing.assert_array_equal(items["item_item_id"][targets], feature_set.items["item_id"][targets])
    assert (items["item_index"] == np.arange(len(items["item_index"]))).all()


def test_padding_is_zero_throughout(toy):
    """FuxiCTR's mean adds the padding of a history up with its events: a number there would swamp a short one."""
    _, out = toy
    for name, column in values(out, "items.parquet").items():
        assert not column[PADDING].any(), name


def test_equal_events_are_one_row(toy):
    feature_set, out = toy
    every = [
        (events["item"][at], events["label"][at], np.nan_to_num(events["residual"][at], nan=9.0))
        for events in feature_set.events("train")
        for at in range(len(events["item"]))
    ]
    assert len(set(every)) < len(every)
    assert len(values(out, "items.parquet")["item_index"]) == feature_set.schema.items + len(set(every))


def test_numbers_that_can_be_missing_have_a_flag(toy):
    feature_set, out = toy
    features = described(out)
    for split in SPLITS:
        rows = values(out, f"{split}.parquet")
        for name in ("load", "item_rate"):
            stored = np.concatenate([part[name] for part in feature_set.rows(split)])
            value, missing = rows[f"row_{name}"].T
            np.testing.assert_allclose(value, np.nan_to_num(stored))
            np.testing.assert_array_equal(missing == 1, np.isnan(stored))
            assert features[f"row_{name}"] == {"source": "context", "type": "embedding", "pretrain_dim": 2}
    price = feature_set.items["price"]
    complete = not np.isnan(price).any()
    assert features["item_price"]["type"] == ("numeric" if complete else "embedding")


def test_numbers_that_are_never_missing_stay_as_fuxictr_takes_them(toy, tmp_path):
    feature_set, _ = toy

    class Complete(FeatureSet):
        def rows(self, split):
            return [{**part, "load": np.zeros_like(part["load"])} for part in super().rows(split)]

    write_data(Complete(feature_set.path, feature_set.manifest), "all", tmp_path)
    assert described(tmp_path)["row_load"] == {"source": "context", "type": "numeric"}
    assert values(tmp_path, "test.parquet")["row_load"].ndim == 1


def test_items_without_a_vector_are_flagged(toy):
    feature_set, out = toy
    items, features = values(out, "items.parquet"), described(out)
    for one in feature_set.schema.vectors:
        width = min(COMPONENTS, one.width)
        found = items[f"vector_{one.name}"][UNKNOWN : feature_set.schema.items]
        assert found.shape[1] == width + (not one.complete)
        assert features[f"vector_{one.name}"]["pretrain_dim"] == found.shape[1]
        if not one.complete:
            np.testing.assert_array_equal(found[:, -1] == 0, feature_set.present(one.name)[UNKNOWN:])
    assert {one.complete for one in feature_set.schema.vectors} == {True, False}
    assert set(WIDTHS) == {one.name for one in feature_set.schema.vectors}


def test_rows_carry_labels_and_users_in_stored_order(toy):
    feature_set, out = toy
    table, parts = values(out, "valid.parquet"), feature_set.rows("valid")
    for name, column in (("label", "label"), ("hour", "row_hour"), ("item", "item_index")):
        np.testing.assert_array_equal(table[column], np.concatenate([part[name] for part in parts]))
    user = np.concatenate([part["user"] for part in parts])
    np.testing.assert_array_equal(table["user_segment"], feature_set.users["segment"][user])


def test_the_map_names_every_column(toy):
    _, out = toy
    columns = set(columns_of(out / "train.parquet")[0]) | set(columns_of(out / "items.parquet")[0])
    assert columns - set(described(out)) == {"label"}
    assert set(described(out)) <= columns


def test_no_number_is_missing(toy):
    _, out = toy
    tables = ["items.parquet", *(f"{split}.parquet" for split in SPLITS)]
    for table in tables:
        for name, column in values(out, table).items():
            assert not np.isnan(column.astype(np.float64)).any(), (table, name)


def test_liked_histories_are_what_was_clicked_strictly_before(simulated, tmp_path):
    write_data(simulated, "liked", tmp_path)
    clicked = Encoder.load(simulated.path).event["clicked"]
    items, found = values(tmp_path, "items.parquet")["item_item_id"], histories(tmp_path, "test")
    most = simulated.schema.history_max_len
    at = 0
    for rows, events in zip(simulated.rows("test"), simulated.events("test"), strict=True):
        said = np.array([clicked.raw_value(one) for one in events["clicked"]])
        for end, length, time in zip(rows["history_end"], rows["history_len"], rows["time"], strict=True):
            past = slice(end - length, end)
            assert (events["time"][past] < time).all()
            kept = events["item"][past][said[past] == 1][-most:]
            expected = simulated.items["item_id"][kept].tolist() or [UNKNOWN]
            assert items[found[at]].tolist() == expected
            at += 1
    assert at == len(found)
    assert max(len(one) for one in found) > HISTORY_LEN


def test_items_that_change_are_refused(tmp_path):
    toy_feature_set(tmp_path / "toy", rows=100, users=10, items=10)
    version = {ROW: np.array([2], np.int32), VALID_FROM: np.array([0]), "price": np.array([1], np.float32)}
    write_arrow(tmp_path / "toy" / ITEM_VERSIONS, version)
    with pytest.raises(ConfigError, match="has `valid_from`"):
        write_data(FeatureSet.open(tmp_path / "toy"), "all", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tags_of_an_event_are_refused(toy, tmp_path):
    feature_set, _ = toy
    tags = next(field for field in feature_set.schema.item if field.kind == "tags")
    schema = feature_set.schema.model_copy(update={"event": (*feature_set.schema.event, tags)})
    changed = FeatureSet(feature_set.path, feature_set.manifest.model_copy(update={"schema_": schema}))
    with pytest.raises(ConfigError, match="tags: FuxiCTR's loader for histories takes no tags"):
        write_data(changed, "all", tmp_path / "out")
