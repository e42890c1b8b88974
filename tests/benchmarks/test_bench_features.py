"""`quadrank bench features` at tiny sizes: what is measured is what is said. No time is asserted."""

import json

import numpy as np
import pytest

from benchmarks.bench_features import ratios
from benchmarks.harness.growth import growth
from benchmarks.harness.measured import ROOT
from benchmarks.harness.report import Report, size_name
from features.errors import ConfigError
from pipelines import checkout
from pipelines.cli.commands import main
from pipelines.inspect import bench

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
    @pytest.mark.slow
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
    names = {path.stem for path in (ROOT / "benchmarks").rglob("*.py")}
    assert not names & {"features", "ctr", "pipelines", "tests"}
