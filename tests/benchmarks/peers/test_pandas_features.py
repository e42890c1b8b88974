"""The pandas peer makes the features that ours makes, and what it would weigh with histories copied into rows."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.jobs.feature_build import build
from benchmarks.peers import pandas_features
from benchmarks.peers.agreement import compare
from benchmarks.peers.copied_histories import as_lists, as_padded, bytes_per_row
from features.simulator.simulate import simulate
from features.store.feature_set import FeatureSet

MAX_LEN = 8  # short, so that histories are cut


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folders of a raw log, of our feature set and of the pandas build of it."""
    work = tmp_path_factory.mktemp("bench")
    raw, ours, theirs = (str(work / name) for name in ("raw", "ours", "pandas"))
    simulate(Path(raw), rows=3_000, users=60, items=150, seed=3)
    path = build(raw=raw, out=ours, max_len=MAX_LEN)["path"]
    pandas_features.build(raw, theirs, MAX_LEN)
    return raw, path, theirs


class TestThePeers:
    # One user with a tie at 20, and another: (user, time, item, clicked).
    LOG = pd.DataFrame(
        [(1, 10, 5, 2), (1, 20, 6, 3), (1, 20, 7, 2), (1, 30, 8, 2), (2, 15, 9, 3), (2, 16, 5, 2)],
        columns=["user_id", "timestamp", "item", "clicked"],
    )

    @pytest.mark.parametrize("histories", [pandas_features.histories, pandas_features.histories_with_numpy])
    def test_histories_are_strictly_before_and_cut_to_the_newest(self, histories):
        items, clicked = histories(self.LOG, max_len=2)
        assert [list(some) for some in items] == [[], [5], [5], [6, 7], [], [9]]
        assert [list(some) for some in clicked] == [[], [2], [2], [3, 2], [], [3]]

    def test_values_are_learned_from_training(self):
        values = pd.Series(["b", None, "new", "a", "rare"])
        fitted_on = pd.Series(["b", "b", "a", "a", "rare", None])
        assert pandas_features.encoded(values, fitted_on, min_count=2).tolist() == [3, 1, 1, 2, 1]


class TestAgreement:
    def test_every_row_of_a_small_log_is_compared(self, built):
        raw, ours, theirs = built
        assert compare(ours, theirs, raw) == 3_000

    def test_numpy_makes_the_same_files_as_pandas(self, built, tmp_path):
        raw, _, theirs = built
        pandas_features.build_with_numpy(raw, str(tmp_path / "numpy"), MAX_LEN)
        for split in pandas_features.SPLITS:
            one, other = (pq.read_table(Path(folder) / f"{split}.parquet") for folder in (theirs, tmp_path / "numpy"))
            assert one.to_pylist() == other.to_pylist()

    @pytest.mark.parametrize(
        ("column", "change"),
        [
            ("label", lambda values: [1 - values[0], *values[1:]]),
            ("price", lambda values: [*values[:-1], 7.5]),
            ("history_item", lambda values: [*values[:-1], values[-1][::-1]]),
            ("history_clicked", lambda values: [*values[:-1], values[-1][:-1]]),
        ],
    )
    def test_a_difference_is_told_by_column(self, built, tmp_path, column, change):
        raw, ours, theirs = built
        changed = tmp_path / "changed"
        shutil.copytree(theirs, changed)
        table = pq.read_table(changed / "test.parquet")
        place = table.schema.get_field_index(column)
        values = pa.array(change(table[column].to_pylist()), table.schema.field(column).type)
        pq.write_table(table.set_column(place, column, values), changed / "test.parquet")
        with pytest.raises(ValueError, match=f"test: {column}: 1 of {len(table)} rows differ"):
            compare(ours, str(changed), raw)


class TestCopiedHistories:
    BATCH = {"history_end": np.array([0, 2, 5]), "history_len": np.array([0, 2, 3], np.int32)}
    EVENTS = {"item": np.array([5, 6, 7, 8, 9], np.int32), "time": np.array([1, 2, 3, 4, 5])}

    def test_lists_hold_the_histories(self):
        lists = as_lists(self.BATCH, self.EVENTS)
        assert lists["history_item"].to_pylist() == [[], [5, 6], [7, 8, 9]]
        assert lists["history_time"].to_pylist() == [[], [1, 2], [3, 4, 5]]

    def test_padding_stands_in_front(self):
        padded = as_padded(self.BATCH, self.EVENTS, max_len=4)
        assert list(padded) == ["history_item"]
        assert padded["history_item"].to_pylist() == [[0, 0, 0, 0], [0, 0, 5, 6], [0, 7, 8, 9]]

    def test_bytes_are_those_of_the_files(self, built):
        opened = FeatureSet.open(Path(built[1]))
        files = [path for kind in ("rows", "events") for path in (opened.path / kind).rglob("*.arrow")]
        weight = bytes_per_row(built[1])
        assert weight["ours"] == sum(path.stat().st_size for path in files) / 3_000
        parts = [part for split in pandas_features.SPLITS for part in opened.rows(split)]
        columns = sum(values.dtype.itemsize for name, values in parts[0].items() if not name.startswith("history_"))
        length = sum(int(part["history_len"].sum()) for part in parts) / 3_000
        # An entry of a list is 4 bytes (item, clicked) or 8 (time), and each list of a row ends in an offset of 4.
        literal = {
            "copied": columns + 2 * (4 + 4 * length),
            "copied_with_time": columns + 2 * (4 + 4 * length) + 4 + 8 * length,
            "padded": columns + 2 * 4 * MAX_LEN,
        }
        for layout, expected in literal.items():
            # Beyond the values, three files of a header, a footer and some alignment.
            assert expected < weight[layout] < expected + 3 * 4096 / 3_000
