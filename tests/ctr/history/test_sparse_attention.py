from __future__ import annotations

import pytest
import torch

from ctr.history.history_events import EmbeddedEvents
from ctr.history.sparse_attention import SparseTargetAttention
from ctr.history.target_history import BatchHistory
from tests.ctr import literal


def past(target: torch.Tensor, history: torch.Tensor, events: torch.Tensor | None, mask: torch.Tensor) -> BatchHistory:
    """Targets [B, D] and histories [B, S, D] as rows of one table, whose row 0 is padding."""
    rows, positions, width = history.shape
    table = torch.cat([target.new_zeros(1, width), target, history.flatten(0, 1)])
    place = 1 + rows + torch.arange(rows * positions).view(rows, positions)
    made = BatchHistory(table, 1 + torch.arange(rows), place, (), None if events is None else EmbeddedEvents(events))
    made.mask = mask
    return made


def test_hand_worked_numbers():
    layer = SparseTargetAttention(item_dim=2, event_dim=0, attention_dim=4)
    for weight in layer.parameters():
        torch.nn.init.ones_(weight)
    target = torch.tensor([[1.0, 2.0]])
    history = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 0.5], [9.0, 9.0]]])
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    # All weights 1, K = 4: (W_q x_t)·(W_k y) / sqrt(4) = 4 * 3 * sum(y) / 2 = 6 sum(y), so with ReLU and mask
    # a = 6, 0, 3, 0. Each of the 4 values is sum(y): Σ a v = 6 * 1 + 3 * 0.5 = 7.5; W_o adds 4 of them: 30.
    torch.testing.assert_close(layer(past(target, history, None, mask)), torch.tensor([[31.0, 32.0]]))


def test_event_columns_take_part_in_scores_and_values():
    layer = SparseTargetAttention(item_dim=1, event_dim=1, attention_dim=1)
    for weight in layer.parameters():
        torch.nn.init.ones_(weight)
    history, events = torch.tensor([[[2.0], [2.0]]]), torch.tensor([[[1.0], [-5.0]]])
    # y = [2, 1] and [2, -5], sums 3 and -3, target 2: a = 6 and 0, o = 6 * 3 + 2.
    out = layer(past(torch.tensor([[2.0]]), history, events, torch.ones(1, 2)))
    torch.testing.assert_close(out, torch.tensor([[20.0]]))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("event_dim", [0, 3])
@pytest.mark.parametrize("masked", ["none", "random", "all"])
def test_equals_the_literal_equations(dtype: torch.dtype, tolerance: float, event_dim: int, masked: str):
    torch.manual_seed(0)
    layer = SparseTargetAttention(item_dim=6, event_dim=event_dim, attention_dim=10).to(dtype)
    target = torch.randn(5, 6, dtype=dtype, requires_grad=True)
    history = torch.randn(5, 7, 6, dtype=dtype, requires_grad=True)
    events = torch.randn(5, 7, event_dim, dtype=dtype, requires_grad=True)
    mask = {"none": torch.ones(5, 7), "random": torch.randint(0, 2, (5, 7)), "all": torch.zeros(5, 7)}[masked]
    mask = mask.to(dtype)
    inputs = [target, history, *([events] if event_dim else []), *layer.parameters()]
    cotangent = torch.randn(5, 6, dtype=dtype)

    ours = layer(past(target, history, events if event_dim else None, mask))
    theirs = literal.attention(layer, target, torch.cat([history, events], -1), mask)
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)

    grads = torch.autograd.grad(ours, inputs, cotangent)
    expected = torch.autograd.grad(theirs, inputs, cotangent)
    for one, other in zip(grads, expected, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)
    assert masked == "all" or grads[1].abs().sum() > 0


@pytest.mark.parametrize("positions", [0, 4])
def test_without_events_the_interest_is_the_target_itself(positions: int):
    layer = SparseTargetAttention(item_dim=6, event_dim=0, attention_dim=10)
    target = torch.randn(3, 6)
    history = torch.randn(3, positions, 6) * 1e3
    assert torch.equal(layer(past(target, history, None, torch.zeros(3, positions))), target)


def test_padding_contributes_nothing_whatever_it_holds():
    torch.manual_seed(0)
    layer = SparseTargetAttention(item_dim=6, event_dim=2, attention_dim=10)
    target, history, events = torch.randn(3, 6), torch.randn(3, 4, 6), torch.randn(3, 4, 2)
    mask = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(3, -1)
    before = layer(past(target, history, events, mask))
    history[:, :2], events[:, :2] = 1e6, -1e6
    assert torch.equal(layer(past(target, history, events, mask)), before)
    history[:, 2:] *= 2
    assert not torch.equal(layer(past(target, history, events, mask)), before)


def test_attention_starts_from_similarity():
    attention = SparseTargetAttention(item_dim=4, event_dim=2, attention_dim=8)
    similarity_DD = attention.score_matrix()[:, :4]
    torch.testing.assert_close(similarity_DD, similarity_DD.T)
    assert torch.linalg.eigvalsh(similarity_DD).min() > 0
