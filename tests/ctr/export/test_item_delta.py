"""Rows that the item delta gives: both graphs, with a table of each precision, score them as torch does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ctr.export.onnx_export import export_request_graph, export_scoring_graph
from ctr.export.precision.tables import Block, reduce_table
from ctr.export.scoring.scoring_graph import ScoringGraph
from ctr.export.serving_graph import RequestGraph
from ctr.serving.bundle import ITEM_DELTA, RANKER, SCORER
from ctr.serving.ranker import open_session
from tests.ctr import small_world
from tests.ctr.export.test_scoring_graph import together
from tests.ctr.export.test_serving_graph import evaluated
from tests.ctr.small_world import ITEMS

LATER = 5  # items, the last ones, whose rows are no part of the table
FIRST_LATER = ITEMS - LATER
SETTINGS: dict[str, Any] = {
    "attention": "none",
    "match_features": True,
    "cross_cells": 40,
    "layers": 1,
    "tasks": ("like",),
}
# Histories and candidates; all lists have one length, so that they are one batch of the scoring graph, too.
REQUESTS = {
    "none is later": ([3, 9, 1], [5, 1, FIRST_LATER - 1]),
    "all are later": ([ITEMS - 1, FIRST_LATER], [ITEMS - 1, FIRST_LATER, ITEMS - 3]),
    "one is later, and comes again": ([4, ITEMS - 2, 8, ITEMS - 2], [ITEMS - 2, 6, ITEMS - 2]),
    "no history": ([], [FIRST_LATER, 2, ITEMS - 1]),
}
PRECISIONS = ("fp32", "fp16", "int8")


def rounded(table_ID: Tensor, blocks: list[Block], bits: str) -> Tensor:
    """The table as a graph of so many bits reads it."""
    parts = []
    for block, values_IW in zip(blocks, table_ID.split([one.width for one in blocks], dim=1), strict=True):
        if block.exact or bits == "fp32":
            parts.append(values_IW)
        elif bits == "fp16":
            parts.append(values_IW.half().float())
        else:
            step_I1 = values_IW.abs().amax(dim=1, keepdim=True) / 127
            parts.append((values_IW / step_I1.where(step_I1 > 0, 1)).round() * step_I1)
    return torch.cat(parts, dim=1)


class Bundle:
    """The files of a model whose table lacks its last items, in each precision; their rows are the delta."""

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        self.model = small_world.model(torch.float32, **SETTINGS)
        graph = RequestGraph(self.model)
        self.rows_ID, self.blocks = graph.item_table.clone(), graph.table_blocks
        graph.item_table = self.rows_ID[:FIRST_LATER].clone()
        self.folders = {bits: folder / bits for bits in PRECISIONS}
        for path in self.folders.values():
            path.mkdir()
        export_request_graph(graph, self.model.schema, self.folders["fp32"] / RANKER)
        if SCORER in names:
            export_scoring_graph(ScoringGraph(graph), self.model.schema, self.folders["fp32"] / SCORER)
        for bits in ("fp16", "int8"):
            reduce_table(self.folders["fp32"], self.folders[bits], self.blocks, bits)

    def torch_graph(self, bits: str) -> RequestGraph:
        """All rows in the table: those of the export rounded, later ones as they are."""
        graph = RequestGraph(self.model)
        table_ID = rounded(self.rows_ID[:FIRST_LATER], self.blocks, bits)
        graph.item_table = torch.cat([table_ID, self.rows_ID[FIRST_LATER:]])
        return graph

    def scores(self, bits: str, name: str, inputs: dict[str, Tensor]) -> np.ndarray:
        """What a file gives, its labels in the last axis."""
        session = open_session(self.folders[bits] / name)
        feed = {node.name: inputs[node.name].numpy() for node in session.get_inputs()}
        return np.stack(session.run(None, feed | {ITEM_DELTA: self.rows_ID[FIRST_LATER:].numpy()}), axis=-1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(tmp_path_factory.mktemp("later"), (RANKER,))


@pytest.fixture(scope="module")
def bundle_with_scorer(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(tmp_path_factory.mktemp("later_with_scorer"), (RANKER, SCORER))


@pytest.mark.parametrize("case", REQUESTS)
@pytest.mark.parametrize("bits", PRECISIONS)
def test_later_items_score_as_if_they_were_in_the_table(bundle: Bundle, bits: str, case: str) -> None:
    of_model_NT, inputs = evaluated(bundle.model, *REQUESTS[case])
    graph = bundle.torch_graph(bits)
    wanted_NT = torch.stack(graph(*(inputs[name] for name in graph.input_names)), dim=-1)
    np.testing.assert_allclose(bundle.scores(bits, RANKER, inputs), wanted_NT.numpy(), rtol=0, atol=1e-5)
    if bits == "fp32":
        np.testing.assert_allclose(wanted_NT.numpy(), of_model_NT.numpy(), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("bits", PRECISIONS)
def test_requests_with_later_items_score_in_one_batch_as_in_torch(bundle_with_scorer: Bundle, bits: str) -> None:
    graph = bundle_with_scorer.torch_graph(bits)
    cases = [evaluated(bundle_with_scorer.model, *one)[1] for one in REQUESTS.values()]
    wanted = [torch.stack(graph(*(inputs[name] for name in graph.input_names)), dim=-1) for inputs in cases]
    found_UNT = bundle_with_scorer.scores(bits, SCORER, together(cases))
    np.testing.assert_allclose(found_UNT, torch.stack(wanted).numpy(), rtol=0, atol=1e-5)


def test_without_a_delta_a_later_item_is_an_error_not_another_item(bundle: Bundle) -> None:
    _, inputs = evaluated(bundle.model, *REQUESTS["all are later"])
    session = open_session(bundle.folders["fp32"] / RANKER)
    feed = {node.name: inputs[node.name].numpy() for node in session.get_inputs()}
    with pytest.raises(Exception, match="indices element out of data bounds"):
        session.run(None, feed)
