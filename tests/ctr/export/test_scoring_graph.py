"""The scoring graph gives each of many requests the scores of the model itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ctr.export.scoring.scoring_graph import ScoringGraph
from ctr.export.serving_graph import RequestGraph
from ctr.model.click_model import ClickModel
from tests.ctr import small_world
from tests.ctr.export.test_serving_graph import COMPARED, SETTINGS, evaluated
from tests.ctr.small_world import SCHEMA

REQUESTS = [([3, 9, 1, 4, 4, 29], [5, 1, 28]), ([7], [7, 2, 2]), ([], [4, 5, 6]), ([1, 1], [1, 1, 3])]


def together(requests: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Inputs of request graphs as those of one scoring graph."""
    longest = max(1, *(len(one["history_item"]) for one in requests))

    def stacked(name: str) -> Tensor:
        if name.startswith("history_"):
            return torch.stack([F.pad(one[name], (longest - len(one[name]), 0)) for one in requests])
        if name.startswith("candidate_"):
            return torch.stack([one[name] for one in requests])
        return torch.cat([one[name] for one in requests])

    return {name: stacked(name) for name in requests[0]}


def scored(model: ClickModel, inputs: dict[str, Tensor]) -> Tensor:
    """Scores [U, N, T]."""
    graph = ScoringGraph(RequestGraph(model))
    return torch.stack(graph(*(inputs[name] for name in graph.input_names)), dim=-1)


@pytest.mark.parametrize("settings", [*SETTINGS, COMPARED], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.float64, 1e-10)])
def test_requests_in_one_batch_get_the_scores_of_the_model(
    settings: dict, dtype: torch.dtype, tolerance: float
) -> None:
    model = small_world.model(dtype, **settings)
    cases = [evaluated(model, *one) for one in REQUESTS]
    scores = scored(model, together([inputs for _, inputs in cases]))
    torch.testing.assert_close(scores, torch.stack([expected for expected, _ in cases]), atol=tolerance, rtol=0)


def test_each_request_has_its_own_user_and_context() -> None:
    model = small_world.model()
    _, first = evaluated(model, *REQUESTS[0])
    second = first | {"context_age": first["context_age"] % 5 + 1}
    scores_UNT = scored(model, together([first, second]))
    assert (scores_UNT[0] - scores_UNT[1]).abs().max() > 1e-4
    torch.testing.assert_close(scores_UNT[:1], scored(model, together([first])), atol=1e-12, rtol=0)


def test_without_any_context_the_graph_has_item_inputs_only() -> None:
    schema = SCHEMA.model_copy(update={"user": SCHEMA.user[:1], "context": ()})
    model = small_world.model(schema=schema)
    cases = [evaluated(model, *one) for one in REQUESTS]
    scores = scored(model, together([inputs for _, inputs in cases]))
    torch.testing.assert_close(scores, torch.stack([expected for expected, _ in cases]), atol=1e-10, rtol=0)
