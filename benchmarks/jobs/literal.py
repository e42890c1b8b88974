"""What `quadrank bench train` and `bench loader` measure of the literal reference, each in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks.harness.measured import STATUS, peak_mib
from benchmarks.inputs.mmctr_shaped import LEVELS, TAGS
from benchmarks.inputs.presets import DEFAULTS, PAPER
from benchmarks.peers.literal_loader import Row, item_tables, row_loader
from benchmarks.peers.literal_qin import LiteralQIN, LiteralStep
from ctr.config import Preset, load_preset
from ctr.training.allocator import keep_freed_memory


def train(
    folder: str, batch_size: int, steps: int, warmup: int, preset: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Train the literal model, batches loaded as a user would load them.

    Args:
        folder: `out` of `mmctr_shaped.build`.
        batch_size: rows a step.
        steps: steps that are timed.
        warmup: steps before them.
        preset: settings that lie over those of the paper, `{"model": {...}, "train": {...}}`.

    Returns:
        `rows_per_s` of the timed steps, loading included; `step_seconds` and `load_seconds` of each; `before_mib`,
        resident before the first step, with model and rows in memory; `peak_mib`; `loss` of the last step;
        `parameters`.
    """
    keep_freed_memory()
    settings = load_preset(PAPER, DEFAULTS, preset)
    model = literal_model(Path(folder), settings)
    step = LiteralStep(model.train(), settings.train)
    batches = _endless(row_loader(Path(folder), batch_size))
    before = resident_mib()
    load_seconds, step_seconds, loss = [], [], 0.0
    for _ in range(warmup + steps):
        started = time.perf_counter()
        batch = next(batches)
        loaded = time.perf_counter()
        loss = step(batch)
        load_seconds.append(loaded - started)
        step_seconds.append(time.perf_counter() - loaded)
    load_seconds, step_seconds = load_seconds[warmup:], step_seconds[warmup:]
    return {
        "rows_per_s": steps * batch_size / (sum(load_seconds) + sum(step_seconds)),
        "step_seconds": step_seconds,
        "load_seconds": load_seconds,
        "before_mib": before,
        "peak_mib": peak_mib(before),
        "loss": loss,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def loader(folder: str, batch_size: int, batches: int) -> dict[str, float]:
    """Rows a second of the row-wise loader over so many batches; the first one is not timed."""
    source = _endless(row_loader(Path(folder), batch_size))
    next(source)
    started = time.perf_counter()
    for _ in range(batches):
        next(source)
    return {"rows_per_s": batches * batch_size / (time.perf_counter() - started)}


def literal_model(folder: Path, settings: Preset) -> LiteralQIN:
    """The literal model on the items of `mmctr_shaped.build`, its initial weights drawn after `train.seed`."""
    torch.manual_seed(settings.train.seed)
    tags_IT, vector_IW = item_tables(folder)
    return LiteralQIN(settings.model, tags_IT, vector_IW, tags=TAGS + 1, levels=LEVELS + 1)


def resident_mib() -> float:
    """Resident memory of this process now, in MiB; where the system does not tell, its largest so far."""
    if STATUS.is_file():
        for line in STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmRSS:"):
                return round(int(line.split()[1]) / 1024, 1)
    return peak_mib()


def _endless(batches: DataLoader[Row]) -> Iterator[Row]:
    while True:
        yield from batches
