"""A PostgreSQL of Debian's packages for a test: its own cluster on loopback, in a temporary folder, gone afterwards."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NAMES = ("postgres", "nobody")  # users that may run it where the tests run as root, which initdb refuses


def programs() -> Path | None:
    """The folder of `initdb` and `postgres`; None where PostgreSQL is not installed."""
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "initdb").is_file()), None)


def why_not() -> str | None:
    """Why PostgreSQL cannot be had here; None where it can."""
    if programs() is None:
        return "PostgreSQL is not installed (Debian: apt-get install postgresql)"
    if importlib.util.find_spec("psycopg") is None:
        return "psycopg, the driver of PostgreSQL, is not installed"
    return None


def call(command: list[str]) -> None:
    """Run `command` at the root folder, which each user may enter; what it printed is the error's text."""
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"


@contextmanager
def cluster() -> Iterator[str]:
    """Start a cluster in a folder of its own; gives the address of its database `postgres`. Skips where it cannot.

    The folder is not pytest's: a run as root hides that from the user that PostgreSQL runs as.
    """
    if reason := why_not():
        pytest.skip(reason)
    found = programs()
    assert found is not None
    with tempfile.TemporaryDirectory(prefix="postgresql-", ignore_cleanup_errors=True) as folder:
        data, user, command = Path(folder) / "cluster", "postgres", list[str]()
        data.mkdir()
        if os.getuid() == 0:
            known = {one.pw_name for one in pwd.getpwall()}
            name = next(name for name in NAMES if name in known)
            Path(folder).chmod(0o711)
            shutil.chown(data, name)
            command = ["setpriv", f"--reuid={name}", f"--regid={pwd.getpwnam(name).pw_gid}", "--clear-groups"]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        call([*command, str(found / "initdb"), "-D", str(data), "-U", user, "-A", "trust", "--no-sync"])
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        control = [*command, str(found / "pg_ctl"), "-D", str(data), "-w"]
        call([*control, "-l", str(data / "log"), "-o", f"{options} -c max_connections=200", "start"])
        try:
            yield f"postgresql://{user}@127.0.0.1:{port}/postgres"
        finally:
            call([*control, "-m", "immediate", "stop"])
