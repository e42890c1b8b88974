"""Progress: counts that add up, on a terminal and in a log file, always on stderr."""

from __future__ import annotations

import io
import re
import subprocess
import sys

import pytest

from features.progress import Lines, progress, silent


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_say_count_speed_and_note():
    out = io.StringIO()
    lines = Lines("training", 48_000, "rows", out=out, seconds_between=0)
    lines.advance(12_000, note="auc 0.7")
    lines.advance(12_000)
    first, second = out.getvalue().splitlines()
    assert re.fullmatch(r"training: 12,000 / 48,000 rows, [\d,]+ rows/s, auc 0\.7", first)
    assert second.startswith("training: 24,000 / 48,000 rows") and second.endswith("auc 0.7")


def test_lines_are_far_apart_and_end_with_one():
    out = io.StringIO()
    lines = Lines("encoding", 1000, "files", out=out)
    for _ in range(1000):
        lines.advance(1)
    assert out.getvalue() == ""
    lines.finish()
    assert out.getvalue().startswith("encoding: 1,000 / 1,000 files")


def test_what_was_done_before_is_no_speed():
    out = io.StringIO()
    Lines("training", 100, "rows", done=60, out=out).finish()
    assert out.getvalue() == "training: 60 / 100 rows, 0 rows/s\n"


def test_a_log_file_gets_plain_lines_on_stderr(capsys):
    with progress("simulating", total=10) as bar:
        bar.advance_to(7, 10)
        bar.advance(3)
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("simulating: 10 / 10 rows")


def test_a_terminal_gets_a_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    with progress("simulating", total=20, done=4) as bar:
        bar.advance(1, note="auc 0.7")
        bar.advance_to(10, 20)
    shown = terminal.getvalue()
    assert "simulating" in shown and "50%" in shown and "10 / 20 rows" in shown and "auc 0.7" in shown


@pytest.mark.parametrize("how", [progress, silent])
def test_errors_pass_through(how, capsys):
    with pytest.raises(ValueError, match="broken"), how("encoding", total=2) as bar:
        bar.advance(1)
        bar.advance_to(2, 2)
        raise ValueError("broken")
    assert capsys.readouterr().err == ""


def test_a_reader_that_is_gone_ends_no_job(tmp_path):
    """As of `quadrank train 2>&1 | head -1`, and of a log collector that was restarted."""
    script = """
import sys, time
from features.progress import progress
sys.stdin.readline()
with progress("encoding", total=2) as bar:
    bar.advance(1)
with progress("training", total=2) as bar:
    bar.advance(2)
print("what another library says", file=sys.stderr, flush=True)
print("done", flush=True)
"""
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    job = subprocess.Popen([sys.executable, "-c", script], text=True, **pipe)
    job.stderr.close()
    job.stdin.write("go\n")
    job.stdin.close()
    assert job.stdout.read() == "done\n"
    job.stdout.close()
    assert job.wait() == 0
