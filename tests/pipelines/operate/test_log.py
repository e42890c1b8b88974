"""Messages of a job as JSON lines: those before the run has a folder too."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table

from pipelines.operate.log import LoggedConsole


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_messages_go_to_people_to_the_file_and_to_the_run(tmp_path: Path) -> None:
    shown = io.StringIO()
    console = LoggedConsole(tmp_path / "job.jsonl", file=shown, width=80)
    console.print("feature set built")
    run = tmp_path / "20260101T000000Z-shop"
    run.mkdir()
    console.belongs_to(run)
    console.print("gate refused", style="yellow")
    assert shown.getvalue() == "feature set built\ngate refused\n"
    read = lines(run / "log.jsonl")
    assert [(one["message"], one["level"], one["run"]) for one in read] == [
        ("feature set built", "info", None),
        ("gate refused", "warning", run.name),
    ]
    assert lines(tmp_path / "job.jsonl") == read
    assert all(one["time"].endswith("+00:00") for one in read)


def test_another_run_gets_what_was_said_since_it_began(tmp_path: Path) -> None:
    """Such as one that begins in place of a run whose checkpoint is damaged."""
    console = LoggedConsole(None, file=io.StringIO())
    console.print("built")
    for name in ("first", "second"):
        console.belongs_to(tmp_path / name)
        console.print(f"{name} begins")
    assert [one["message"] for one in lines(tmp_path / "first" / "log.jsonl")] == ["built", "first begins"]
    assert [one["message"] for one in lines(tmp_path / "second" / "log.jsonl")] == ["second begins"]


def test_without_a_file_the_run_alone_has_the_log(tmp_path: Path) -> None:
    console = LoggedConsole(None, file=io.StringIO())
    console.belongs_to(tmp_path)
    console.print("error", style="bold red")
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]
    assert lines(tmp_path / "log.jsonl")[0]["level"] == "error"


@pytest.mark.parametrize("text", ["runs/[prod]/a", "runs/[/x]", "at :smile: and 12:x:30"])
def test_what_stands_in_brackets_or_between_colons_is_text(tmp_path: Path, text: str) -> None:
    """Folders, files and columns have such names; rich would read styles and pictures in them."""
    shown = io.StringIO()
    console = LoggedConsole(tmp_path / "log.jsonl", file=shown, width=80)
    console.print(text)
    table = Table()
    table.add_column("path")
    table.add_row(text)
    console.print(table)
    assert shown.getvalue().splitlines()[0] == text
    assert shown.getvalue().count(text) == 2
    messages = [json.loads(line)["message"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert messages[0] == text
    assert text in messages[1]
