"""`quadrank bench score` at toy sizes, what is measured called in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from benchmarks import bench_score
from benchmarks.bench_score import ScoreBench
from benchmarks.harness.measured import Measured
from pipelines.cli.commands import main
from tests.benchmarks.test_bench_rank import SIZES, call


def test_both_ways_score_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench_score, "measure", call)
    monkeypatch.setattr(bench_score, "USERS_A_LOG", 20)
    said: list[str] = []
    report = bench_score.run(tmp_path, said.append, ScoreBench(3_000, 200, 8, 30, 4, (1, 5), 1, True, SIZES))
    assert [(row["name"], row["items_a_user"], row["rows"]) for row in report.results] == [
        ("quadrank score", 1, 30), ("a request a user", 1, 4), ("quadrank score", 5, 30), ("a request a user", 5, 20),
    ]  # fmt: skip
    for score, alone in (report.results[:2], report.results[2:]):
        ratio = score["rows_per_s"] / alone["rows_per_s"]
        name = f"score_over_one_request_{score['items_a_user']}_items"
        assert report.ratios[name] == pytest.approx(ratio, abs=0.001)
        assert score["over_one_request"] == pytest.approx(ratio)
    # The rows are those of the log's later half, and no two requests of them are alike.
    rows = pl.read_parquet(tmp_path / "rows_5" / "rows.parquet")
    assert (
        rows.group_by("user", "time", "likes_level", "views_level", maintain_order=True).len()["len"].to_list()
        == [5] * 6
    )
    assert rows["time"].min() >= 1_700_000_000 + 1_500


def test_ways_that_differ_stop_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def measured(target: str, **arguments: Any) -> Measured:
        return Measured(
            1.0,
            1.0,
            {"feature_set": "", "raw": "", "rows": 3, "score": 2.0, "one_request": 1.0, "logit_difference": 2e-5},
        )

    monkeypatch.setattr(bench_score, "measure", measured)
    with pytest.raises(RuntimeError, match=r"7 items a user: both ways differ by 2\.0e-05 in logits"):
        bench_score.run(tmp_path, lambda text: None, ScoreBench(3_000, 200, 8, 30, 4, (7,), 1, True, SIZES))


def test_numbers_of_items_that_are_none_are_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "score", "--items-a-user", "1,x"])
    assert ended.value.code == 2 and "--items-a-user" in capsys.readouterr().err


def test_more_requests_one_by_one_than_the_rows_make_are_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "score", "--items-a-user", "1,20", "--scored", "400", "--alone", "20"])
    assert ended.value.code == 2
    assert "400 rows are 20 requests of 20 items" in capsys.readouterr().err
