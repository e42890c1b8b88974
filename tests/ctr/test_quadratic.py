from __future__ import annotations

import pytest
import torch

from ctr.masks import draw_mask, keep_scale
from ctr.quadratic import QuadraticLayer, QuadraticNetwork
from features.errors import ConfigError
from tests.ctr import literal


def hand_made(layer: QuadraticLayer) -> None:
    """W_1 = 1, b_1 = 0, W_2 = 2, b_2 = 1 everywhere; batch norm subtracts (0, 30); PReLU's slope is 0.25."""
    with torch.no_grad():
        layer.rows.weight.copy_(torch.tensor([[1.0, 1.0], [1.0, 1.0], [2.0, 2.0], [2.0, 2.0]]))
        layer.rows.bias.copy_(torch.tensor([0.0, 0.0, 1.0, 1.0]))
        layer.norm.running_mean.copy_(torch.tensor([0.0, 30.0]))
        layer.norm.running_var.fill_(1 - layer.norm.eps)


def test_hand_worked_numbers():
    network = QuadraticNetwork(width=2, layers=1, rows=2, dropout=0.1).eval()
    hand_made(network.layers[0])
    z = torch.tensor([[1.0, 2.0]])
    # W_1 z = 3, W_2 z + 1 = 7: h = z * 10 = (10, 20); minus (0, 30): (10, -10); PReLU: (10, -2.5); plus z.
    torch.testing.assert_close(network.layers[0](z), torch.tensor([[11.0, -0.5]]))
    with torch.no_grad():
        network.logit.weight.copy_(torch.tensor([[1.0, 2.0]]))
        network.logit.bias.fill_(0.5)
    # 11 * 1 - 0.5 * 2 + 0.5
    torch.testing.assert_close(network(z), torch.tensor([10.5]))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rows", [1, 4])
def test_equals_the_literal_equations(dtype: torch.dtype, tolerance: float, training: bool, rows: int):
    torch.manual_seed(0)
    layer = QuadraticLayer(6, rows, dropout=0.0).to(dtype).train(training)
    with torch.no_grad():
        layer.norm.running_mean.normal_()
        layer.norm.weight.normal_()
    z = torch.randn(12, 6, dtype=dtype, requires_grad=True)
    inputs = [z, *layer.parameters()]
    cotangent = torch.randn(12, 6, dtype=dtype)

    theirs = literal.quadratic_layer(layer, z)
    ours = layer(z)
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
    for one, other in zip(
        torch.autograd.grad(ours, inputs, cotangent),
        torch.autograd.grad(theirs, inputs, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


def kept(shape: tuple[int, int], p: float) -> torch.Tensor:
    """What dropout multiplies with: 0, or 1 / (1 - p)."""
    return -draw_mask(torch.empty(shape, dtype=torch.int16), p).double() * keep_scale(p)


def test_dropout_falls_on_each_row_apart_and_on_the_addition():
    torch.manual_seed(0)
    layer = QuadraticLayer(5, rows=3, dropout=0.5).double().train()
    z = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    inputs, cotangent = [z, *layer.parameters()], torch.randn(8, 5, dtype=torch.float64)
    torch.manual_seed(1)
    kept_rows = kept((8, 15), 0.5).split(5, dim=1)
    kept_addition = kept((8, 5), 0.5)
    weights, biases = layer.rows.weight.split(5), layer.rows.bias.split(5)
    h = sum(z * mask * (z @ w.T + b) for mask, w, b in zip(kept_rows, weights, biases, strict=True))
    normal = (h - h.mean(0)) / torch.sqrt(h.var(0, unbiased=False) + layer.norm.eps) * layer.norm.weight
    normal = normal + layer.norm.bias
    theirs = z + kept_addition * torch.where(normal > 0, normal, layer.activation.weight * normal)
    torch.manual_seed(1)
    ours = layer(z)
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)
    for one, other in zip(
        torch.autograd.grad(ours, inputs, cotangent),
        torch.autograd.grad(theirs, inputs, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


def test_folded_rows_start_and_vary_as_their_sum_does():
    torch.manual_seed(0)
    rows, folded = (QuadraticLayer(64, rows=4, dropout=0.2, fold=fold) for fold in (False, True))
    assert folded.rows.weight.shape == (64, 64)
    merged, one = rows.merged_rows()[0], folded.merged_rows()[0]
    assert one.std().item() == pytest.approx(merged.std().item(), rel=0.05)
    # Four rows alike, whose sum is 4 l: its variance is 4 l^2 p / (1 - p) = (4 l)^2 (1/16), and q / (1 - q) = 1/16.
    assert folded.row_dropout == pytest.approx(1 / 17)
    z = torch.randn(7, 64)
    torch.testing.assert_close(folded.eval()(z), literal.quadratic_layer(folded, z), atol=1e-5, rtol=1e-5)


def test_half_precision_keeps_master_weights_and_stays_near():
    torch.manual_seed(0)
    layer = QuadraticLayer(64, rows=2, dropout=0.1)
    z = torch.randn(700, 64)
    torch.manual_seed(1)
    layer(z).square().mean().backward()
    exact = layer.rows.weight.grad
    layer.zero_grad()
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        layer(z).square().mean().backward()
    rounded = layer.rows.weight.grad
    assert rounded is not None and exact is not None
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).norm() < 0.02 * exact.norm()


def test_evaluation_has_no_noise():
    network = QuadraticNetwork(width=4, layers=2, rows=3, dropout=0.5).eval()
    z = torch.randn(5, 4)
    assert torch.equal(network(z), network(z))


def test_one_training_row_is_refused_and_one_evaluation_row_is_not():
    network = QuadraticNetwork(width=4, layers=1, rows=2, dropout=0.1)
    with pytest.raises(ConfigError, match=r"train\.batch_size to at least 2"):
        network.train()(torch.randn(1, 4))
    assert network.eval()(torch.randn(1, 4)).shape == (1,)
