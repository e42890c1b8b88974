"""Where a training step's time goes, part by part, beside the least that this machine needs for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as torch_profile

from benchmarks.measured import measure
from benchmarks.report import Section
from benchmarks.roofline import (
    Sizes,
    copy_bandwidth,
    gather_bandwidth,
    gathered_bytes,
    optimizer_bytes,
    product_seconds,
    products,
)
from ctr.batch import Batch
from ctr.models.qin import QIN

WARMUP, STEPS = 4, 5
PREFIX = "part: "
BACKWARD = "autograd::engine::evaluate_function: "
# Which part an autograd node belongs to, by the start of its name; the others are of the items' encoder.
NODES = {"_QuadraticStep": "quadratic", "_Dots": "attention", "_Sums": "attention"}
COLUMNS = {
    "name": "part",
    "ms": "ms",
    "gflop": "GFLOP",
    "gib": "GiB",
    "best_ms": "least ms",
    "share": "least / measured",
}
WAYS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"train": {"precision": "bf16"}},
    "bf16_folded": {"train": {"precision": "bf16"}, "model": {"fold_rows": True}},
}


def profile(feature_set: str, batch_size: int, preset: dict[str, Any], say: Callable[[str], object]) -> Section:
    """One table of all ways of training, each profiled in a process of its own.

    The least time of a part is that of its matrix products, each at the rate measured for its shape and layout, plus
    that of its gathers at the bandwidth measured for such rows; of the optimizer, its bytes at the speed of a copy.
    `share_of_roofline_…` is the least time of matrix products and gathers over the whole step.
    """
    rows, ratios = [], {}
    for way, own in WAYS.items():
        both = {part: {**preset.get(part, {}), **own.get(part, {})} for part in ("model", "train")}
        done = measure(
            "benchmarks.step_profile:profile_one", feature_set=feature_set, batch_size=batch_size, preset=both
        ).result
        rows += [{**row, "name": f"{way}: {row['name']}"} for row in done["parts"]]
        ratios[f"share_of_roofline_{way}"] = round(done["least_ms"] / done["step_ms"], 3)
        say(f"{way}: a step {done['step_ms']:.0f} ms, matrix products and gathers at least {done['least_ms']:.0f} ms")
    return Section("where a step's time goes", rows, COLUMNS, ratios)


def profile_one(feature_set: str, batch_size: int, preset: dict[str, Any]) -> dict[str, Any]:
    """The parts of a step of one way of training, `step_ms` measured without the profiler, and `least_ms`."""
    from benchmarks.train_jobs import batches, built
    from ctr.step import TrainStep

    settings, model, data = built(feature_set, batch_size, preset)
    device = next(model.parameters()).device
    take_step = TrainStep(model.train(), settings.train, device)
    with closing(batches(data, batch_size, device)) as source:
        some = list(islice(source, 3))
    number = 0

    def step() -> float:
        nonlocal number
        started = perf_counter()
        take_step([some[number % len(some)]], settings.train.learning_rate, number).item()
        number += 1
        return perf_counter() - started

    for _ in range(WARMUP):
        step()
    step_ms = sorted(step() for _ in range(STEPS))[STEPS // 2] * 1e3
    measured = _measured_parts(model, step, device)
    dtype = torch.bfloat16 if settings.train.precision == "bf16" else torch.float32
    parts = _beside_least(measured, sizes_of(model, some[0]), dtype, device, step_ms)
    least_ms = sum(row["best_ms"] for row in parts if row["name"] in ("quadratic", "attention", "items"))
    return {"parts": parts, "step_ms": step_ms, "least_ms": least_ms}


def sizes_of(model: QIN, batch: Batch) -> Sizes:
    """What the formulas of `benchmarks.roofline` need to know."""
    config = model.config
    return Sizes(
        batch=len(batch),
        positions=batch.history_BS.shape[1],
        item_dim=model.item_encoder.width,
        tower_dim=model.network.logit.in_features,
        rows=1 if config.fold_rows else config.rows,
        layers=config.layers,
        distinct_items=len(batch.items_U),
        vector_dim=sum(vectors.width for vectors in model.schema.vectors),
        projected_dim=config.vector_dim,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
    )


def _measured_parts(model: QIN, step: Callable[[], float], device: torch.device) -> dict[str, float]:
    """Milliseconds of a step by part, as the profiler sees them; `other` is what is left of its wall time."""
    modules: dict[str, nn.Module] = {"items": model.item_encoder, "quadratic": model.network}
    if model.attention is not None:
        modules["attention"] = model.attention
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with _ranges(modules), torch_profile(activities=activities) as profiler:
        wall_ms = sum(step() for _ in range(STEPS)) / STEPS * 1e3
    parts = dict.fromkeys(("quadratic", "attention", "items", "optimizer"), 0.0)
    for event in profiler.key_averages():
        milliseconds = (event.device_time_total if device.type == "cuda" else event.cpu_time_total) / 1e3 / STEPS
        if event.key.startswith(PREFIX):
            parts[event.key.removeprefix(PREFIX)] += milliseconds
        elif event.key.startswith(BACKWARD):
            node = event.key.removeprefix(BACKWARD)
            parts[next((part for start, part in NODES.items() if node.startswith(start)), "items")] += milliseconds
        elif event.key.startswith("Optimizer.step"):
            parts["optimizer"] += milliseconds
    return {**parts, "other": wall_ms - sum(parts.values())}


@contextmanager
def _ranges(modules: dict[str, nn.Module]) -> Iterator[None]:
    """Let the profiler see the forward pass of each module by name."""
    handles, open_ranges = [], {}

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            open_ranges[name] = record_function(PREFIX + name)
            open_ranges[name].__enter__()

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            open_ranges.pop(name).__exit__(None, None, None)

        return hook

    for name, module in modules.items():
        handles += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave(name))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _beside_least(
    measured: dict[str, float], sizes: Sizes, dtype: torch.dtype, device: torch.device, step_ms: float
) -> list[dict[str, Any]]:
    gflop, best_ms = dict.fromkeys(measured, 0.0), dict.fromkeys(measured, 0.0)
    for product in products(sizes):
        gflop[product.part] += product.gflop
        best_ms[product.part] += product_seconds(product, dtype, device) * 1e3
    moved = dict.fromkeys(measured, 0)
    moved["attention"] = gathered_bytes(sizes, dtype.itemsize)
    best_ms["attention"] += moved["attention"] / gather_bandwidth(sizes, dtype, device) * 1e3
    moved["optimizer"] = optimizer_bytes(sizes)
    best_ms["optimizer"] += moved["optimizer"] / copy_bandwidth(device) * 1e3
    rows = [
        {
            "name": part,
            "ms": round(milliseconds, 1),
            "gflop": round(gflop[part], 1) or None,
            "gib": round(moved[part] / 2**30, 2) or None,
            "best_ms": round(best_ms[part], 1),
            "share": round(best_ms[part] / milliseconds, 2) if best_ms[part] and milliseconds > 0 else None,
        }
        for part, milliseconds in measured.items()
    ]
    whole = {"name": "step, without the profiler", "ms": round(step_ms, 1), "gflop": round(sum(gflop.values()), 1)}
    return [*rows, {**whole, "gib": None, "best_ms": round(sum(best_ms.values()), 1), "share": None}]
