"""Products of event columns, beside the embedded events that they stand for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ctr.model.event_encoder import EventEncoder
from features.store.schema import Field

NAN = float("nan")
FIELDS = [
    Field(name="clicked", kind="categorical", size=4),
    Field(name="residual", kind="numeric"),
    Field(name="shelf", kind="categorical", size=300),  # too many rows to be multiplied whole
    Field(name="gap", kind="numeric"),
]


def columns_of() -> list[Tensor]:
    """Three histories of five events, the first two positions of the first one padding."""
    clicked = torch.tensor([[0, 0, 2, 3, 1], [1, 2, 3, 2, 2], [3, 3, 3, 1, 2]], dtype=torch.int32)
    shelf = torch.where(clicked > 0, clicked * 70, 0)
    residual, gap = torch.randn(3, 5), torch.randn(3, 5)
    residual[1, 2] = gap[2, 4] = NAN
    return [clicked, residual, shelf, gap]


def test_hand_worked_numbers():
    encoder = EventEncoder([FIELDS[0], FIELDS[1]], embedding_dim=1)
    with torch.no_grad():
        encoder.tables[0].weight.copy_(torch.tensor([[0.0], [1.0], [2.0], [3.0]]))
        encoder.numeric.weight.copy_(torch.tensor([[10.0, 100.0]]))
    events = encoder.events([torch.tensor([[0, 2, 3]]), torch.tensor([[0.0, 0.5, NAN]])])
    # The events are [0, 0], [2, 5], [3, 100].
    assert events.dots(torch.tensor([[1.0, 2.0]])).tolist() == [[0.0, 12.0, 203.0]]
    assert events.sums(torch.tensor([[9.0, 1.0, 2.0]])).tolist() == [[8.0, 205.0]]


@pytest.mark.parametrize("by_row", [False, True], ids=["whole_tables", "by_row"])
def test_products_and_gradients_are_those_of_embedded_events(by_row: bool):
    torch.manual_seed(0)
    encoder = EventEncoder(FIELDS, embedding_dim=3)
    columns = columns_of()
    real = (columns[0] > 0).float()
    query, weights = torch.randn(3, 9), torch.randn(3, 5) * real

    def gradients(dots: Tensor, sums: Tensor) -> list[Tensor]:
        encoder.zero_grad()
        ((dots * real).sin().sum() + sums.sin().sum()).backward()
        by_table = [table.take_gradient().gradient_RE for table in encoder.tables if table.by_row]
        return [*by_table, *(p.grad for p in encoder.parameters() if p.grad is not None)]

    encoder.tables[1].by_row = by_row
    embedded = encoder(columns)
    theirs = (embedded @ query.unsqueeze(-1)).squeeze(-1) * real, (weights.unsqueeze(1) @ embedded).squeeze(1)
    expected = gradients(*theirs)
    events = encoder.events(columns)
    ours = events.dots(query) * real, events.sums(weights)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients(*ours), expected)


def test_padding_never_moves():
    encoder = EventEncoder(FIELDS[:1], embedding_dim=2)
    events = encoder.events([torch.tensor([[0, 0, 2]])])
    (events.dots(torch.ones(1, 2)).sum() + events.sums(torch.ones(1, 3)).sum()).backward()
    assert encoder.tables[0].weight.grad[0].tolist() == [0.0, 0.0]


def test_reading_histories_makes_no_event():
    """A batch of 1,024 histories of 100 events would otherwise write and read tens of MiB a step."""
    encoder = EventEncoder(FIELDS, embedding_dim=3)
    events = encoder.events(columns_of())
    encoder.forward = lambda columns: pytest.fail("events were embedded")  # type: ignore[method-assign]
    assert events.sums(events.dots(torch.ones(3, 9))).shape == (3, 9)
