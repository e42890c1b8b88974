"""A PostgreSQL of Debian's packages for a test: its own cluster on loopback, in a temporary folder, gone afterwards."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
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


@contextmanager
def cluster(folder: Path) -> Iterator[str]:
    """Start a cluster in `folder`; gives the address of its database `postgres`. Skips the test where it cannot."""
    if reason := why_not():
        pytest.skip(reason)
    found = programs()
    assert found is not None
    data, user, command = folder / "cluster", "postgres", list[str]()
    if os.getuid() == 0:
        known = {one.pw_name for one in pwd.getpwall()}
        name = next(name for name in NAMES if name in known)
        data.mkdir()
        for place in (data, *(one for one in data.parents if one.is_relative_to(folder.parent.parent))):
            place.chmod(place.stat().st_mode | 0o011)
        shutil.chown(data, name)
        command = ["setpriv", f"--reuid={name}", f"--regid={pwd.getpwnam(name).pw_gid}", "--clear-groups"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = [*command, str(found / "initdb"), "-D", str(data), "-U", user, "-A", "trust", "--no-sync"]
    subprocess.run(run, check=True, capture_output=True, cwd="/")
    options = (
        f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off -c max_connections=200"
    )
    control = [*command, str(found / "pg_ctl"), "-D", str(data), "-w"]
    subprocess.run(
        [*control, "-l", str(data / "log"), "-o", options, "start"], check=True, capture_output=True, cwd="/"
    )
    try:
        yield f"postgresql://{user}@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, capture_output=True, cwd="/")
