from __future__ import annotations

import math

import torch

from ctr.config import ModelConfig
from ctr.model.encoders import FieldEncoder, ItemEncoder, VectorEncoder
from features.store.schema import Field, VectorSet

NAN = float("nan")


def test_tags_are_the_mean_of_their_real_entries():
    encoder = FieldEncoder([Field(name="tags", kind="tags", size=4, max_len=3)], embedding_dim=2)
    with torch.no_grad():
        # Row 0 is filled on purpose: padding must not count even if the table held something there.
        encoder.tables[0].weight.copy_(torch.tensor([[9.0, 9.0], [1.0, 0.0], [2.0, 4.0], [6.0, 8.0]]))
    out = encoder([torch.tensor([[2, 3, 0], [1, 0, 0], [0, 0, 0], [3, 3, 1]])])
    expected = [[4.0, 6.0], [1.0, 0.0], [0.0, 0.0], [13 / 3, 16 / 3]]
    torch.testing.assert_close(out, torch.tensor(expected))


def test_numbers_have_blocks_behind_all_others():
    fields = [Field(name=name, kind="numeric", edges=(0.0, 2.0)) for name in ("a", "b")]
    encoder = FieldEncoder([fields[0], Field(name="c", kind="categorical", size=5), fields[1]], embedding_dim=1)
    with torch.no_grad():
        encoder.numeric.weight.copy_(torch.tensor([[1.0, 10.0, 0.0, 0.0], [0.0, 0.0, 100.0, 1000.0]]))
    index = torch.tensor([2, 3, 4])
    out = encoder([torch.tensor([1.0, 2.0, NAN]), index, torch.tensor([1.0, NAN, 0.0])])
    torch.testing.assert_close(out[:, 1:], torch.tensor([[0.5, 50.0], [1.0, 1000.0], [10.0, 0.0]]))
    torch.testing.assert_close(out[:, :1], encoder.tables[0](index))
    assert encoder.widths == (1, 1, 1)


def test_columns_keep_the_order_of_the_fields_and_any_leading_shape():
    fields = [
        Field(name="n", kind="numeric"),
        Field(name="c", kind="categorical", size=5),
        Field(name="t", kind="tags", size=6, max_len=2),
    ]
    encoder = FieldEncoder(fields, embedding_dim=3)
    index = torch.randint(0, 5, (4, 7))
    out = encoder([torch.randn(4, 7), index, torch.randint(0, 6, (4, 7, 2))])
    assert out.shape == (4, 7, 9) and encoder.width == 9
    torch.testing.assert_close(out[..., :3], encoder.tables[0](index))


def test_padding_embeds_to_zeros_and_never_learns():
    encoder = FieldEncoder([Field(name="c", kind="categorical", size=5)], embedding_dim=3)
    out = encoder([torch.tensor([0, 2, 0])])
    assert torch.equal(out[[0, 2]], torch.zeros(2, 3)) and out[1].abs().sum() > 0
    out.sum().backward()
    grad = encoder.tables[0].weight.grad
    assert torch.equal(grad[0], torch.zeros(3)) and torch.equal(grad[2], torch.ones(3))


def test_an_item_without_a_vector_gets_the_learned_default():
    encoder = VectorEncoder(VectorSet(name="v", width=2, complete=False), projected_dim=2)
    with torch.no_grad():
        encoder.projection.weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        encoder.missing.copy_(torch.tensor([5.0, 6.0]))
    out = encoder(torch.tensor([[2.0, 3.0], [2.0, 3.0]]), torch.tensor([True, False]))
    torch.testing.assert_close(out, torch.tensor([[2.0, 5.0], [5.0, 6.0]]))


def test_a_complete_set_learns_no_default():
    encoder = VectorEncoder(VectorSet(name="v", width=2), projected_dim=4)
    assert [name for name, _ in encoder.named_parameters()] == ["projection.weight"]
    assert list(encoder.state_dict()) == ["projection.weight"]
    # An item that still lacks a vector has zeros for one, in training and after.
    for training in (True, False):
        assert torch.equal(encoder.train(training)(torch.zeros(1, 2), torch.tensor([False])), torch.zeros(1, 4))


def test_an_item_is_its_columns_then_its_vectors():
    encoder = ItemEncoder(
        [Field(name="id", kind="categorical", size=5)],
        [VectorSet(name="v", width=2)],
        ModelConfig(embedding_dim=3, vector_dim=4),
    )
    index, vector, present = torch.tensor([2, 4]), torch.randn(2, 2), torch.tensor([True, True])
    x = encoder([index], [vector], [present])
    assert encoder.width == 7
    torch.testing.assert_close(x[:, :3], encoder.columns.tables[0](index))
    torch.testing.assert_close(x[:, 3:], vector @ encoder.vectors[0].projection.weight.T)


def test_an_item_is_in_the_precision_of_autocast_and_needs_no_columns():
    fields = [Field(name="id", kind="categorical", size=5)]
    index, vector, present = torch.tensor([2, 4]), torch.randn(2, 2), torch.tensor([True, True])
    for columns in (fields, []):
        encoder = ItemEncoder(columns, [VectorSet(name="v", width=2)], ModelConfig(embedding_dim=3, vector_dim=4))
        given = [index] * len(columns)
        exact = encoder(given, [vector], [present])
        with torch.autocast("cpu", torch.bfloat16):
            x = encoder(given, [vector], [present])
        assert x.dtype == torch.bfloat16
        assert x.shape == (2, encoder.width)
        torch.testing.assert_close(x.float(), exact, atol=0.02, rtol=0.02)


def test_a_gate_weighs_each_set_and_reports_itself():
    sets = [VectorSet(name="a", width=2), VectorSet(name="b", width=3)]
    encoder = ItemEncoder(
        [Field(name="id", kind="categorical", size=5)], sets, ModelConfig(vector_gate=True, vector_dim=4)
    )
    with torch.no_grad():
        encoder.gate.weight.zero_()
        encoder.gate.bias.copy_(torch.tensor([0.0, math.log(3)]))
    index, present = torch.tensor([2]), [torch.tensor([True])] * 2
    vectors = [torch.randn(1, 2), torch.randn(1, 3)]
    # 2 sigmoid(0) = 1 and 2 sigmoid(log 3) = 1.5.
    torch.testing.assert_close(encoder.gates(vectors, present), torch.tensor([[1.0, 1.5]]))
    blocks = [
        torch.nn.functional.layer_norm(one.projection(v), (4,)) for one, v in zip(encoder.vectors, vectors, strict=True)
    ]
    torch.testing.assert_close(encoder([index], vectors, present)[:, -8:], torch.cat([blocks[0], 1.5 * blocks[1]], 1))


def test_modality_dropout_hides_vectors_in_training_alone():
    torch.manual_seed(0)
    encoder = VectorEncoder(VectorSet(name="v", width=2), projected_dim=2, hide=0.25)
    vector, present = torch.ones(4000, 2), torch.ones(4000, dtype=torch.bool)
    hidden = (encoder(vector, present) == encoder.missing).all(-1).float().mean()
    assert 0.22 < hidden < 0.28
    assert not (encoder.eval()(vector, present) == encoder.missing).all(-1).any()


def test_an_item_that_a_complete_set_lacks_is_zeros_behind_a_norm_too():
    """The norm of zeros is its bias: training would see another item than evaluation and serving do."""
    encoder = VectorEncoder(VectorSet(name="text", width=3, complete=True), 4, norm=True)
    with torch.no_grad():
        encoder.norm.bias.fill_(0.5)
    vectors, present = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]]), torch.tensor([False, True])
    trained = encoder.train()(vectors, present)
    assert trained[0].tolist() == [0.0] * 4
    torch.testing.assert_close(trained, encoder.eval()(vectors, present))
