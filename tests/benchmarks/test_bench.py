"""`quadrank bench features` at tiny sizes: what is measured is what is said. No time is asserted."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import pandas_features
from benchmarks.agreement import compare
from benchmarks.bench_features import ratios
from benchmarks.bench_features_jobs import build
from benchmarks.copied_histories import as_lists, as_padded, bytes_per_row
from benchmarks.growth import growth
from benchmarks.measured import ROOT, Measured, measure, medians
from benchmarks.report import Report, size_name
from features.errors import ConfigError
from features.simulator.simulate import simulate
from features.store.feature_set import FeatureSet
from pipelines import checkout
from pipelines.cli.commands import main
from pipelines.inspect import bench

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


class TestMeasuring:
    def test_a_process_is_told_apart_from_the_one_that_started_it(self):
        large = np.ones(30_000_000)  # 229 MiB, resident here
        measured = measure("benchmarks.machine:describe")
        assert large.nbytes / 2**20 > 200 > measured.peak_mib > 10
        assert measured.seconds > 0
        assert measured.result["versions"]["polars"]

    def test_medians(self):
        runs = [Measured(seconds, peak, None) for seconds, peak in ((3.0, 10.0), (1.0, 30.0), (2.0, 20.0))]
        assert medians(runs) == (2.0, 20.0)

    def test_a_killed_process_is_explained(self):
        with pytest.raises(ConfigError, match=r"os:abort was killed by signal 6, .*Measure fewer rows"):
            measure("os:abort")

    def test_a_failure_shows_its_traceback(self):
        with pytest.raises(RuntimeError, match=r"(?s)json:loads failed:.*JSONDecodeError"):
            measure("json:loads", s="{")


OURS = [
    {"build": "ours", "rows": rows, "seconds": seconds, "rows_per_s": rows / seconds, "peak_mib": peak}
    | {"bytes_per_row": 50.0, "copied_bytes_per_row": 300.0, "copied_with_time_bytes_per_row": 600.0}
    | {"padded_bytes_per_row": 500.0 + rows / 1e6}
    for rows, seconds, peak in ((1_000_000, 1.0, 400.0), (10_000_000, 12.5, 1000.0), (40_000_000, 50.0, 1200.0))
]
PANDAS = {"build": "pandas", "rows": 1_000_000, "rows_per_s": 20_000, "peak_mib": 1600.0}


class TestTheReport:
    def test_ratios(self):
        assert ratios(OURS, [PANDAS]) == {
            "ours_over_pandas": 50.0,
            "peak_pandas_over_ours": 4.0,
            "peak_40m_over_10m": 1.2,
            "seconds_per_row_40m_over_1m": 1.25,
            "bytes_copied_over_ours": 6.0,
            "bytes_copied_with_time_over_ours": 12.0,
            "bytes_padded_over_ours": 10.2,
        }

    def test_one_size_says_nothing_of_growth(self):
        assert not [name for name in ratios(OURS[:1], []) if name.startswith(("peak", "seconds"))]

    def test_the_plot_shows_the_numbers(self):
        time_axes, memory_axes = growth(OURS).axes
        np.testing.assert_array_equal(time_axes.lines[0].get_xydata(), [[1e6, 1.0], [1e7, 12.5], [4e7, 50.0]])
        np.testing.assert_array_equal(time_axes.lines[1].get_ydata(), [1.0, 10.0, 40.0])
        np.testing.assert_array_equal(memory_axes.lines[0].get_ydata(), [400.0, 1000.0, 1200.0])
        np.testing.assert_array_equal(memory_axes.lines[1].get_ydata(), [400.0] * 3)
        assert {axes.get_xscale() for axes in (time_axes, memory_axes)} == {"log"}

    def test_markdown(self):
        report = Report(
            [{"name": "a", "rows": 1_000, "speed": 1234.5}, {"name": "b", "rows": 2}],
            {"a_over_b": 1.5},
            {"name": "what", "rows": "rows", "speed": "rows/s"},
        )
        assert report.markdown().splitlines() == [
            "| what | rows | rows/s |",
            "| --- | ---: | ---: |",
            "| a | 1,000 | 1,234 |",
            "| b | 2 |  |",
            "",
            "| ratio |  |",
            "| --- | ---: |",
            "| a_over_b | 1.5 |",
        ]

    def test_sizes_have_short_names(self):
        assert [size_name(rows) for rows in (3_000, 50_000, 2_500_000, 40_000_000)] == ["3k", "50k", "2.5m", "40m"]


class TestTheCommand:
    def test_everything_at_a_tiny_size(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)  # a relative --work must not be lost on other processes
        options = ["--sizes", "0.004", "--pandas-rows", "3000", "--repeats", "1", "--out", "out", "--work", "work"]
        with pytest.raises(SystemExit) as stop:
            main(["bench", "features", *options, "--json"])
        captured = capsys.readouterr()
        assert not stop.value.code, captured.err
        payload = json.loads(captured.out.splitlines()[-1])
        assert set(payload) == {"bench", "machine", "results", "ratios"}
        assert payload["bench"] == "features" and payload["machine"]["cores"] >= 1
        results = {result["name"]: result for result in payload["results"]}
        assert list(results) == ["ours_3k", "pandas_3k", "pandas_numpy_3k", "ours_4k"]
        for result in results.values():
            assert result["rows_per_s"] == pytest.approx(result["rows"] / result["seconds"], rel=0.01)
            assert result["peak_mib"] > 30
        assert results["ours_4k"]["stages"]["rows and histories"] > 0
        assert results["pandas_3k"]["rows_compared"] == results["pandas_numpy_3k"]["rows_compared"] == 3_000
        assert "peak_4k_over_3k" in payload["ratios"] and "ours_over_pandas_numpy" in payload["ratios"]
        assert "3k: pandas made the same features (3,000 rows compared)" in captured.err
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
            "features.json",
            "features.md",
            "growth.png",
        ]
        assert json.loads((tmp_path / "out" / "features.json").read_text()) == payload
        assert not list((tmp_path / "work").iterdir())

    def test_sizes_are_millions(self):
        assert bench.parse_sizes("10,1,0.05,1") == [50_000, 1_000_000, 10_000_000]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("1,ten", "write millions of rows"),
            ("", "write millions"),
            ("inf", "write millions"),
            ("0.0001", "at least"),
        ],
    )
    def test_impossible_sizes(self, text, message):
        with pytest.raises(ConfigError, match=f"--sizes '{text}': .*{message}"):
            bench.parse_sizes(text)

    def test_outside_a_checkout(self, tmp_path, monkeypatch):
        monkeypatch.setattr(checkout, "ROOT", tmp_path)
        with pytest.raises(ConfigError, match=r"quadrank bench features: needs .*clone the project"):
            bench.run_bench("features", None, None, None)

    def test_a_folder_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(ConfigError, match="cannot be written"):
            bench.run_bench("features", None, tmp_path / "file", None)

    def test_results_are_no_part_of_the_project(self):
        assert "results/" in (ROOT / "benchmarks" / ".gitignore").read_text()


def test_scripts_of_the_folder_find_the_packages():
    """A script's own folder comes first on the path: no module in it may bear the name of a package."""
    names = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert not names & {"features", "ctr", "pipelines", "tests"}


def test_a_day_added_keeps_the_old_days(tmp_path, capsys):
    arguments = [
        "bench",
        "daily",
        "--rows",
        "10000",
        "--window",
        "4",
        "--repeats",
        "1",
        "--out",
        str(tmp_path),
        "--json",
    ]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    payload = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [result["name"] for result in payload["results"]] == ["a day added", "whole window"]
    assert list(payload["ratios"]) == ["day_over_window_4d_10k"]
