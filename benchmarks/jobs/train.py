"""What `quadrank bench train` and `bench loader` measure of ours, each a function that runs in a process of its own."""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.measured import STATUS, peak_mib
from benchmarks.inputs.presets import DEFAULTS, PAPER
from benchmarks.jobs.literal import resident_mib
from ctr.config import Preset, load_preset
from ctr.data.batch import Batch
from ctr.data.feature_tables import frozen_tables
from ctr.data.loader import Loader
from ctr.data.prefetch import on_device
from ctr.model.click_model import ClickModel
from ctr.training.allocator import keep_freed_memory
from ctr.training.train_step import TrainStep
from features.store.feature_set import FeatureSet


def train(
    feature_set: str, batch_size: int, steps: int, warmup: int, preset: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Train QIN at the paper's sizes, batches loaded as in training, on CUDA where there is one.

    Args:
        feature_set: folder.
        batch_size: rows a step.
        steps: steps that are timed.
        warmup: steps before them.
        preset: settings that lie over those of the paper, `{"model": {...}, "train": {...}}`.

    Returns:
        The keys of `benchmarks.jobs.literal.train`. `load_seconds` is what a step waited for its batch. `mapped_mib` is
        how much of memory-mapped files the steps read, which the system may drop at any time; it is part of
        `peak_mib`. `device_peak_mib`, on CUDA, is the most that lay on the device at a time.
    """
    keep_freed_memory()
    settings, model, data = built(feature_set, batch_size, preset)
    device = next(model.parameters()).device
    take_step = TrainStep(model.train(), settings.train, device)
    before, mapped_before = resident_mib(), mapped_mib()
    load_seconds, step_seconds, loss = [], [], 0.0
    with closing(batches(data, batch_size, device)) as source:
        for number in range(warmup + steps):
            started = time.perf_counter()
            batch = next(source)
            loaded = time.perf_counter()
            loss = take_step([batch], settings.train.learning_rate, number).item()
            load_seconds.append(loaded - started)
            step_seconds.append(time.perf_counter() - loaded)
    if take_step.guard.skipped():
        raise RuntimeError(take_step.guard.reason(settings.train.learning_rate))
    load_seconds, step_seconds = load_seconds[warmup:], step_seconds[warmup:]
    on_cuda = {"device_peak_mib": torch.cuda.max_memory_allocated() / 2**20} if device.type == "cuda" else {}
    return {
        "rows_per_s": steps * batch_size / (sum(load_seconds) + sum(step_seconds)),
        "step_seconds": step_seconds,
        "load_seconds": load_seconds,
        "before_mib": before,
        "peak_mib": peak_mib(before),
        "mapped_mib": mapped_mib() - mapped_before,
        "loss": loss,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **on_cuda,
    }


def loader(feature_set: str, batch_size: int, batches: int) -> dict[str, float]:
    """Rows a second of our loader over so many batches, shuffled, made ahead by its thread; the first is not timed."""
    source = _endless(FeatureSet.open(Path(feature_set)), batch_size)
    with closing(source):
        next(source)
        started = time.perf_counter()
        for _ in range(batches):
            next(source)
        return {"rows_per_s": batches * batch_size / (time.perf_counter() - started)}


def mapped_mib() -> float:
    """Resident pages of files of this process, in MiB; 0 where the system does not tell."""
    if STATUS.is_file():
        for line in STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("RssFile:"):
                return round(int(line.split()[1]) / 1024, 1)
    return 0.0


def built(feature_set: str, batch_size: int, preset: dict[str, Any] | None) -> tuple[Preset, ClickModel, FeatureSet]:
    """The settings, the model with its tables on its device, and the data of one measurement."""
    given = preset or {}
    overrides = {**given, "train": {**given.get("train", {}), "batch_size": batch_size}}
    settings = load_preset(PAPER, DEFAULTS, overrides)
    data = FeatureSet.open(Path(feature_set))
    torch.manual_seed(settings.train.seed)
    model = ClickModel(settings.model, data.schema)
    model.to("cuda" if settings.train.device != "cpu" and torch.cuda.is_available() else "cpu")
    model.attach(frozen_tables(data))
    return settings, model, data


def batches(data: FeatureSet, batch_size: int, device: torch.device) -> Generator[Batch, None, None]:
    """Training batches without end, on `device`."""
    with closing(_endless(data, batch_size)) as source:
        yield from on_device(source, device)


def _endless(data: FeatureSet, batch_size: int) -> Generator[Batch, None, None]:
    rows = Loader(data, "train", batch_size, seed=1, shuffle=True, drop_last=True)
    for epoch in itertools.count():
        with closing(rows.epoch(epoch)) as source:
            yield from source
