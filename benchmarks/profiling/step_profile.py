"""Where a training step's time goes, part by part, beside the least that this machine needs for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import count
from statistics import mean, median
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as torch_profile

from benchmarks.harness.measured import measure
from benchmarks.harness.report import Section
from benchmarks.profiling.roofline import (
    Sizes,
    gathered_bytes,
    optimizer_bytes,
    products,
    references,
    seconds_by_part,
)
from ctr.data.batch import Batch
from ctr.model.click_model import ClickModel
from ctr.model.sparse_embedding import RowTable

WARMUP, STEPS = 4, 7
PREFIX = "part: "
BACKWARD = "autograd::engine::evaluate_function: "
OPTIMIZER = "Optimizer.step"
MULTIPLIED = ("quadratic", "attention", "items")  # whose products and gathers are the roofline
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
    "bf16_merged": {"train": {"precision": "bf16"}, "model": {"merge_rows": True}},
}


def profile(
    feature_set: str, batch_size: int, preset: dict[str, Any], half: bool, say: Callable[[str], object]
) -> Section:
    """One table of all ways of training, each profiled in a process of its own.

    The least time of a part is that of its matrix products, each at the rate measured for its shape and layout, plus
    that of its gathers at the bandwidth measured for such rows; of the optimizer, its bytes at the speed of a copy.
    Steps and these references take turns, so a machine whose speed changes changes both. `share_of_roofline_…` is the
    median, over the turns, of the least time of matrix products and gathers over the whole step.
    """
    rows, ratios = [], {}
    for way, own in WAYS.items():
        if "train" in own and not half:
            continue
        both = {part: {**preset.get(part, {}), **own.get(part, {})} for part in ("model", "train")}
        done = measure(
            "benchmarks.profiling.step_profile:profile_one", feature_set=feature_set, batch_size=batch_size, preset=both
        ).result
        rows += [{**row, "name": f"{way}: {row['name']}"} for row in done["parts"]]
        ratios[f"share_of_roofline_{way}"] = round(done["share"], 3)
        say(f"{way}: matrix products and gathers take at least {done['share']:.0%} of a step, {done['step_ms']:.0f} ms")
    return Section("where a step's time goes", rows, COLUMNS, ratios)


def profile_one(feature_set: str, batch_size: int, preset: dict[str, Any]) -> dict[str, Any]:
    """The parts of a step of one way of training; `step_ms`, measured without the profiler; `share` of the roofline."""
    from benchmarks.jobs.train import batches, built
    from ctr.training.allocator import keep_freed_memory
    from ctr.training.train_step import TrainStep

    keep_freed_memory()
    settings, model, data = built(feature_set, batch_size, preset)
    device = next(model.parameters()).device
    dtype = torch.bfloat16 if settings.train.precision == "bf16" else torch.float32
    take_step = TrainStep(model.train(), settings.train, device)
    with closing(batches(data, batch_size, device)) as source:
        batch, numbers = next(source), count()

        def step() -> tuple[float, float]:
            started = perf_counter()
            taken = next(source)
            loaded = perf_counter()
            take_step([taken], settings.train.learning_rate, next(numbers)).item()
            return loaded - started, perf_counter() - started

        sizes = sizes_of(model, batch)
        some = references(sizes, dtype, device)
        turns = [(seconds_by_part(some, device), step()[1]) for _ in range(WARMUP + STEPS)][WARMUP:]
        measured = _measured_parts(model, step, device)
    least_ms = {part: median(least[part] for least, _ in turns) * 1e3 for part in turns[0][0]}
    step_ms = median(whole for _, whole in turns) * 1e3
    parts = _beside_least(measured, sizes, dtype, least_ms, step_ms)
    return {"parts": parts, "step_ms": step_ms, "share": share_of_roofline(turns)}


def share_of_roofline(turns: Iterable[tuple[dict[str, float], float]]) -> float:
    """The median share of turns, each the least seconds by part beside the seconds of the step of its turn."""
    return median(sum(least[part] for part in MULTIPLIED) / whole for least, whole in turns)


def sizes_of(model: ClickModel, batch: Batch) -> Sizes:
    """What the formulas of `benchmarks.profiling.roofline` need to know."""
    config = model.config
    tables = [module for module in model.modules() if isinstance(module, RowTable)]
    by_row = sum(table.weight.numel() for table in tables if table.by_row)
    assert model.network is not None
    logit = model.network.logit
    assert isinstance(logit, nn.Linear)
    return Sizes(
        batch=len(batch),
        positions=batch.history_BS.shape[1],
        item_dim=model.item_encoder.width,
        tower_dim=logit.in_features,
        # Without noise the rows are multiplied as the one matrix that they add up to.
        rows=1 if config.merge_rows or not config.dropout else config.rows,
        layers=config.layers,
        distinct_items=len(batch.items_U),
        vector_dim=sum(vectors.width for vectors in model.schema.vectors),
        projected_dim=config.vector_dim,
        dense_parameters=sum(parameter.numel() for parameter in model.parameters()) - by_row,
    )


def part_milliseconds(events: Iterable[FunctionEvent], on_cuda: bool) -> dict[str, float]:
    """What events of the profiler took, by part: forward passes by their range, gradients by the pass they belong to.

    Autograd numbers its nodes, and the profiler gives each operator the number of the next node to be made: of several
    operators with one number, the last has made the node. Adding up the gradient of a weight has no number; it comes
    right after the node that the gradient comes from. What belongs to no part, such as the loss, is left out.

    Args:
        events: of any number of steps.
        on_cuda: count the time of the device, not that of the CPU which starts its work.
    """
    parts = dict.fromkeys(("quadratic", "attention", "items", "optimizer"), 0.0)
    maker: dict[int, str | None] = {}
    part: str | None = None
    on_cpu = [event for event in events if event.device_type == DeviceType.CPU]  # a range shows on the device again
    for event in sorted(on_cpu, key=lambda event: event.time_range.start):
        if event.name.startswith(PREFIX):
            part = event.name.removeprefix(PREFIX)
        elif event.name.startswith(BACKWARD):
            part = maker.get(event.sequence_nr) if event.sequence_nr >= 0 else part
        elif event.name.startswith(OPTIMIZER):
            part = "optimizer"
        else:
            root = _root(event)
            if event.sequence_nr >= 0 and not root.startswith(BACKWARD):
                maker[event.sequence_nr] = root.removeprefix(PREFIX) if root.startswith(PREFIX) else None
            continue
        if part is not None:
            parts[part] += _milliseconds(event, on_cuda)
    return parts


def _root(event: FunctionEvent) -> str:
    while event.cpu_parent is not None:
        event = event.cpu_parent
    return event.name


def _milliseconds(event: FunctionEvent, on_cuda: bool) -> float:
    if not on_cuda:
        return event.cpu_time_total / 1e3
    # Of what it called: a range's own entry on the device would count all of that twice.
    return sum(called.device_time_total for called in event.cpu_children) / 1e3


def _measured_parts(
    model: ClickModel, step: Callable[[], tuple[float, float]], device: torch.device
) -> dict[str, float]:
    """Milliseconds of a step by part, as the profiler sees them; `other` is what is left of its wall time.

    `loader` is what a step waits for its batch. `other` is loss, clipping, context columns, joining what goes into the
    tower, tables that are moved by row, and the profiler's own cost.
    """
    assert model.network is not None
    modules: dict[str, nn.Module] = {"items": model.item_encoder, "quadratic": model.network}
    if model.attention is not None:
        modules["attention"] = model.attention
    on_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    with _ranges(modules), torch_profile(activities=activities) as profiler:
        seconds = [step() for _ in range(STEPS)]
    measured = part_milliseconds(profiler.events() or [], on_cuda)
    parts = {part: milliseconds / STEPS for part, milliseconds in measured.items()}
    parts["loader"] = mean(waited for waited, _ in seconds) * 1e3
    return {**parts, "other": mean(whole for _, whole in seconds) * 1e3 - sum(parts.values())}


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
    measured: dict[str, float], sizes: Sizes, dtype: torch.dtype, least_ms: dict[str, float], step_ms: float
) -> list[dict[str, Any]]:
    gflop = dict.fromkeys(measured, 0.0)
    for product in products(sizes):
        gflop[product.part] += product.gflop
    moved = {"attention": gathered_bytes(sizes, dtype.itemsize), "optimizer": optimizer_bytes(sizes)}
    rows = [
        {
            "name": part,
            "ms": round(milliseconds, 1),
            "gflop": round(gflop[part], 1) or None,
            "gib": round(moved[part] / 2**30, 2) if part in moved else None,
            "best_ms": round(least_ms[part], 1) if part in least_ms else None,
            "share": round(least_ms[part] / milliseconds, 2) if part in least_ms and milliseconds > 0 else None,
        }
        for part, milliseconds in measured.items()
    ]
    whole = {"name": "step, without the profiler", "ms": round(step_ms, 1), "gflop": round(sum(gflop.values()), 1)}
    return [*rows, {**whole, "gib": None, "best_ms": round(sum(least_ms.values()), 1), "share": None}]
