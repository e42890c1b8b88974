"""Batches on their way to a GPU."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from ctr.data.batch import Batch
from ctr.data.prefetch import on_device
from tests.ctr import small_world


class Stream:
    """In place of a CUDA stream: notes which copies were begun on it, and which were waited for."""

    def __init__(self) -> None:
        self.copies: list[object] = []
        self.waited: list[int] = []

    def record_event(self) -> object:
        self.copies.append(object())
        return self.copies[-1]

    def wait_event(self, event: object) -> None:
        self.waited.append(self.copies.index(event))


def test_a_batch_waits_for_its_own_copy_alone(monkeypatch: pytest.MonkeyPatch):
    stream = Stream()
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, _: None)
    monkeypatch.setattr(Batch, "to", lambda batch, _: batch)
    batches = [small_world.random_batch(seed=seed) for seed in range(3)]
    seen: list[Any] = []
    for number, batch in enumerate(on_device(iter(batches), torch.device("cuda"))):
        assert torch.equal(batch.target_B, batches[number].target_B)
        seen.append((len(stream.copies), list(stream.waited)))
    # The next copy is on its way, but not waited for.
    assert seen == [(2, [0]), (3, [0, 1]), (3, [0, 1, 2])]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_arrive_on_a_gpu_as_they_are():
    batches = [small_world.random_batch(seed=seed) for seed in range(4)]
    fed = list(on_device(iter(batches), torch.device("cuda")))
    assert len(fed) == 4
    for got, wanted in zip(fed, batches, strict=True):
        assert got.history_BS.is_cuda and torch.equal(got.history_BS.cpu(), wanted.history_BS)
