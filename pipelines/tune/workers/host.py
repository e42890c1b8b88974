"""The cores and the memory of this host, and what a trial takes of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from ctr.config import Preset
from ctr.model.click_model import ClickModel
from features.errors import ConfigError
from features.store.feature_set import FeatureSet
from pipelines.job.summary import peak_mib

GIB = 2**30
# Of each parameter: weight, gradient, two moments of Adam, the best weights so far.
COPIES_OF_A_PARAMETER = 5
# Of each encoded item of a batch: forward, backward, and what is gathered in between.
COPIES_OF_A_POSITION = 6
# Of each output of the tower's layers for a row: itself, its gradient, and what lies between two layers.
COPIES_OF_AN_OUTPUT = 4
# Of each tabular feature of a row that trees are grown on: ours, scikit-learn's in double precision, its bin.
BYTES_OF_A_FEATURE = 4 + 8 + 1
# Readers that hold a vector of each history position; others read the table of distinct items by its rows.
EVERY_POSITION = ("din", "transformer")
NO_MEMORY = "can't allocate memory"  # in a RuntimeError of torch's on a CPU
WAY_OUT = "Narrow the ranges of train.batch_size and of the model's widths, or start fewer workers here."
_OF_PROCESS = Path("/proc/self")
_MEMORY, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def threads_of(workers: int, all_cores: int) -> int:
    """Threads of each of several workers that share a host's cores; at least one."""
    return max(1, all_cores // max(1, workers))


@contextmanager
def sharing_cores(workers: int) -> Iterator[int]:
    """Within the block, torch, the compiled loops and growing trees use a part of the cores; gives their number.

    The compiled loops ask torch; scikit-learn's trees have an OpenMP of their own.
    """
    before = torch.get_num_threads()
    threads = min(threads_of(workers, cores()), before) if workers > 1 else before
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            yield threads
    finally:
        torch.set_num_threads(before)


def estimated_bytes(preset: Preset, feature_set: FeatureSet) -> int:
    """Memory that a training is expected to take beside the process: parameters, vectors, a batch, rows of trees.

    It leaves out what is small: it is there to refuse what is far too large.
    """
    with torch.device("meta"):  # sizes alone: nothing is allocated
        model = ClickModel(preset.model, feature_set.schema)
    parameters = sum(one.numel() for one in model.parameters())
    schema = feature_set.schema
    tables = sum(entry.bytes for name, entry in feature_set.manifest.files.items() if name.startswith("embeddings/"))
    windows = feature_set.manifest.windows
    rows = min(preset.train.batch_size, windows["train"].rows)
    encoded = rows * (1 + (schema.history_max_len if model.reads_history else 0))
    if preset.model.attention not in EVERY_POSITION:
        encoded = min(encoded, schema.items)  # each distinct item once
    batch = encoded * model.item_encoder.width * 4 * COPIES_OF_A_POSITION
    if model.network is not None:
        weights = [one for one in model.network.parameters() if one.ndim > 1]
        batch += rows * sum(one.numel() // one.shape[-1] for one in weights) * 4 * COPIES_OF_AN_OUTPUT
    grown = 0
    if model.trees is not None:
        grown = (windows["train"].rows + windows["valid"].rows) * model.trees.features.width * BYTES_OF_A_FEATURE
    return parameters * 4 * COPIES_OF_A_PARAMETER + tables + batch + grown


def free_bytes(memory: Path = _MEMORY, cgroup: Path = _CGROUP) -> int | None:
    """Memory that is free on this host, within the limit of its container; None where neither is told."""
    found: list[int] = []
    with suppress(OSError, StopIteration):
        lines = memory.read_text(encoding="utf-8").splitlines()
        found.append(int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024)
    with suppress(OSError, ValueError):  # the limit of a process without one is the word `max`
        limit = int((cgroup / "memory.max").read_text())
        found.append(limit - int((cgroup / "memory.current").read_text()) + _cached(cgroup))
    return max(0, min(found)) if found else None


def _cached(cgroup: Path) -> int:
    """Bytes of files that the kernel keeps while nobody needs the memory, and counts as used: feature sets, mostly."""
    with suppress(OSError, ValueError):
        lines = (cgroup / "memory.stat").read_text(encoding="utf-8").splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "active_file ")))
    return 0


@contextmanager
def explaining_memory() -> Iterator[None]:
    """Explain a training that ran out of memory after all: its settings are to blame. Raises ConfigError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and NO_MEMORY not in str(error):
            raise
        raise ConfigError(f"ran out of memory: {str(error).partition(chr(10))[0]}. {WAY_OUT}") from error


def require_memory(preset: Preset, feature_set: FeatureSet, free: int | None) -> None:
    """Refuse a training that would not fit, before it starts and takes other processes down with it.

    Args:
        preset: model and training.
        feature_set: the data.
        free: bytes; None where it is not known, and nothing is refused.

    Raises:
        ConfigError: it would not fit.
    """
    needed = estimated_bytes(preset, feature_set)
    if free is not None and needed > free:
        raise ConfigError(
            f"needs about {needed / GIB:.1f} GiB of memory, and {free / GIB:.1f} GiB are free (batches of "
            f"{preset.train.batch_size:,} rows). {WAY_OUT}"
        )


def start_peak() -> None:
    """Measure the peak of memory from now on, where the system can."""
    with suppress(OSError):
        (_OF_PROCESS / "clear_refs").write_text("5")


def peak_since_start() -> float:
    """Largest resident memory since `start_peak`, MiB; since the process began where the system cannot tell."""
    with suppress(OSError, StopIteration):
        lines = (_OF_PROCESS / "status").read_text(encoding="utf-8").splitlines()
        return round(int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024, 1)
    return peak_mib()
