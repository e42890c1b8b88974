"""A disk that cannot be written to is told from every other error, and asked for its room before work starts."""

from __future__ import annotations

import errno
import os
from collections import namedtuple
from pathlib import Path

import pytest

from features.errors import DataError, DiskError
from features.store.atomic import write_text
from features.store.disk import disk_trouble, folder_bytes, require_space

Usage = namedtuple("Usage", "total used free")


def raised_from(cause: Exception) -> Exception:
    try:
        try:
            raise cause
        except Exception:
            raise DataError("the log: cannot be written") from None
    except DataError as error:
        return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space is left on the disk"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk quota is used up"),
        (OSError(errno.EROFS, "Read-only file system"), "the file system is read-only"),
        (OSError(errno.EFBIG, "File too large"), "the file is larger than this process may write"),
        (RuntimeError("No space left on device (os error 28)"), "no space is left on the disk"),
        (RuntimeError("IoError(Os { code: 30, kind: ReadOnlyFilesystem })"), "the file system is read-only"),
        (OSError("[Errno 28] Error writing bytes to file"), "no space is left on the disk"),
        (OSError("19328 requested and 16352 written"), "no space is left on the disk"),
        (RuntimeError("(sqlite3.OperationalError) database or disk is full"), "no space is left on the disk"),
        (raised_from(OSError(errno.ENOSPC, "No space left on device")), "no space is left on the disk"),
    ],
)
def test_trouble_of_the_disk_is_found_whoever_tells_of_it(error: Exception, reason: str) -> None:
    found = disk_trouble(error)
    assert found is not None and found[0] == reason


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOENT, "No such file"),
        ValueError("28 rows"),
        OSError(errno.EACCES, "Permission denied"),
        ValueError("9 requested and 8 written"),
    ],
)
def test_other_errors_are_none_of_the_disk(error: Exception) -> None:
    assert disk_trouble(error) is None


def test_the_file_that_the_error_names_is_found() -> None:
    error = OSError(errno.ENOSPC, "No space left on device", "/data/rows.arrow")
    assert disk_trouble(error) == ("no space is left on the disk", Path("/data/rows.arrow"))


def test_a_full_disk_leaves_the_old_file_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "CURRENT", "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskError, match=r"CURRENT: no space is left on the disk; [\d,]+ bytes are free there"):
        write_text(tmp_path / "CURRENT", "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"CURRENT": "old"}


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, r"Make room \(`quadrank gc`"),
        (errno.EDQUOT, r"Make room \(`quadrank gc`"),
        (errno.EROFS, "Mount it to be written to, or let the command write elsewhere"),
        (errno.EFBIG, r"Raise that limit \(`ulimit -f`\)"),
    ],
)
def test_the_way_out_is_that_of_the_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, advice: str
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(DiskError, match=rf"left half-written\. {advice}.*, and start the same command again"):
        write_text(tmp_path / "CURRENT", "new")


def test_a_folder_counts_the_files_that_are_its_own(tmp_path: Path) -> None:
    (tmp_path / "new" / "deep").mkdir(parents=True)
    (tmp_path / "new" / "deep" / "own").write_bytes(b"12345")
    (tmp_path / "old").write_bytes(b"1234567")
    (tmp_path / "new" / "shared").hardlink_to(tmp_path / "old")
    assert (folder_bytes(tmp_path / "new"), folder_bytes(tmp_path / "none")) == (5, 0)


def test_work_that_has_no_room_is_refused_with_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(9000, 7999, 1001))
    require_space(tmp_path / "new", 1001, "a build")
    with pytest.raises(DiskError, match="a build takes about 1,002 bytes, and 1,001 bytes are free there"):
        require_space(tmp_path / "new", 1002, "a build")


def test_a_file_that_goes_while_it_is_counted_has_no_bytes(tmp_path, monkeypatch):
    (tmp_path / "stays").write_bytes(b"12345")
    walk = [(str(tmp_path), [], ["gone", "stays"])]
    monkeypatch.setattr("os.walk", lambda folder: iter(walk))
    assert folder_bytes(tmp_path) == 5
