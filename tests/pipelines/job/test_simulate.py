"""`quadrank simulate`: its record beside the log, and when a log is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from pipelines.cli.commands import main
from pipelines.job.simulate import RECORD, simulate_once
from tests.strict_json import strict

ARGUMENTS = {"rows": 300, "users": 20, "items": 40, "seed": 3}


def simulated(out: Path) -> dict[str, object]:
    return simulate_once(out, **ARGUMENTS, console=Console(quiet=True))


def test_an_optimum_that_one_label_alone_does_not_have_is_null(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["simulate", "--rows", "1", "--users", "1", "--items", "30", "--out", str(tmp_path), "--json"])
    assert stop.value.code == 0
    shown = capsys.readouterr()
    assert strict(shown.out)["optimal_auc"] is None
    assert "optimal AUC none, since all rows have one label" in shown.err
    assert strict((tmp_path / RECORD).read_text(encoding="utf-8"))["optimal_auc"] is None


def test_the_log_of_the_same_arguments_is_kept(tmp_path: Path) -> None:
    assert simulated(tmp_path)["status"] == "done"
    assert simulated(tmp_path)["status"] == "reused"


def test_a_log_that_lacks_a_file_is_made_again(tmp_path: Path) -> None:
    simulated(tmp_path)
    (tmp_path / "interactions.parquet").unlink()
    assert simulated(tmp_path)["status"] == "done"
    assert (tmp_path / "interactions.parquet").is_file()


@pytest.mark.parametrize("content", ["", "[]", '{"rows": 30', "\x00"])
def test_a_log_whose_record_is_broken_is_made_again(tmp_path: Path, content: str) -> None:
    simulated(tmp_path)
    (tmp_path / RECORD).write_text(content, encoding="utf-8")
    assert simulated(tmp_path)["status"] == "done"
    assert json.loads((tmp_path / RECORD).read_text(encoding="utf-8"))["rows"] == 300
