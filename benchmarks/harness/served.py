"""A `quadrank serve` of its own processes: its port, its processor time, its memory and its metrics."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.measured import ROOT
from ctr.serving.bundle import ITEM_TABLE
from features.errors import ConfigError

START_SECONDS = 300.0
LOOK_SECONDS = 0.01
STOP_SECONDS = 60.0
TICK = os.sysconf("SC_CLK_TCK")
MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ ")  # the line with which a mapping begins in smaps


@dataclass(frozen=True)
class Served:
    """A server that runs.

    Args:
        port: on 127.0.0.1.
        pid: of its first process.
    """

    port: int
    pid: int

    def cpu_seconds(self) -> float:
        """Processor time that all its processes have taken so far, in user and kernel mode."""
        ticks = 0
        for pid in self._processes():
            # Behind the name in brackets: the state is field 3, user and kernel ticks are 14 and 15.
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / TICK

    def resident_mib(self) -> float:
        """Resident memory of its processes together; pages that they share count in each."""
        kib = 0
        for pid in self._processes():
            status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
            kib += int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0])
        return kib / 1024

    def beside_table_mib(self) -> float:
        """As `resident_mib`, without the pages of mapped item tables."""
        kib, of_table = 0, False
        for pid in self._processes():
            for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8").splitlines():
                if MAPPING.match(line):
                    of_table = line.endswith(f"/{ITEM_TABLE}")
                elif line.startswith("Rss:") and not of_table:
                    kib += int(line.split()[1])
        return kib / 1024

    def is_ready(self) -> bool:
        """Whether it says to be ready."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v2/health/ready", timeout=STOP_SECONDS):
                return True
        except urllib.error.HTTPError:
            return False

    def metric(self, name: str) -> float:
        """A counter or gauge without labels, as `/metrics` tells it."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=STOP_SECONDS) as answer:
            text = answer.read().decode()
        return float(re.findall(rf"^{name} (\S+)$", text, re.MULTILINE)[0])

    def _processes(self) -> list[int]:
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text(encoding="utf-8")
        return [self.pid, *map(int, children.split())]


@contextmanager
def served(bundle: Path, log: Path, processes: int = 1, token: Path | None = None, **settings: Any) -> Iterator[Served]:
    """Serve a bundle while the block runs.

    Args:
        bundle: folder or pointer.
        log: file that gets what the server prints.
        processes: of the server.
        token: file of the token of routes that write.
        settings: of `conf/serve.yaml`, a dot in a key as two underscores: `queue__size=8`.

    Raises:
        ConfigError: no Linux, whose `/proc` tells time and memory of a process.
        RuntimeError: the server ended, or is not ready in time; the message has what it printed.
    """
    if not Path("/proc/self/stat").is_file():
        raise ConfigError("quadrank bench serve reads time and memory of processes from /proc: run it on Linux.")
    command = [sys.executable, "-m", "pipelines", "serve", "--bundle", str(bundle), "--port", "0"]
    command += ["--processes", str(processes), *(["--token-file", str(token)] if token else [])]
    for key, value in settings.items():
        command += ["--set", f"serve.{key.replace('__', '.')}={value}"]
    with log.open("w", encoding="utf-8") as printed:
        process = subprocess.Popen(command, cwd=ROOT, stdout=printed, stderr=subprocess.STDOUT)
    try:
        yield Served(_port(process, log, processes), process.pid)
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)


def _port(process: subprocess.Popen[bytes], log: Path, processes: int) -> int:
    """The port, once every process answers."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        text = log.read_text(encoding="utf-8")
        found = re.search(r"running on http://127\.0\.0\.1:(\d+)", text)
        if found and text.count("startup complete") >= processes:
            return int(found[1])
        time.sleep(LOOK_SECONDS)
    raise RuntimeError(f"the server is not ready:\n{log.read_text(encoding='utf-8')}")
