"""Batches on their way to the device: one is copied while another is computed with."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from itertools import islice

import torch
from torch import Tensor

from ctr.batch import Batch
from ctr.loader import prefetch


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
    ahead: Batch | None = None
    with closing(prefetch(batch.map(Tensor.pin_memory) for batch in batches)) as pinned:
        for batch in pinned:
            ready, ahead = ahead, _copied(batch, device, stream)
            if ready is not None:
                yield _usable(ready, stream)
    if ahead is not None:
        yield _usable(ahead, stream)


def windows(batches: Iterable[Batch], size: int) -> Generator[tuple[Batch, ...], None, None]:
    """Consecutive batches, `size` at a time; the last window holds what is left."""
    source = iter(batches)
    while window := tuple(islice(source, size)):
        yield window


def _copied(batch: Batch, device: torch.device, stream: torch.cuda.Stream) -> Batch:
    with torch.cuda.stream(stream):
        return batch.to(device)


def _usable(batch: Batch, stream: torch.cuda.Stream) -> Batch:
    """Let the computing stream wait for the copy, and tell the allocator that it reads it."""
    current = torch.cuda.current_stream()
    current.wait_stream(stream)

    def read_by_current(tensor: Tensor) -> Tensor:
        tensor.record_stream(current)
        return tensor

    return batch.map(read_by_current)
