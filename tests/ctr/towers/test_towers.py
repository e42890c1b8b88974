from __future__ import annotations

import pytest
import torch

from ctr.config import ModelConfig
from ctr.towers import make_tower
from ctr.towers.cross_tables import WideCrosses
from ctr.towers.dcnv2 import CrossNetwork
from ctr.towers.deepfm import FactorizedNetwork
from ctr.towers.finalmlp import TwoStreams
from ctr.towers.quadratic import QuadraticNetwork
from features.errors import ConfigError
from features.store.schema import Field
from tests.ctr.small_world import category

KINDS = ["quadratic", "linear", "mlp", "factorized", "cross", "two_streams"]


def zeroed(module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        torch.nn.init.zeros_(parameter)


def identity_norm(norm: torch.nn.BatchNorm1d) -> None:
    """Statistics with which batch norm changes nothing."""
    norm.running_var.fill_(1 - norm.eps)


def test_pairs_of_blocks_by_hand():
    tower = FactorizedNetwork([1, 2, 1], factor_dim=1, hidden=[2], dropout=0.0).eval()
    zeroed(tower)
    torch.nn.init.ones_(tower.norm.weight)
    identity_norm(tower.norm)
    for factor in tower.factors:
        torch.nn.init.ones_(factor.weight)
    # Factors 2, 3 + 4 and 5: 2 * 7 + 2 * 5 + 7 * 5.
    torch.testing.assert_close(tower(torch.tensor([[2.0, 3.0, 4.0, 5.0]])), torch.tensor([[59.0]]))


def test_crosses_by_hand():
    tower = CrossNetwork(2, layers=2, hidden=[2], dropout=0.0).eval()
    zeroed(tower)
    torch.nn.init.ones_(tower.norm.weight)
    identity_norm(tower.norm)
    for layer in tower.cross:
        torch.nn.init.ones_(layer.weight)
    torch.nn.init.ones_(tower.logit.weight[:, :2])
    # x_0 = [1, 2]; x_1 = x_0 * 3 + x_0 = [4, 8]; x_2 = x_0 * 12 + x_1 = [16, 32].
    torch.testing.assert_close(tower(torch.tensor([[1.0, 2.0]])), torch.tensor([[48.0]]))


def test_streams_meet_in_groups():
    tower = TwoStreams(2, hidden=[2], dropout=0.0).eval()
    zeroed(tower)
    torch.nn.init.ones_(tower.norm.weight)
    identity_norm(tower.norm)
    for stream in tower.streams:
        torch.nn.init.eye_(stream[0].weight)
        torch.nn.init.ones_(stream[1].weight)
        identity_norm(stream[1])
    with torch.no_grad():
        tower.bilinear.copy_(torch.tensor([1.0, 10.0]).view(2, 1, 1, 1))
    # Gates of zeros are 2 sigmoid(0) = 1: both streams are [3, 2], so 3 * 3 + 10 * 2 * 2.
    torch.testing.assert_close(tower(torch.tensor([[3.0, 2.0]])), torch.tensor([[49.0]]))


@pytest.mark.parametrize("kind", KINDS)
def test_every_tower_learns_and_ignores_its_batch_in_evaluation(kind: str):
    torch.manual_seed(0)
    tower = make_tower(ModelConfig(tower=kind, hidden=(8, 4)), [3, 2, 4])
    z_BX = torch.randn(64, 9)
    label_B = (z_BX[:, 0] > 0).float()
    optimizer = torch.optim.Adam(tower.parameters(), lr=0.05)
    losses = []
    for _ in range(40):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(tower(z_BX)[:, 0], label_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    tower.eval()
    torch.testing.assert_close(tower(z_BX)[:1], tower(z_BX[:1]))


@pytest.mark.parametrize("kind", KINDS)
def test_each_task_has_a_logit_of_its_own(kind: str):
    tower = make_tower(ModelConfig(tower=kind, hidden=(8, 4), tasks=("like", "long")), [3, 2, 4]).eval()
    logits_BH = tower(torch.randn(5, 9))
    assert logits_BH.shape == (5, 3)
    assert logits_BH.std(dim=1).min() > 0


def test_a_lone_row_is_refused():
    with pytest.raises(ConfigError, match="two rows"):
        QuadraticNetwork(2, 1, 1, 0.0)(torch.zeros(1, 2))


def test_wide_crosses_by_hand():
    context = [Field(name="load", kind="numeric"), category("age", 4), category("town", 100)]
    items = [category("id", 9), category("maker", 3), Field(name="tags", kind="tags", size=5, max_len=2)]
    wide = WideCrosses(context, items, most_cells=12, heads=2)
    assert [tuple(table.weight.shape) for table in wide.tables] == [(12, 2)] and wide.width == 1
    columns = [torch.tensor([2, 3]), torch.tensor([2, 1]), torch.zeros(2, 2)]
    indices = wide.indices(columns, torch.zeros(1))
    age, town, load = torch.tensor([3, 2]), torch.tensor([50, 51]), torch.zeros(2)
    assert wide([load, age, town], indices).eq(0).all()
    with torch.no_grad():
        wide.tables[0].weight[3 * 3 + 2] = torch.tensor([5.0, 6.0])
        wide.tables[0].weight[2 * 3 + 1] = torch.tensor([7.0, 8.0])
    torch.testing.assert_close(wide([load, age, town], indices), torch.tensor([[5.0, 6.0], [7.0, 8.0]]))
    # One context before all candidates of a request.
    torch.testing.assert_close(wide([load[:1], age[:1], town[:1]], indices)[0], torch.tensor([5.0, 6.0]))
    assert WideCrosses(context, items, most_cells=11, heads=1).width == 0


def test_a_crossed_column_of_more_values_than_single_precision_tells_apart_is_refused():
    with pytest.raises(ConfigError, match=r"item column 'brand': 16,777,217 values.*lower model\.cross_cells"):
        WideCrosses([category("age", 3)], [category("id", 9), category("brand", 2**24 + 1)], 2**30, 1)


def test_the_most_dropout_that_is_allowed_leaves_numbers():
    tower = make_tower(ModelConfig(dropout=0.99, rows=1, layers=1), [8]).train()
    z = torch.randn(64, 8, requires_grad=True)
    tower(z).sum().backward()
    assert torch.isfinite(z.grad).all() and z.grad.any()


def test_more_dropout_is_refused():
    """In steps of 1/65536 a chance of 0.999999 is 1: everything would be dropped and divided by nothing."""
    with pytest.raises(ValueError, match=r"less than or equal to 0\.99"):
        ModelConfig(dropout=0.999999)


def test_pairs_keep_their_digits_in_half_precision():
    """100 · 0.5 as the difference of the squares of 100.5 and 100, of which half precision holds three digits."""
    tower = FactorizedNetwork([1, 1], 1, [2], 0.0).eval()
    tower.norm = torch.nn.Identity()
    with torch.no_grad():
        for parameter in (*tower.linear.parameters(), *tower.logit.parameters()):
            parameter.zero_()
        for factor in tower.factors:
            factor.weight.fill_(1)
        with torch.autocast("cpu", torch.bfloat16):
            assert tower(torch.tensor([[100.0, 0.5]])).item() == 50


@pytest.mark.parametrize("hidden", [(1,), (4, 5)])
def test_streams_that_do_not_fall_into_two_groups_are_refused(hidden: tuple[int, ...]):
    with pytest.raises(ConfigError, match=rf"last of model\.hidden to a multiple of 2.* Got {hidden[-1]}\."):
        make_tower(ModelConfig(tower="two_streams", hidden=hidden), [8])


def test_only_the_last_layer_of_a_stream_is_cut_into_groups():
    tower = make_tower(ModelConfig(tower="two_streams", hidden=(5, 2)), [8]).eval()
    assert tower(torch.randn(3, 8)).shape == (3, 1)
