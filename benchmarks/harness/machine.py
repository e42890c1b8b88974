"""The machine and the versions that a number was measured with."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("polars", "pyarrow", "numpy", "pandas", "torch", "onnxruntime")
THREADS = ("POLARS_MAX_THREADS", "OMP_NUM_THREADS")


def describe() -> dict[str, object]:
    """Processor, cores this process may use, memory (GiB), system, versions, and thread limits where some are set."""
    limits = {name: os.environ[name] for name in THREADS if name in os.environ}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu_model(),
        "cores": cores,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
        **({"thread_limits": limits} if limits else {}),
    }


def _cpu_model() -> str:
    """Its name as Linux tells it; elsewhere what the platform knows."""
    file = Path("/proc/cpuinfo")
    if file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
