"""Batches on their way to the device: one is copied while another is computed with."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from itertools import islice

import torch
from torch import Tensor

from ctr.data.batch import Batch
from ctr.data.loader import prefetch


def validated(batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
    """The same batches, the first of an epoch checked: a kernel would read foreign memory at a wrong index.

    Raises:
        DataError: shapes or indices of the first batch do not fit.
    """
    with closing(batches):
        for number, batch in enumerate(batches):
            if number == 0:
                batch.validate()
            yield batch


def on_device(batches: Iterable[Batch], device: torch.device) -> Generator[Batch, None, None]:
    """The same batches on `device`.

    For CUDA a thread moves each batch to page-locked memory, and a stream of its own copies the next batch while the
    current one is computed with: two batches are on the device at a time, and the device never waits for ids.
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch.to(device)
        return
    stream = torch.cuda.Stream(device)
    ahead: tuple[Batch, torch.cuda.Event] | None = None
    with closing(prefetch(batch.map(Tensor.pin_memory) for batch in batches)) as pinned:
        for batch in pinned:
            ready, ahead = ahead, _copied(batch, device, stream)
            if ready is not None:
                yield _usable(*ready)
    if ahead is not None:
        yield _usable(*ahead)


def windows(batches: Iterable[Batch], size: int) -> Generator[tuple[Batch, ...], None, None]:
    """Consecutive batches, `size` at a time; the last window holds what is left."""
    source = iter(batches)
    while window := tuple(islice(source, size)):
        yield window


def _copied(batch: Batch, device: torch.device, stream: torch.cuda.Stream) -> tuple[Batch, torch.cuda.Event]:
    """The batch on the device, and what says that its own copy is done."""
    with torch.cuda.stream(stream):
        return batch.to(device), stream.record_event()


def _usable(batch: Batch, copied: torch.cuda.Event) -> Batch:
    """Let the computing stream wait for this copy alone, not for the next one's, and tell the allocator of it."""
    current = torch.cuda.current_stream()
    current.wait_event(copied)

    def read_by_current(tensor: Tensor) -> Tensor:
        tensor.record_stream(current)
        return tensor

    return batch.map(read_by_current)
