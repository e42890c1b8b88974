from __future__ import annotations

import numpy as np
import pytest
import torch

from ctr.towers.quadratic import QuadraticLayer, QuadraticNetwork
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
    torch.testing.assert_close(network(z), torch.tensor([[10.5]]))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rows", [1, 4])
def test_equals_the_literal_equations(dtype: torch.dtype, tolerance: float, training: bool, rows: int):
    torch.manual_seed(0)
    layer = QuadraticLayer(6, rows, dropout=0.0).to(dtype).train(training)
    with torch.no_grad():
        layer.norm.running_mean.normal_()
        layer.norm.weight.normal_()
        layer.norm.bias.normal_()
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


def kept(rows: int, width: int, p: float) -> torch.Tensor:
    """What dropout of [rows, width] multiplies with next: 0, or 1 / (1 - p). SplitMix64, written out."""
    seed = np.uint64(torch.randint(2**63 - 1, ()).item())
    words = -(-width // 4)
    with np.errstate(over="ignore"):
        draw = seed + np.arange(1, rows * words + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        draw = (draw ^ (draw >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        draw = (draw ^ (draw >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    numbers = (draw ^ (draw >> np.uint64(31))).view(np.uint16).reshape(rows, 4 * words)[:, :width]
    dropped = round(p * 2**16)
    return torch.from_numpy((numbers >= dropped) / (1 - dropped / 2**16))


@pytest.mark.parametrize("merge", [False, True])
def test_dropout_falls_on_each_row_apart_and_on_the_addition(merge: bool):
    """Of merged rows by another probability than on the addition."""
    torch.manual_seed(0)
    layer = QuadraticLayer(5, rows=3, dropout=0.3, merge=merge).double().train()
    with torch.no_grad():
        layer.norm.weight.normal_()
        layer.norm.bias.normal_()
    z = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    inputs, cotangent = [z, *layer.parameters()], torch.randn(8, 5, dtype=torch.float64)
    weights, biases = layer.rows.weight.split(5), layer.rows.bias.split(5)
    rows = len(weights)
    torch.manual_seed(1)
    kept_rows = kept(8 * rows, 5, layer.row_dropout).view(8, rows, 5).unbind(1)
    kept_addition = kept(8, 5, 0.3)
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


def test_threads_and_blocks_of_rows_add_up(monkeypatch: pytest.MonkeyPatch):
    """More rows than a block and a thread take, an odd number of them, each value of the result on its own."""
    torch.manual_seed(0)
    layer = QuadraticLayer(7, rows=2, dropout=0.0).double().train()
    z = torch.randn(333, 7, dtype=torch.float64, requires_grad=True)
    inputs, cotangent = [z, *layer.parameters()], torch.randn(333, 7, dtype=torch.float64)
    theirs = literal.quadratic_layer(layer, z)
    expected = torch.autograd.grad(theirs, inputs, cotangent)
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        ours = layer(z)
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)
        for one, other in zip(torch.autograd.grad(ours, inputs, cotangent), expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


def test_sums_over_many_rows_keep_the_digits_of_single_precision(monkeypatch: pytest.MonkeyPatch):
    """One sum of 60,000 rows in single precision would put a gradient of biases off by almost a hundredth."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    torch.manual_seed(0)
    layer, exact = QuadraticLayer(4, 1, dropout=0.0), QuadraticLayer(4, 1, dropout=0.0).double()
    exact.load_state_dict(layer.state_dict())
    z = torch.rand(60_000, 4) + 0.5
    (0.1 * layer(z)).sum().backward()
    (0.1 * exact(z.double())).sum().backward()
    of_rows, of_norm = layer.rows.bias.grad, layer.norm.bias.grad
    assert (of_rows - exact.rows.bias.grad).norm() < 1e-4 * of_rows.norm()
    assert (of_norm - exact.norm.bias.grad).norm() < 1e-6 * of_norm.norm()


def test_the_generator_decides_what_is_dropped_and_goes_on():
    layer, z = QuadraticLayer(8, rows=2, dropout=0.5), torch.randn(40, 8)
    torch.manual_seed(3)
    first, second = layer(z), layer(z)
    torch.manual_seed(3)
    assert torch.equal(layer(z), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("half", [False, True])
def test_what_is_no_number_reaches_the_guard(bad: float, half: bool):
    layer, z = QuadraticLayer(8, rows=2, dropout=0.1), torch.randn(200, 8)
    z[150, 3] = bad
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        out = layer(z)
    assert not out.isfinite().all()
    out.sum().backward()
    assert not layer.rows.weight.grad.isfinite().all()


def test_running_statistics_move_as_torchs_do():
    torch.manual_seed(0)
    layer, norm = QuadraticLayer(6, rows=2, dropout=0.0), torch.nn.BatchNorm1d(6)
    for _ in range(3):
        z = torch.randn(50, 6)
        norm(z * torch.nn.functional.linear(z, *layer.merged_rows()))
        layer(z)
    for name, tensor in norm.state_dict().items():
        torch.testing.assert_close(layer.norm.state_dict()[name], tensor)


def test_merged_rows_start_and_vary_as_their_sum_does():
    torch.manual_seed(0)
    rows, one_matrix = (QuadraticLayer(64, rows=4, dropout=0.2, merge=merge) for merge in (False, True))
    assert one_matrix.rows.weight.shape == (64, 64)
    merged, one = rows.merged_rows()[0], one_matrix.merged_rows()[0]
    assert one.std().item() == pytest.approx(merged.std().item(), rel=0.05)
    # Four rows alike, whose sum is 4 l: its variance is 4 l^2 p / (1 - p) = (4 l)^2 (1/16), and q / (1 - q) = 1/16.
    assert one_matrix.row_dropout == pytest.approx(1 / 17)
    z = torch.randn(7, 64)
    torch.testing.assert_close(one_matrix.eval()(z), literal.quadratic_layer(one_matrix, z), atol=1e-5, rtol=1e-5)


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


@pytest.mark.parametrize("rows", [1, 3])
def test_input_in_half_precision_is_taken_as_its_numbers(rows: int):
    """So it comes from a model whose blocks are all of items: under autocast these are in half precision."""
    torch.manual_seed(0)
    layer = QuadraticLayer(6, rows, dropout=0.1)
    z = torch.randn(130, 6).bfloat16()
    found = []
    for one in (z.float().requires_grad_(), z.clone().requires_grad_()):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(one)
        assert out.dtype == torch.float32
        found.append((out, torch.autograd.grad(out.square().sum(), [one, *layer.parameters()])))
    (wanted, (of_wanted, *expected)), (got, (of_got, *gradients)) = found
    assert torch.equal(got, wanted)
    assert torch.equal(of_got, of_wanted.bfloat16())
    for gradient, other in zip(gradients, expected, strict=True):
        assert torch.equal(gradient, other)


def test_evaluation_has_no_noise():
    network = QuadraticNetwork(width=4, layers=2, rows=3, dropout=0.5).eval()
    z = torch.randn(5, 4)
    assert torch.equal(network(z), network(z))


def test_one_training_row_is_refused_and_one_evaluation_row_is_not():
    network = QuadraticNetwork(width=4, layers=1, rows=2, dropout=0.1)
    with pytest.raises(ConfigError, match=r"train\.batch_size to at least 2"):
        network.train()(torch.randn(1, 4))
    assert network.eval()(torch.randn(1, 4)).shape == (1, 1)
