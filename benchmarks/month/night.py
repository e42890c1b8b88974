"""One night: the job as a scheduler starts it, tried again where docs/operations.md says so, then the cleaning."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.measured import ROOT

TRIES_AGAIN = (7, 75)
TRIES = 2
KILLED = -9
SMALL_FILES = (64 * 2**10, 512 * 2**10)  # bytes that one file may have on the full disk, by try
LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Ended:
    """How a night's job ended.

    Args:
        codes: of each try.
        summary: the JSON line of the last one; empty where it left none.
        last_line: of its stderr.
        seconds: wall time of all tries.
    """

    codes: tuple[int, ...]
    summary: Mapping[str, Any]
    last_line: str
    seconds: float


@dataclass(frozen=True)
class Nights:
    """Starts the commands of each night as processes of their own.

    Args:
        job: arguments of `quadrank run` that are the same every night.
        work: workspace.
        uri: of MLflow.
        keep: of `quadrank gc`.
    """

    job: Sequence[str]
    work: Path
    uri: str
    keep: int

    def run(self, day: str, trouble: str | None) -> Ended:
        """The job of a day, at most two tries: again after 7, 75 and a kill; other codes wait for the next day."""
        codes: list[int] = []
        began = time.monotonic()
        summary, errors = {}, ""
        while not codes or (codes[-1] in (*TRIES_AGAIN, KILLED) and len(codes) < TRIES):
            limit = SMALL_FILES[len(codes)] if trouble == "disk" else None
            kill = trouble == "kill" and not codes
            code, summary, errors = self._quadrank([*self.job, "--as-of", day], limit, kill)
            codes.append(code)
        lines = errors.strip().splitlines()
        return Ended(tuple(codes), summary, lines[-1] if lines else "", round(time.monotonic() - began, 1))

    def clean(self) -> int:
        """`quadrank gc --yes`; its exit code."""
        return self._quadrank(["gc", "--keep", str(self.keep), "--yes", "--work", str(self.work)], None, False)[0]

    def _quadrank(self, arguments: list[str], limit: int | None, kill: bool) -> tuple[int, dict[str, Any], str]:
        command = [sys.executable, "-m", "pipelines", *arguments, "--json"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": self.uri}
        log = self.work.parent / "stderr.log"
        with log.open("wb") as errors:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, preexec_fn=_limited(limit)
            )
            if kill:
                _kill_in_training(process, self.work / "runs")
            out, _ = process.communicate()
        text = log.read_text(encoding="utf-8", errors="replace")
        lines = out.decode().strip().splitlines()
        return process.returncode, json.loads(lines[-1]) if lines else {}, text


def _limited(limit: int | None) -> Callable[[], None] | None:
    """Before a command starts: no file of it grows beyond so many bytes, as `ulimit -f` says."""
    if limit is None:
        return None
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def _kill_in_training(process: subprocess.Popen[bytes], runs: Path) -> None:
    """SIGKILL once a run that is new has a checkpoint."""
    before = set(runs.glob("*/checkpoint.json"))
    while process.poll() is None:
        if set(runs.glob("*/checkpoint.json")) - before:
            process.kill()
            return
        time.sleep(LOOK_SECONDS)
