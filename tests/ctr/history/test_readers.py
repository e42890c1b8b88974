from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ctr.config import ModelConfig
from ctr.history.din_attention import DinAttention
from ctr.history.history_events import EmbeddedEvents
from ctr.history.item_similarity import SimilaritySpaces
from ctr.history.kernel_attention import EvidenceHeads
from ctr.history.mean_pooling import MeanPooling
from ctr.history.readers import make_attention
from ctr.history.similarity_features import MatchFeatures
from ctr.history.target_history import BatchHistory, RequestHistory
from features.errors import ConfigError
from features.store.schema import Field, Schema, VectorSet
from tests.ctr.small_world import category

NAN = float("nan")
RESIDUAL = Field(name="residual", kind="numeric")
# Rows: padding, target, alike (cosine 0.6), opposite (-1), without a vector (0).
UNITS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.6, 0.8], [-1.0, 0.0], [0.0, 0.0]])


def past(
    history: list[int], columns: tuple[Tensor, ...] = (), items: Tensor | None = None, events: Tensor | None = None
) -> BatchHistory:
    """One target, item 1, before this history of items."""
    items = torch.zeros(len(UNITS), 3) if items is None else items
    return BatchHistory(
        items,
        torch.tensor([1]),
        torch.tensor([history]),
        columns,
        None if events is None else EmbeddedEvents(events),
        [UNITS],
    )


def without_norm(reader: torch.nn.Module) -> torch.nn.Module:
    """The reader with batch norm as the identity."""
    reader.norm = torch.nn.Identity()
    return reader


def test_cosines_are_those_of_vectors_and_of_tag_sets():
    schema = Schema(
        items=5,
        users=2,
        item=(category("id", 9), Field(name="genre", kind="tags", size=6, max_len=3)),
        user=(category("user", 3),),
        vectors=(VectorSet(name="text", width=2),),
        history_max_len=4,
    )
    spaces = SimilaritySpaces(schema)
    genre = torch.tensor([[2, 3, 0], [3, 4, 5], [0, 0, 0], [1, 0, 0]])
    vectors = torch.tensor([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0], [1.0, 0.0]])
    (text, tags), indices = spaces([torch.arange(4), genre], [vectors])
    assert indices == []
    assert spaces.names == ("text", "genre") and spaces.widths == (2, 4)
    torch.testing.assert_close(text @ text[0], torch.tensor([1.0, 0.8, 0.0, 0.6]))
    # {2, 3} and {3, 4, 5} share one of 2 and 3: 1 / sqrt(6). No tags, and the unknown tag alone, are like nothing.
    torch.testing.assert_close(tags @ tags[0], torch.tensor([1.0, 1 / math.sqrt(6), 0.0, 0.0]))


def test_long_vocabularies_and_categories_are_compared_value_by_value():
    actors = Field(name="actors", kind="tags", size=500, max_len=3)
    schema = Schema(
        items=5,
        users=2,
        item=(category("id", 4), actors, category("maker", 9), category("empty", 2)),
        user=(category("user", 3),),
        history_max_len=4,
    )
    spaces = SimilaritySpaces(schema)
    assert spaces.names == ("actors", "maker") and spaces.widths == (3, 1) and spaces.unit_spaces == 0
    columns = [
        torch.arange(5),
        torch.tensor([[0, 0, 0], [2, 3, 0], [3, 4, 5], [1, 0, 0], [1, 2, 3]]),
        torch.tensor([0, 4, 4, 1, 3]),
        torch.zeros(5, dtype=torch.int64),
    ]
    unit_vectors, indices = spaces(columns, [])
    assert unit_vectors == []
    target, history = torch.tensor([1, 3]), torch.tensor([0, 2, 3, 4])
    past = BatchHistory(torch.zeros(5, 2), target, torch.stack([history] * 2), (), None, (), indices)
    # {2, 3} shares one with {3, 4, 5}, both with {unknown, 2, 3}; padding and unknown values are like nothing.
    expected = torch.tensor([[[0, 1 / math.sqrt(6), 0, 1], [0.0] * 4], [[0, 1, 0, 0], [0] * 4]])
    torch.testing.assert_close(past.similarities, expected)
    pairs = [(one[target], one[history]) for one in indices]
    request = RequestHistory(torch.zeros(2, 2), torch.zeros(4, 2), torch.ones(1, 4), (), None, (), pairs, spaces.sizes)
    torch.testing.assert_close(request.similarities, expected)


def test_match_features_by_hand():
    features = without_norm(MatchFeatures(spaces=1))
    # Cosines 0.6, -1 and 0 of three events; the padding counts for nothing.
    expected = [0.6, 0.6 / 3, (0.6 - 1) / 3, math.log(4)]
    torch.testing.assert_close(features(past([0, 2, 3, 4])), torch.tensor([expected]))
    torch.testing.assert_close(features(past([0, 0])), torch.zeros(1, 4))


def test_what_training_never_saw_does_not_shout():
    features = MatchFeatures(spaces=1).eval()
    features.norm.running_var.fill_(1e-9)
    assert features(past([2, 3])).abs().max() == 8


def test_evidence_by_hand():
    heads = without_norm(EvidenceHeads([category("label", 4), RESIDUAL], 1, item_dim=3, heads=1, values=1, match_dim=2))
    with torch.no_grad():
        # What is learned is a tenth of what is meant.
        heads.kernel.weight.copy_(torch.tensor([[0.2, 0.0]]))
        heads.forgetting.fill_(0.05)
        heads.log_prior.fill_(math.log(3) / 10)
        heads.tables[0].weight.copy_(torch.tensor([[0.0], [0.0], [1.0], [-1.0]]))
        heads.numeric.weight.copy_(torch.tensor([[10.0, 7.0]]))
    label, residual = torch.tensor([[0, 2, 3]]), torch.tensor([[0.0, 0.5, NAN]])
    # Item 2 (cosine 0.6) one event back: exp(1.2 - 2 - 0.5 log 2), says 1 + 5. Item 3 (cosine -1), the newest:
    # exp(-2 - 2), says -1 + 7, its residual being missing.
    first, second = math.exp(-0.8) / math.sqrt(2), math.exp(-4)
    mass = 3 + first + second
    expected = torch.tensor([[(first * 6 + second * 6) / mass, math.log(mass)]])
    torch.testing.assert_close(heads(past([0, 2, 3], (label, residual))), expected)


def test_evidence_of_an_empty_past_is_the_prior():
    heads = without_norm(EvidenceHeads([RESIDUAL], 1, item_dim=3, heads=2, values=3, match_dim=2))
    found = heads(past([0, 0], (torch.zeros(1, 2),)))
    torch.testing.assert_close(found, torch.zeros(1, 8))


def test_a_number_missing_in_all_training_says_nothing():
    heads = without_norm(EvidenceHeads([RESIDUAL], 1, item_dim=3, heads=1, values=2, match_dim=2))
    found = heads(past([2], (torch.tensor([[NAN]]),)))
    assert found[0, :2].tolist() == [0, 0]


def test_evidence_without_event_columns_says_that_there_was_one():
    heads = without_norm(EvidenceHeads([], 1, item_dim=3, heads=1, values=4, match_dim=2))
    assert heads.width == 2
    share, log_mass = heads(past([2]))[0]
    torch.testing.assert_close(share, 1 - 1 / log_mass.exp())


@pytest.mark.parametrize("columns", [0, 2], ids=["items alone", "event columns"])
def test_din_equals_its_literal_equation(columns: int):
    torch.manual_seed(0)
    layer, items, events = DinAttention(3, columns), torch.randn(5, 3), torch.randn(1, 3, columns)
    history = [0, 2, 4]
    expected = torch.zeros(1, 3 + columns)
    for place, row in enumerate(history):
        target, event = items[[1]], torch.cat([items[[row]], events[:, place]], -1)
        hidden = layer.of_target(target) + layer.of_event(event) + layer.of_product(target * items[[row]])
        expected += (row != 0) * layer.score(layer.activation(hidden)) * event
    torch.testing.assert_close(layer(past(history, items=items, events=events if columns else None)), expected)


def test_mean_pooling():
    items = torch.arange(15.0).view(5, 3)
    assert MeanPooling(3, 0)(past([0, 2, 4], items=items)).tolist() == [[9, 10, 11]]
    assert MeanPooling(3, 0)(past([0, 0], items=items)).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("attention", ["sparse", "din", "mean", "transformer"])
def test_padding_and_batch_company_change_nothing(attention: str):
    torch.manual_seed(0)
    config = ModelConfig(attention=attention, attention_dim=4)
    layer, items = make_attention(config, 3, 2, 9).eval(), torch.randn(5, 3)
    events = torch.randn(1, 2, 2)
    alone = layer(past([2, 4], items=items, events=events))
    padded = torch.cat([torch.full((1, 3, 2), 9.0), events], 1)
    torch.testing.assert_close(layer(past([0, 0, 0, 2, 4], items=items, events=padded)), alone)


@pytest.mark.parametrize("attention", ["sparse", "din", "mean", "transformer"])
def test_a_request_reads_the_past_as_a_batch_does(attention: str):
    torch.manual_seed(0)
    layer = make_attention(ModelConfig(attention=attention, attention_dim=4), 3, 2, 9).double().eval()
    items, events, units = torch.randn(5, 3).double(), torch.randn(1, 3, 2).double(), UNITS.double()
    targets, history = torch.tensor([1, 4]), torch.tensor([[0, 3, 2]])
    batch = BatchHistory(items, targets, history.expand(2, -1), (), EmbeddedEvents(events.expand(2, -1, -1)), [units])
    mask = (history != 0).double()
    request = RequestHistory(items[targets], items[history[0]], mask, (), events, [(units[targets], units[history[0]])])
    torch.testing.assert_close(layer(batch), layer(request), atol=1e-12, rtol=0)
    torch.testing.assert_close(batch.similarities, request.similarities)


def test_without_history_nothing_is_read():
    assert make_attention(ModelConfig(use_history=False), 3, 2, 9) is None
    assert make_attention(ModelConfig(attention="none"), 3, 2, 9) is None


@pytest.mark.parametrize(("size", "exact"), [(2**24, True), (2**24 + 1, False)])
def test_a_column_of_more_values_than_single_precision_tells_apart_is_refused(size: int, exact: bool):
    schema = Schema(
        items=5,
        users=2,
        item=(category("id", 9), category("brand", size)),
        user=(category("user", 3),),
        history_max_len=4,
    )
    if exact:
        assert SimilaritySpaces(schema).names == ("brand",)
        # The largest index, and the one before it.
        assert torch.tensor(size - 1).float() != torch.tensor(size - 2).float()
    else:
        with pytest.raises(
            ConfigError, match=r"item column 'brand': 16,777,217 values.*`buckets`.*model\.match_features"
        ):
            SimilaritySpaces(schema)


@pytest.mark.parametrize("width", [1, 5])
def test_a_width_that_two_heads_cannot_share_is_refused(width: int):
    config = ModelConfig(attention="transformer", attention_dim=width)
    with pytest.raises(ConfigError, match=rf"model\.attention_dim to a multiple of 2.*2 heads.* Got {width}\."):
        make_attention(config, 3, 0, 4)


def test_other_attentions_take_any_width():
    assert make_attention(ModelConfig(attention="sparse", attention_dim=5), 3, 0, 4).width == 3
