"""Which exit code an error has, and the line in which a scheduler reads it."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from features.errors import DataError, GateError, LockError, StoreAwayError
from features.stopping import Stopped
from pipelines.operate.codes import exit_code_of, explained, say_code

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (DataError("x"), 4),
        (GateError("x"), 6),
        (LockError("x"), 7),
        (StoreAwayError("x"), 75),
        (FULL, 75),
        (KeyboardInterrupt(), 130),
        (Stopped(), 75),
        (ValueError("x"), 1),
    ],
)
def test_an_error_has_its_code(error: BaseException, code: int, tmp_path: Path) -> None:
    assert exit_code_of(error, tmp_path) == code


def test_a_full_disk_without_a_file_names_the_workspace(tmp_path: Path) -> None:
    assert str(explained(FULL, tmp_path)).startswith(f"{tmp_path}: no space is left on the disk; ")


def test_the_code_is_the_last_line_of_stderr_and_success_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    say_code(6)
    say_code(0)
    assert capsys.readouterr().err == "quadrank: exit 6\n"


def test_a_command_that_may_write_no_more_ends_with_75_and_one_json_line(tmp_path: Path) -> None:
    """The kernel refuses each file above 64 KiB, as a quota would."""
    command = ["-m", "pipelines", "simulate", "--out", str(tmp_path / "raw"), "--rows", "20000", "--users", "100"]
    done = subprocess.run(
        [sys.executable, *command, "--json"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536)),
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 75, done.stderr
    (line,) = done.stdout.splitlines()
    assert '"exit_code": 75' in line and "the file is larger than this process may write" in line
    assert done.stderr.splitlines()[-1] == "quadrank: exit 75"
    assert list(tmp_path.rglob("*.parquet")) == []
