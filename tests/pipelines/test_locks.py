"""Locks: who holds one and since when, and when a dead holder's is taken over."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import pipelines.locks
from features.errors import LockError
from pipelines.locks import Holder, duration, locked


def named(path: Path, host: str, pid: int = 4242, seconds_silent: float = 0.0) -> Path:
    """A lock file as another process left it, three hours and twelve minutes after it began."""
    since = (datetime.now(UTC) - timedelta(hours=3, minutes=12, seconds=5)).isoformat(timespec="seconds")
    path.write_text(json.dumps({"host": host, "pid": pid, "since": since}))
    moment = time.time() - seconds_silent
    os.utime(path, (moment, moment))
    return path


def test_a_held_lock_names_host_pid_and_age(tmp_path):
    path = named(tmp_path / "shop.lock", "build-3")
    with (
        path.open() as file,
        pytest.raises(LockError, match=r"shop\.lock: busy: pid 4242 on build-3, for 3 h 12 min \(since 20") as error,
    ):
        fcntl.flock(file, fcntl.LOCK_EX)
        with locked(path, "busy"):
            raise AssertionError("held twice")
    assert error.value.exit_code == 7


def test_a_lock_says_who_has_it_and_is_empty_afterwards(tmp_path):
    path = tmp_path / "shop.lock"
    with locked(path, "busy"):
        assert (Holder.of(path).host, Holder.of(path).pid) == (socket.gethostname(), os.getpid())
    assert path.read_text() == ""


HOLDS = """
import sys, time
from pathlib import Path
from pipelines.locks import locked
with locked(Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_who_looks_whether_a_lock_is_held_keeps_no_job_out(tmp_path, monkeypatch):
    """`quadrank doctor` holds it for an instant, without a name."""
    path = tmp_path / "a.lock"
    path.touch()
    looking = path.open("r")
    fcntl.flock(looking, fcntl.LOCK_EX)
    monkeypatch.setattr(pipelines.locks.time, "sleep", lambda seconds: looking.close())
    with locked(path, "another job runs"):
        assert Holder.of(path) is not None


def test_the_lock_of_a_killed_process_is_taken_over_and_said_so(tmp_path, capsys):
    path = tmp_path / "shop.lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDS, str(path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    with pytest.raises(LockError, match=f"pid {holder.pid} on "), locked(path, "busy"):
        raise AssertionError("held twice")
    holder.kill()
    holder.wait()
    with locked(path, "busy"):
        pass
    assert f"taken over from pid {holder.pid} on {socket.gethostname()}" in capsys.readouterr().err


def test_another_machine_is_respected_while_it_gives_signs(tmp_path):
    """The operating system's lock is free, as it looks on a file system that does not show it to other machines."""
    path = named(tmp_path / "shop.lock", "elsewhere", seconds_silent=200)
    with (
        pytest.raises(LockError, match=r"4242 on elsewhere.*no sign for another (99 s|1 min)\. If it is gone, remove "),
        locked(path, "busy"),
    ):
        raise AssertionError("held twice")
    assert Holder.of(path).pid == 4242


def test_a_silent_machine_loses_its_lock(tmp_path, capsys):
    path = named(tmp_path / "shop.lock", "elsewhere", seconds_silent=301)
    with locked(path, "busy"):
        assert Holder.of(path).pid == os.getpid()
    assert "taken over from pid 4242 on elsewhere, for 3 h 12 min" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["shop.lock"]


def test_a_holder_gives_signs(tmp_path, monkeypatch):
    monkeypatch.setattr(pipelines.locks, "SECONDS_BETWEEN_SIGNS", 0.01)
    path = tmp_path / "shop.lock"
    threads = set(threading.enumerate())
    with locked(path, "busy"):
        os.utime(path, (0, 0))
        until = time.monotonic() + 30
        while path.stat().st_mtime == 0 and time.monotonic() < until:
            time.sleep(0.01)
        assert path.stat().st_mtime > 0
    assert not set(threading.enumerate()) - threads


def test_a_file_that_names_nobody_is_free(tmp_path, capsys):
    path = tmp_path / "shop.lock"
    path.write_text("{half")
    with locked(path, "busy"):
        pass
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0 s"), (59.9, "59 s"), (60, "1 min"), (3599, "59 min"), (3600, "1 h 0 min"), (187_200, "2 d 4 h")],
)
def test_durations_for_people(seconds, text):
    assert duration(seconds) == text
