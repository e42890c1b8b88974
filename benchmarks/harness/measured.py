"""Runs one function in a fresh interpreter: wall time of the call and peak resident memory of the process."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

from features.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Measured:
    """One call: wall seconds (imports of its module left out), peak MiB of its process, what it returned."""

    seconds: float
    peak_mib: float
    result: Any


def measure(target: str, **arguments: Any) -> Measured:
    """Call `target`, such as `benchmarks.jobs.feature_build:build`, in a process of its own.

    Args:
        target: module and function.
        arguments: of the function; what JSON can hold, as must be what it returns.

    Raises:
        ConfigError: the process was killed, as a rule for want of memory.
        RuntimeError: the function raised; its traceback is in the message.
    """
    command = [sys.executable, "-m", "benchmarks.harness.measured", target, json.dumps(arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode < 0:
        raise ConfigError(
            f"{target} was killed by signal {-done.returncode}, as a rule for want of memory. Measure fewer rows."
        )
    if done.returncode:
        raise RuntimeError(f"{target} failed:\n{done.stderr}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def medians(runs: Sequence[Measured]) -> tuple[float, float]:
    """Median seconds and median peak MiB of some runs of one thing."""
    return median(run.seconds for run in runs), median(run.peak_mib for run in runs)


def peak_mib(seen: float = 0.0) -> float:
    """Largest resident memory of this process so far, in MiB.

    Linux hands `ru_maxrss` on from the process that started this one, so a small child of a large parent would seem
    large: its own high-water mark is read where the system tells it.

    Args:
        seen: what was resident at an earlier time. Linux counts in batches, so that its mark can lie a little under it.
    """
    if STATUS.is_file():
        for line in STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return max(seen, round(int(line.split()[1]) / 1024, 1))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return max(seen, round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1))


def main() -> None:
    """The process of one call: `python -m benchmarks.harness.measured MODULE:FUNCTION JSON`."""
    target, arguments = sys.argv[1:]
    module, _, name = target.partition(":")
    function = getattr(import_module(module), name)
    started = time.perf_counter()
    result = function(**json.loads(arguments))
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "peak_mib": peak_mib(), "result": result}))


if __name__ == "__main__":
    main()
