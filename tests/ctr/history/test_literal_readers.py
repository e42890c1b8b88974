"""Readers of the history against their equations, written as loops over rows, heads, events and spaces."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ctr.history import item_similarity
from ctr.history.item_similarity import tag_cosine, tag_cosine_of_requests
from ctr.history.kernel_attention import EvidenceHeads
from ctr.history.similarity_features import MatchFeatures
from ctr.history.target_history import BatchHistory, RequestHistory
from features.store.schema import Field
from tests.ctr.small_world import category

ITEMS, WIDTH, HEADS, VALUES = 7, 3, 4, 2
FIELDS = [category("label", 4), Field(name="residual", kind="numeric"), category("kind", 3)]
PASTS = {
    "all events": [4, 2, 6, 2, 5],
    "padding in front": [0, 0, 3, 6],
    "one event": [5],
    "padding only": [0, 0],
    "items without vectors": [1, 1, 1],
}


@pytest.fixture
def drawn() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def heads_of(fields: list[Field], drawn: torch.Generator) -> EvidenceHeads:
    """Heads of two spaces without batch norm, every parameter away from its start, in double precision."""
    heads = EvidenceHeads(fields, 2, WIDTH, HEADS, VALUES, match_dim=2).double()
    heads.norm = torch.nn.Identity()
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=drawn, dtype=torch.float64))
    return heads


def units_of(drawn: torch.Generator) -> list[Tensor]:
    """Unit vectors of two spaces; padding and item 1 have none."""
    units = [torch.nn.functional.normalize(torch.randn(ITEMS, 2, generator=drawn).double(), dim=-1) for _ in range(2)]
    for unit in units:
        unit[:2] = 0
    return units


def columns_of(history: list[int], drawn: torch.Generator) -> list[Tensor]:
    """Event columns [1, S], a number missing."""
    residual = torch.randn(1, len(history), generator=drawn).double()
    residual[0, -1] = float("nan")
    return [
        torch.randint(1, 4, (1, len(history)), generator=drawn),
        residual,
        torch.randint(1, 3, (1, len(history)), generator=drawn),
    ]


def value(heads: EvidenceHeads, columns: list[Tensor], place: int) -> Tensor:
    """`v_s`, [V]."""
    if not heads.fields:
        return torch.ones(1, dtype=torch.float64)
    label, residual, kind = (column[0, place] for column in columns)
    numbers = torch.tensor([0.0, 1.0] if residual.isnan() else [float(residual), 0.0], dtype=torch.float64)
    return heads.tables[0].weight[label] + heads.tables[1].weight[kind] + heads.numeric.weight @ numbers


def literal_evidence(
    heads: EvidenceHeads,
    x_UD: Tensor,
    units: list[Tensor],
    targets: list[int],
    history: list[int],
    columns: list[Tensor],
) -> Tensor:
    """The equations of `EvidenceHeads`, term by term."""
    rows = []
    for target in targets:
        means, masses = [], []
        for head in range(HEADS):
            kappa, learned = 10 * heads.kernel.weight[head, :-1], 10 * heads.kernel.weight[head, -1]
            mass = torch.exp(10 * heads.log_prior[head])
            total = torch.zeros(heads.values, dtype=torch.float64)
            for place, item in enumerate(history):
                if item == 0:
                    continue
                power = learned * (heads.projection.weight @ x_UD[target]) @ (heads.projection.weight @ x_UD[item])
                for k, unit in enumerate(units):
                    power = power + kappa[k] * (unit[target] @ unit[item]) - kappa[k].clamp(min=0)
                power = power - 10 * heads.forgetting[head] * math.log(1 + len(history) - 1 - place)
                weight = torch.exp(power.clamp(-15, 15))
                mass, total = mass + weight, total + weight * value(heads, columns, place)
            means.append(total / mass)
            masses.append(mass.log())
        rows.append(torch.cat([*means, torch.stack(masses)]))
    return torch.stack(rows).clamp(-8, 8)


def batch_of(
    x_UD: Tensor, units: list[Tensor], targets: list[int], history: list[int], columns: list[Tensor]
) -> BatchHistory:
    rows = len(targets)
    repeated = [column.expand(rows, -1) for column in columns]
    return BatchHistory(x_UD, torch.tensor(targets), torch.tensor([history] * rows), repeated, None, units)


@pytest.mark.parametrize("past", PASTS)
@pytest.mark.parametrize("fields", [FIELDS, []], ids=["event columns", "none"])
def test_evidence_heads_are_their_equation(past: str, fields: list[Field], drawn: torch.Generator):
    heads, units, history, targets = heads_of(fields, drawn), units_of(drawn), PASTS[past], [2, 1, 6]
    x_UD = torch.randn(ITEMS, WIDTH, generator=drawn).double()
    columns = columns_of(history, drawn) if fields else []
    expected = literal_evidence(heads, x_UD, units, targets, history, columns)
    # Targets differ in what the past says of them, unless it says nothing.
    assert bool(expected.std(dim=0).max() > 1e-3) == (past != "padding only")
    found = heads(batch_of(x_UD, units, targets, history, columns))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    mask = (torch.tensor([history]) != 0).double()
    pairs = [(unit[targets], unit[history]) for unit in units]
    request = RequestHistory(x_UD[targets], x_UD[history], mask, columns, None, pairs)
    torch.testing.assert_close(heads(request), expected, atol=1e-12, rtol=0)


def test_evidence_heads_learn_as_their_equation_does(drawn: torch.Generator):
    heads, units, history, targets = heads_of(FIELDS, drawn), units_of(drawn), PASTS["padding in front"], [2, 6]
    x_UD = torch.randn(ITEMS, WIDTH, generator=drawn).double().requires_grad_()
    columns = columns_of(history, drawn)
    weight = torch.randn(len(targets), heads.width, generator=drawn).double()
    learned = [x_UD, *heads.parameters()]
    found = torch.autograd.grad((heads(batch_of(x_UD, units, targets, history, columns)) * weight).sum(), learned)
    literal = (literal_evidence(heads, x_UD, units, targets, history, columns) * weight).sum()
    for one, other in zip(found, torch.autograd.grad(literal, learned), strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)
        assert other.abs().max() > 1e-6


def test_the_share_of_an_event_is_that_of_its_weight(drawn: torch.Generator):
    heads, units, history = heads_of([], drawn), units_of(drawn), [0, 3, 5]
    x_UD = torch.randn(ITEMS, WIDTH, generator=drawn).double()
    share_RS = heads.weights(batch_of(x_UD, units, [2, 6], history, []))
    assert share_RS[:, 0].tolist() == [0, 0]
    # Without event columns a head reads the share of all events together.
    read_RH = literal_evidence(heads, x_UD, units, [2, 6], history, [])[:, :HEADS]
    torch.testing.assert_close(share_RS.sum(dim=1), read_RH.mean(dim=1))


def test_match_features_of_several_spaces_and_targets(drawn: torch.Generator):
    features, units, history = MatchFeatures(spaces=2), units_of(drawn), [0, 3, 5, 2, 6]
    features.norm = torch.nn.Identity()
    x_UD = torch.zeros(ITEMS, WIDTH).double()
    expected = []
    for target in (4, 6):
        highest, nearest, mean = [], [], []
        for unit in units:
            cosines = sorted(float(unit[target] @ unit[item]) for item in history if item)
            # Padding is a cosine of 0, too.
            top = sorted([*cosines, 0.0, 0.0, 0.0], reverse=True)[:3]
            highest.append(top[0])
            nearest.append(sum(top) / 3)
            mean.append(sum(cosines) / 4)
        expected.append([*highest, *nearest, *mean, math.log(5)])
    torch.testing.assert_close(
        features(batch_of(x_UD, units, [4, 6], history, [])), torch.tensor(expected, dtype=torch.float64)
    )


@pytest.mark.parametrize("tags", [1, 4])
@pytest.mark.parametrize("most_places", [2**16, 10], ids=["looked up", "compared"])
def test_tag_cosines_of_requests_are_counts(
    tags: int, most_places: int, drawn: torch.Generator, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(item_similarity, "MOST_PLACES", most_places)
    size, requests, candidates, positions = 6, 3, 5, 4
    # 0 and 1 are padding and unknown; indices occur again, in other events and in other requests.
    target_RT = torch.randint(0, size, (requests * candidates, tags), generator=drawn).double()
    event_UST = torch.randint(0, size, (requests, positions, tags), generator=drawn).double()
    event_UST[1, 2], target_RT[3] = 0, 1
    expected = torch.zeros(requests * candidates, positions).double()
    for row, target in enumerate(target_RT.tolist()):
        for place, event in enumerate(event_UST[row // candidates].tolist()):
            has, had = [one for one in target if one > 1], [one for one in event if one > 1]
            if has and had:
                expected[row, place] = sum(has.count(one) for one in had) / math.sqrt(len(has) * len(had))
    assert (expected > 0).any()
    found = tag_cosine_of_requests(target_RT, event_UST, size)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    first = tag_cosine_of_requests(target_RT[:candidates], event_UST[:1], size)
    torch.testing.assert_close(first, expected[:candidates], atol=1e-12, rtol=0)
    event_RST = event_UST.repeat_interleave(candidates, dim=0)
    torch.testing.assert_close(tag_cosine(target_RT, event_RST), expected, atol=1e-12, rtol=0)
