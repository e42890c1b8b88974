"""Which exit code an error has, and the line in which a scheduler reads it."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from features.errors import ConfigError, DataError, DiskError, GateError, LockError, StoreAwayError
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


def test_what_is_told_already_is_not_told_anew(tmp_path: Path) -> None:
    told = DiskError("bundles/shop/CURRENT: no space is left")
    told.__cause__ = FULL
    assert explained(told, tmp_path) is told


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "may not be read or written by this user. Change its permissions, or name another path."),
        (errno.EPERM, "may not be read or written by this user. Change its permissions, or name another path."),
        (errno.ENOTDIR, "{above} is no folder, so nothing can lie below it. Name another path."),
        (errno.EISDIR, "is a folder, where a file is wanted. Name another path."),
        (errno.ENAMETOOLONG, "is longer than a path may be here. Name another one."),
    ],
)
def test_a_path_that_cannot_be_used_is_an_error_of_its_user(tmp_path: Path, number: int, words: str) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "deep" / "name"
    error = explained(OSError(number, "no", str(path)), tmp_path)
    assert isinstance(error, ConfigError)
    assert str(error) == f"{path}: {words.format(above=tmp_path / 'file')}"


def test_a_file_where_a_folder_is_to_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError) as found:
        (tmp_path / "file").mkdir(exist_ok=True)
    error = explained(found.value, tmp_path)
    assert str(error) == f"{tmp_path / 'file'}: is no folder, so nothing can lie below it. Name another path."


def test_a_folder_where_a_file_is_to_be_put_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as found:
        (tmp_path / "file").replace(tmp_path / "folder")
    error = explained(found.value, tmp_path)
    assert str(error) == f"{tmp_path / 'folder'}: is a folder, where a file is wanted. Name another path."


def test_a_folder_that_came_meanwhile_is_a_defect(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError) as found:
        tmp_path.mkdir()
    assert explained(found.value, tmp_path) is None


def test_a_connection_that_is_refused_permission_names_no_file(tmp_path: Path) -> None:
    assert explained(PermissionError(errno.EACCES, "no"), tmp_path) is None


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
