"""The exported graphs: their axes, their files, and that they score as the trained model does."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from ctr.config import ModelConfig
from ctr.export.golden_requests import chosen_rows
from ctr.export.onnx_export import check_shapes, export_item_graph, export_request_graph, export_scoring_graph
from ctr.export.parity import check_item_parity, check_parity, expected, grid_requests, random_requests
from ctr.export.row_request import RowRequest
from ctr.export.scoring.scoring_graph import ScoringGraph
from ctr.export.serving_graph import ItemGraph, RequestGraph
from ctr.model.click_model import ClickModel
from ctr.serving.agreement import TOLERANCE
from ctr.serving.bundle import ITEM_TABLE, ITEMS, RANKER, SCORER
from ctr.serving.ranker import graph_inputs, open_session
from features.encoding.encoder import EncodedRequest
from features.errors import NumericalError
from features.store.feature_set import FeatureSet
from features.store.schema import UNKNOWN, Schema
from tests.ctr import small_world
from tests.ctr.export.test_scoring_graph import REQUESTS, together
from tests.ctr.export.test_serving_graph import CASES, COMPARED, evaluated
from tests.toy import toy_feature_set
from tests.trained import random_model

Score = Callable[[EncodedRequest], np.ndarray]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    return toy_feature_set(tmp_path_factory.mktemp("toy"), rows=300)


@pytest.fixture(scope="module")
def model(toy: FeatureSet) -> ClickModel:
    return random_model(toy, ModelConfig(use_user_id=True, embedding_dim=8, attention_dim=8))


@pytest.fixture(scope="module")
def folder(model: ClickModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graphs")
    export_request_graph(RequestGraph(model), model.schema, folder / RANKER)
    export_item_graph(ItemGraph(model), model.schema, folder / ITEMS)
    return folder


@pytest.fixture(scope="module")
def score(folder: Path) -> Score:
    return scorer(folder / RANKER)


def scorer(path: Path) -> Score:
    session = open_session(path)
    names = [node.name for node in session.get_inputs()]

    def score(encoded: EncodedRequest) -> np.ndarray:
        feed = graph_inputs(encoded)
        return np.stack(session.run(None, {name: feed[name] for name in names}), axis=-1)

    return score


def shapes_of(path: Path) -> dict[str, list[Any]]:
    graph = onnx.load(path, load_external_data=False).graph
    return {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }


def test_exactly_the_history_and_the_candidates_have_named_axes(folder: Path) -> None:
    assert shapes_of(folder / RANKER) == {
        "user_user_id": [1],
        "user_segment": [1],
        "context_hour": [1],
        "context_load": [1],
        "history_item": ["history"],
        "history_label": ["history"],
        "history_residual": ["history"],
        "candidate_item": ["candidates"],
        "candidate_item_rate": ["candidates"],
        # Left out by who has no items that came later; as wide as a row of the item table.
        "item_delta": ["later_items", 96],
        "score": ["candidates"],
    }
    assert shapes_of(folder / ITEMS) == {
        "item_item_id": ["items"],
        "item_genre": ["items"],
        "item_tags": ["items", 3],
        "item_price": ["items"],
        "vector_text": ["items", 12],
        "vector_image": ["items", 6],
        "present_text": ["items"],
        "present_image": ["items"],
        # Three blocks of 8 (id, genre, tags), the numbers' block of 8, and two projected sets of 32.
        "row": ["items", 96],
    }


def test_awkward_names_and_user_tags_keep_their_shapes(tmp_path: Path) -> None:
    model = small_world.model(torch.float32)
    shapes = export_request_graph(RequestGraph(model), model.schema, tmp_path / RANKER)
    assert shapes["user_likes"] == [1, 4]
    found = shapes_of(tmp_path / RANKER)
    assert found.pop("item_delta")[0] == "later_items"
    assert found == shapes | {"score": ["candidates"]}


def test_without_history_there_is_no_history_input(toy: FeatureSet, tmp_path: Path) -> None:
    model = random_model(toy, ModelConfig(use_history=False, embedding_dim=4))
    export_request_graph(RequestGraph(model), model.schema, tmp_path / RANKER)
    assert not [name for name in shapes_of(tmp_path / RANKER) if name.startswith("history")]
    cases = random_requests(model.schema, 5)
    assert check_parity(model, toy.users, scorer(tmp_path / RANKER), cases).logit < 1e-5


class FrozenCandidates(nn.Module):
    """`len` makes the exporter bake the example's seven candidates into the graph."""

    input_names = ("candidate_item",)
    output_names = ("score",)

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("item_table", torch.rand(9, 4))

    def forward(self, *inputs: Tensor) -> Tensor:
        rows = nn.functional.embedding(inputs[0], self.get_buffer("item_table"))
        return torch.sigmoid(rows.sum(-1) + torch.arange(len(inputs[0])))


def test_a_graph_with_a_frozen_candidate_axis_is_not_exported(toy: FeatureSet, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="You marked candidates as dynamic"):
        export_request_graph(FrozenCandidates(), toy.schema, tmp_path / RANKER)


def test_a_frozen_axis_is_found_in_a_saved_graph(folder: Path, tmp_path: Path) -> None:
    shapes = shapes_of(folder / RANKER)
    check_shapes(folder / RANKER, shapes)
    graph = onnx.load(folder / RANKER, load_external_data=False)
    (candidates,) = [node for node in graph.graph.input if node.name == "candidate_item"]
    candidates.type.tensor_type.shape.dim[0].dim_value = 7
    (tmp_path / RANKER).write_bytes(graph.SerializeToString())
    with pytest.raises(NumericalError, match=r"candidate_item has shape \[7\], expected \['candidates'\]"):
        check_shapes(tmp_path / RANKER, shapes)


def test_a_loop_is_refused(tmp_path: Path) -> None:
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["c_in"], ["c_out"])],
        "body",
        [
            onnx.helper.make_tensor_value_info("i", onnx.TensorProto.INT64, []),
            onnx.helper.make_tensor_value_info("c_in", onnx.TensorProto.BOOL, []),
        ],
        [onnx.helper.make_tensor_value_info("c_out", onnx.TensorProto.BOOL, [])],
    )
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.INT64, [1])
    loop = onnx.helper.make_node("Loop", ["x"], [], body=body)
    model = onnx.helper.make_model(onnx.helper.make_graph([loop], "g", [value], []))
    (tmp_path / RANKER).write_bytes(model.SerializeToString())
    with pytest.raises(NumericalError, match="holds a Loop"):
        check_shapes(tmp_path / RANKER, {"x": [1]})


def test_only_the_item_table_lies_outside_the_graph(folder: Path, model: ClickModel) -> None:
    graph = onnx.load(folder / RANKER, load_external_data=False).graph
    outside = [t.name for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    assert outside == ["item_table"]
    table_ID = np.fromfile(folder / ITEM_TABLE, np.float32).reshape(model.schema.items, -1)
    np.testing.assert_array_equal(table_ID, RequestGraph(model).item_table.numpy())
    assert sorted(path.name for path in folder.iterdir()) == [ITEM_TABLE, ITEMS, RANKER]


def test_no_path_of_the_exporting_machine_stays_in_the_graphs(folder: Path) -> None:
    here = str(Path(__file__).parents[3]).encode()
    assert here not in (folder / RANKER).read_bytes()
    assert here not in (folder / ITEMS).read_bytes()


def test_the_exporter_is_quiet(model: ClickModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_request_graph(RequestGraph(model), model.schema, tmp_path / RANKER)
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger("torch.onnx").level == logging.NOTSET


def test_a_weight_that_is_no_number_stops_the_export(model: ClickModel, tmp_path: Path) -> None:
    graph = RequestGraph(model)
    graph.item_table[3, 0] = float("nan")
    with pytest.raises(NumericalError, match=r"1 of \d+ values of item_table are not finite"):
        export_request_graph(graph, model.schema, tmp_path / RANKER)
    assert list(tmp_path.iterdir()) == []


def test_the_graph_scores_as_the_model_on_edge_cases(model: ClickModel, toy: FeatureSet, score: Score) -> None:
    cases = list(grid_requests(model.schema))
    assert {len(case.history_item) for case in cases} >= {0, 1, model.schema.history_max_len}
    assert {len(case.candidate_item) for case in cases} >= {1, 2, 7, 100}
    assert any((case.history_item == UNKNOWN).all() and len(case.history_item) for case in cases)
    assert check_parity(model, toy.users, score, cases).logit < 1e-5


@pytest.mark.parametrize("rate", [np.nan, 0.0, 1.0])
@pytest.mark.parametrize("history", [0, 3])
def test_the_graph_scores_as_the_model_where_numbers_are_missing(
    model: ClickModel, toy: FeatureSet, score: Score, rate: float, history: int
) -> None:
    case = RowRequest(
        user=2,
        history_item=np.arange(2, 2 + history),
        candidate_item=np.array([4]),
        context={"hour": np.array([1]), "load": np.float32([np.nan])},
        history_events={"label": np.full(history, 2), "residual": np.full(history, np.nan, np.float32)},
        candidate={"item_rate": np.float32([rate])},
    )
    assert check_parity(model, toy.users, score, [case]).logit < 1e-5
    other = replace(case, candidate={"item_rate": np.float32([0.5])}).encoded(model.schema, toy.users)
    assert abs(score(other) - score(case.encoded(model.schema, toy.users))).max() > 1e-4


def test_the_graph_scores_as_the_model_on_200_random_requests(model: ClickModel, toy: FeatureSet, score: Score) -> None:
    cases = list(random_requests(model.schema, 200))
    assert check_parity(model, toy.users, score, cases).logit < 1e-5
    # The scores must differ for parity to mean anything.
    scores = [score(case.encoded(model.schema, toy.users)) for case in cases]
    assert np.concatenate(scores).std() > 0.01


@pytest.mark.parametrize("most", [1, 2, 3, 4, 50])
def test_no_request_of_the_grid_is_longer_than_the_model_reads(toy: FeatureSet, most: int) -> None:
    cases = list(grid_requests(toy.schema.model_copy(update={"history_max_len": most})))
    lengths = {len(case.history_item) for case in cases}
    assert {0, 1, most} <= lengths
    assert max(lengths) == most
    assert [len(case.batch(most).history_BS[0]) for case in cases] == [most] * len(cases)


def test_a_history_of_no_elements_scores_as_one_of_padding(model: ClickModel, toy: FeatureSet, score: Score) -> None:
    (case,) = random_requests(model.schema, 1)

    def scores_with(item_H: np.ndarray) -> np.ndarray:
        events = {"label": item_H, "residual": item_H.astype(np.float32)}
        return score(replace(case, history_item=item_H, history_events=events).encoded(model.schema, toy.users))

    np.testing.assert_allclose(scores_with(np.zeros(0, np.int64)), scores_with(np.zeros(1, np.int64)), atol=1e-6)


def off_by(tolerances: float, score: Score) -> Score:
    """Scores whose logits are so many tolerances away."""

    def off(encoded: EncodedRequest) -> np.ndarray:
        got = score(encoded).astype(np.float64)
        logit = np.log(got) - np.log1p(-got)
        return (1 / (1 + np.exp(-logit - tolerances * TOLERANCE * np.maximum(1, np.abs(logit))))).astype(np.float32)

    return off


def test_scores_within_the_tolerance_agree(model: ClickModel, toy: FeatureSet, score: Score) -> None:
    found = check_parity(model, toy.users, off_by(0.8, score), random_requests(model.schema, 3))
    assert found.logit == pytest.approx(0.8 * TOLERANCE, rel=0.25)
    assert 0 < found.probability <= found.logit


def test_a_parity_of_no_requests_proves_nothing(model: ClickModel, toy: FeatureSet, score: Score) -> None:
    with pytest.raises(NumericalError, match="parity: no request was compared"):
        check_parity(model, toy.users, score, iter(()))


def test_rare_clicks_keep_their_digits_in_the_graph(toy: FeatureSet, tmp_path: Path) -> None:
    """At a probability of 1e-6 seven digits are left, of which a sigmoid that is right to 1e-7 has none."""
    model = random_model(toy, ModelConfig(use_history=False, embedding_dim=4))
    model.calibrator.shift += -14.0
    export_request_graph(RequestGraph(model), model.schema, tmp_path / RANKER)
    (case,) = random_requests(model.schema, 1)
    wanted = expected(model, case)
    assert wanted.max() < 1e-3
    np.testing.assert_allclose(scorer(tmp_path / RANKER)(case.encoded(model.schema, toy.users)), wanted, rtol=1e-4)


def test_lost_parity_is_an_error(model: ClickModel, toy: FeatureSet, score: Score) -> None:
    def no_number(encoded: EncodedRequest) -> np.ndarray:
        return score(encoded) * np.float32("nan")

    for wrong in (off_by(1.2, score), no_number):
        with pytest.raises(NumericalError, match="is not published") as caught:
            check_parity(model, toy.users, wrong, random_requests(model.schema, 1))
        assert caught.value.exit_code == 5


def test_new_items_get_the_row_the_table_would_hold(folder: Path, toy: FeatureSet) -> None:
    assert check_item_parity(folder, toy) < 1e-6


@pytest.mark.parametrize(("off", "published"), [(0.8, True), (1.2, False)])
def test_a_wrong_item_row_is_an_error(
    folder: Path, toy: FeatureSet, tmp_path: Path, off: float, published: bool
) -> None:
    (tmp_path / ITEMS).write_bytes((folder / ITEMS).read_bytes())
    table = np.fromfile(folder / ITEM_TABLE, np.float32)
    (table + np.float32(off * TOLERANCE)).tofile(tmp_path / ITEM_TABLE)
    with nullcontext() if published else pytest.raises(NumericalError, match="item row"):
        check_item_parity(tmp_path, toy)


def test_golden_rows_span_the_history_lengths_over_all_parts(toy: FeatureSet) -> None:
    lengths = [part["history_len"] for part in toy.rows("test")]
    chosen = [int(lengths[row.part][row.index]) for row in chosen_rows(toy)]
    every = np.concatenate(lengths)
    assert len(lengths) == 2 and chosen[0] == 3
    assert (chosen[1], chosen[-1]) == (every.min(), every.max())
    assert chosen[1:] == sorted(chosen[1:])


def test_a_case_becomes_the_batch_the_trainer_sees() -> None:
    schema = Schema(items=9, users=4, item=(), user=(), history_max_len=4)
    case = RowRequest(
        user=3,
        history_item=np.array([5, 8]),
        candidate_item=np.array([5, 2]),
        history_events={"label": np.array([2, 3]), "residual": np.float32([0.75, np.nan])},
        context={"hour": np.array([7])},
        candidate={"item_rate": np.float32([0.25, 0.5])},
    )
    batch = case.batch(schema.history_max_len)
    batch.validate()
    assert batch.items_U.tolist() == [0, 2, 5, 8]
    # Padding in front, the newest event last: rows 0 0 5 8, at places 0 0 2 3.
    assert batch.history_BS.tolist() == [[0, 0, 2, 3]] * 2
    assert batch.events["label"].tolist() == [[0, 0, 2, 3]] * 2
    np.testing.assert_array_equal(batch.events["residual"], [[0, 0, 0.75, np.nan]] * 2)
    assert batch.candidate["item_rate"].tolist() == [0.25, 0.5]
    assert batch.target_B.tolist() == [2, 1]
    assert batch.user_B.tolist() == [3, 3]
    assert batch.context["hour"].tolist() == [7, 7]


@pytest.mark.parametrize("case", ["long history", "one event, one candidate", "padding only", "no history"])
def test_compared_items_get_the_scores_of_the_model_from_the_file(case: str, compared: Path) -> None:
    model = small_world.model(torch.float32, **COMPARED)
    expected_NT, inputs = evaluated(model, *CASES[case])
    session = open_session(compared / RANKER)
    (score_N,) = session.run(None, {node.name: inputs[node.name].numpy() for node in session.get_inputs()})
    # The weights are drawn: in single precision the model itself is 2e-6 away from double precision.
    np.testing.assert_allclose(score_N, expected_NT[:, 0].numpy(), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_scoring_file_compares_items_as_the_model_does(compared: Path) -> None:
    model = small_world.model(torch.float32, **COMPARED)
    export_scoring_graph(ScoringGraph(RequestGraph(model)), COMPARED["schema"], compared / SCORER)
    cases = [evaluated(model, *one) for one in REQUESTS]
    session = open_session(compared / SCORER)
    feed = together([inputs for _, inputs in cases])
    (score_UN,) = session.run(None, {node.name: feed[node.name].numpy() for node in session.get_inputs()})
    np.testing.assert_allclose(score_UN, torch.stack([one for one, _ in cases])[..., 0].numpy(), rtol=0, atol=1e-5)


def test_no_pair_of_tags_is_compared_in_the_file(compared: Path) -> None:
    inferred = onnx.shape_inference.infer_shapes(onnx.load(compared / RANKER, load_external_data=False)).graph
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in inferred.value_info}
    compares = [node for node in inferred.node if node.op_type in ("Equal", "And")]
    assert compares and max(ranks.get(node.output[0], 0) for node in compares) <= 3
    assert not [node for node in inferred.node if node.op_type == "PRelu"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph of a model that compares items value by value, besides by vectors."""
    folder, graph = tmp_path_factory.mktemp("compared"), RequestGraph(small_world.model(torch.float32, **COMPARED))
    export_request_graph(graph, COMPARED["schema"], folder / RANKER)
    return folder
