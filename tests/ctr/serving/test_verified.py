"""A large file is read once a host: what makes it read again, and who may say that it was read."""

from __future__ import annotations

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ctr.serving import verified
from ctr.serving.verified import has_sha256, link

CONTENT = bytes(range(256)) * 64
SHA256 = hashlib.sha256(CONTENT).hexdigest()
TICK = 0.02  # seconds; longer than the clock of a file system stands still


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of the files that are read to their end, where 1 KiB is large and what is written is settled at once."""
    found: list[str] = []
    real = verified.sha256_of

    def noted(path: Path) -> str:
        found.append(path.name)
        return real(path)

    monkeypatch.setattr(verified, "sha256_of", noted)
    monkeypatch.setattr(verified, "LARGE", 1024)
    monkeypatch.setattr(verified, "SETTLED_NS", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "table.bin"
    path.write_bytes(CONTENT)
    return path


def flip(path: Path) -> None:
    time.sleep(TICK)
    with path.open("r+b") as opened:
        opened.seek(5000)
        opened.write(b"\xff")


def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "quadrank" / "verified"


def test_a_large_file_is_read_once_and_a_small_one_each_time(reads: list[str], file: Path, tmp_path: Path) -> None:
    assert [has_sha256(file, SHA256) for _ in range(3)] == [True] * 3 and reads == ["table.bin"]
    small = tmp_path / "small"
    small.write_bytes(b"graph")
    # From `printf graph | sha256sum`.
    for _ in range(2):
        assert has_sha256(small, "eef93e1d14482804277fca0172464032d1a4fdbcc338524059fa1e861454ad4d")
    assert reads == ["table.bin", "small", "small"]
    assert cache(tmp_path).stat().st_mode & 0o777 == 0o700 and len(list(cache(tmp_path).iterdir())) == 1


def test_a_flipped_byte_is_found_though_its_time_is_put_back(reads: list[str], file: Path) -> None:
    assert has_sha256(file, SHA256)
    before = file.stat()
    flip(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    assert (after.st_mtime_ns, after.st_size, after.st_ino) == (before.st_mtime_ns, before.st_size, before.st_ino)
    # A file that is not as it should be is never noted.
    assert [has_sha256(file, SHA256) for _ in range(2)] == [False, False] and len(reads) == 3


def test_another_file_under_the_name_is_read(reads: list[str], file: Path, tmp_path: Path) -> None:
    assert has_sha256(file, SHA256)
    other = tmp_path / "other"
    other.write_bytes(CONTENT[::-1])
    other.replace(file)
    assert not has_sha256(file, SHA256)


def test_another_expected_hash_is_not_answered_by_what_was_found(reads: list[str], file: Path) -> None:
    assert has_sha256(file, SHA256) and not has_sha256(file, "0" * 64)


def test_what_was_written_just_now_may_change_unnoticed_and_is_read_again(
    reads: list[str], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds_later = 1
    monkeypatch.setattr(verified, "SETTLED_NS", 2_000_000_000)
    monkeypatch.setattr(time, "time_ns", lambda: file.stat().st_ctime_ns + seconds_later * 1_000_000_000)
    assert has_sha256(file, SHA256) and has_sha256(file, SHA256) and len(reads) == 2
    os.utime(file, (0, 0))  # as of a copy that keeps the time of its content: the inode is young
    assert has_sha256(file, SHA256) and has_sha256(file, SHA256) and len(reads) == 4
    seconds_later = 3
    assert has_sha256(file, SHA256) and has_sha256(file, SHA256) and len(reads) == 5


def test_a_file_that_changes_while_it_is_read_is_not_noted(
    reads: list[str], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = verified.sha256_of

    def overtaken(path: Path) -> str:
        found = real(path)
        flip(path)
        return found

    monkeypatch.setattr(verified, "sha256_of", overtaken)
    assert has_sha256(file, SHA256)
    monkeypatch.setattr(verified, "sha256_of", real)
    assert not has_sha256(file, SHA256)


def test_after_a_boot_it_is_read_again(
    reads: list[str], file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boot = tmp_path / "boot_id"
    monkeypatch.setattr(verified, "BOOT", boot)
    for name, times in (("first", 1), ("second", 2), ("first", 2)):
        boot.write_text(name)
        assert has_sha256(file, SHA256) and len(reads) == times
    boot.unlink()  # a system that does not name its boots
    assert has_sha256(file, SHA256) and has_sha256(file, SHA256) and len(reads) == 4


def test_always_reads_it_each_time(reads: list[str], file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_sha256(file, SHA256)
    monkeypatch.setenv("QUADRANK_VERIFY", "always")
    assert has_sha256(file, SHA256) and has_sha256(file, SHA256) and len(reads) == 3


@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_a_cache_that_others_may_write_is_not_believed(
    reads: list[str], file: Path, tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert has_sha256(file, SHA256)
    cache(tmp_path).chmod(mode)
    assert has_sha256(file, SHA256) and len(reads) == 2 and "others may write there" in caplog.text


def test_a_cache_of_another_user_or_behind_a_link_is_not_believed(
    reads: list[str], file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert has_sha256(file, SHA256)
    with monkeypatch.context() as other:
        other.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert has_sha256(file, SHA256) and len(reads) == 2
    cache(tmp_path).rename(tmp_path / "elsewhere")
    cache(tmp_path).symlink_to(tmp_path / "elsewhere")
    assert has_sha256(file, SHA256) and len(reads) == 3


def test_without_a_place_for_a_cache_it_is_read_each_time(
    reads: list[str], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    assert has_sha256(file, SHA256) and has_sha256(file, SHA256) and len(reads) == 2


def test_many_at_once_note_the_same(reads: list[str], file: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda _: has_sha256(file, SHA256), range(16)))
    read = len(reads)
    assert has_sha256(file, SHA256) and len(reads) == read and len(list(cache(tmp_path).iterdir())) == 1


def test_notes_of_a_month_ago_are_removed(reads: list[str], file: Path, tmp_path: Path) -> None:
    assert has_sha256(file, SHA256)
    (note,) = cache(tmp_path).iterdir()
    old, newer = cache(tmp_path) / "old", cache(tmp_path) / "newer"
    for path, days in ((old, 31), (newer, 29)):
        path.touch()
        os.utime(path, (time.time() - days * 86_400,) * 2)
    note.unlink()
    assert has_sha256(file, SHA256) and sorted(path.name for path in cache(tmp_path).iterdir()) == sorted(
        [note.name, "newer"]
    )


def test_a_second_name_is_known_as_the_first_is(reads: list[str], file: Path, tmp_path: Path) -> None:
    second, third = tmp_path / "second", tmp_path / "third"
    link(file, second, SHA256)
    assert has_sha256(second, SHA256) and reads == ["second"]  # nothing was known of it
    time.sleep(TICK)
    link(second, third, SHA256)
    assert file.stat().st_nlink == 3
    assert has_sha256(third, SHA256) and has_sha256(file, SHA256) and len(reads) == 1


def test_a_file_that_changes_while_it_gets_a_name_is_read(
    reads: list[str], file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert has_sha256(file, SHA256)
    real = os.link

    def overtaken(source: Path, target: Path) -> None:
        flip(source)
        real(source, target)

    monkeypatch.setattr(os, "link", overtaken)
    link(file, tmp_path / "second", SHA256)
    assert not has_sha256(tmp_path / "second", SHA256)
