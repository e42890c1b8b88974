"""From raw requests to ranked candidates: a whole bundle of a small log, loaded as a server would."""

from __future__ import annotations

import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

import ctr.export.onnx_export
from ctr.config import ModelConfig
from ctr.export.golden_requests import golden_requests
from ctr.export.onnx_export import ExportResult, export_bundle
from ctr.export.parity import random_requests
from ctr.model.click_model import ClickModel
from ctr.serving.agreement import TOLERANCE
from ctr.serving.bundle import GOLDEN, ITEM_TABLE, MANIFEST, MODEL_CARD, RANKER, BundleMetadata, open_bundle, seal
from ctr.serving.ranker import Ranker, open_session
from ctr.serving.settings import load_serve_config
from features.encoding.category import CategoricalEncoder
from features.encoding.encoder import Encoder
from features.encoding.number import NumericEncoder
from features.encoding.request import Limits
from features.errors import ConfigError, DataError, NumericalError
from features.store.feature_set import FeatureSet
from tests.trained import HISTORY_LEN, built_feature_set, random_model

ROOT = Path(__file__).parents[3]
REQUEST = {
    "user": "u3",
    "context": {"device": "desk", "load": 2.5},
    "history": [{"item": 101, "label": 1}, {"item": 107, "label": 0}],
    "candidates": [110, 111, 112, 113, 114],
}


@pytest.fixture(scope="module")
def feature_set(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    return built_feature_set(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def model(feature_set: FeatureSet) -> ClickModel:
    parts = {"match_features": True, "tasks": ("like", "stay")}
    return random_model(feature_set, ModelConfig(embedding_dim=8, attention_dim=8, **parts), seed=5)


@pytest.fixture(scope="module")
def exported(model: ClickModel, feature_set: FeatureSet, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    return export(model, feature_set, tmp_path_factory.mktemp("bundles") / "first")


@pytest.fixture(scope="module")
def ranker(exported: ExportResult) -> Ranker:
    return Ranker.load(exported.path)


@pytest.fixture
def copy(exported: ExportResult, tmp_path: Path) -> Path:
    return shutil.copytree(exported.path, tmp_path / "copy")


def export(model: ClickModel, feature_set: FeatureSet, out: Path) -> ExportResult:
    return export_bundle(
        model,
        feature_set,
        out,
        model_version="run-1",
        architecture="qin",
        metrics={"test": {"auc": 0.71, "auc_low": 0.69, "log_loss": 0.512}},
        controls={"popularity": {"auc": 0.6}},
        git_revision="0123abcd",
    )


def scores(ranker: Ranker, **changes: Any) -> dict[Any, float]:
    return {entry.item: entry.score for entry in ranker.rank({**REQUEST, **changes}).ranked}


def test_an_example_request_is_in_the_bundle(exported: ExportResult, ranker: Ranker) -> None:
    case = open_bundle(exported.path).golden().cases[0]
    request = json.loads((exported.path / "request.json").read_text(encoding="utf-8"))
    assert request == case.request
    scores = [entry.score for entry in ranker.rank(request).ranked]
    assert scores == pytest.approx(sorted(case.scores, reverse=True), abs=1e-5)


def test_the_export_says_what_it_made(exported: ExportResult) -> None:
    assert exported.path.name == "first"
    assert 0 < exported.max_abs_difference < 1e-5
    assert 0 < exported.max_logit_difference <= 1e-5
    on_disk = sum(path.stat().st_size for path in exported.path.rglob("*") if path.is_file())
    assert exported.bytes == on_disk - (exported.path / MANIFEST).stat().st_size
    assert exported.seconds > 0


def test_the_manifest_says_where_the_model_comes_from(ranker: Ranker, feature_set: FeatureSet) -> None:
    manifest = ranker.bundle.manifest
    assert manifest.fingerprint == feature_set.contract.fingerprint()
    assert manifest.feature_set == feature_set.manifest.version
    assert manifest.windows == feature_set.manifest.windows
    assert (manifest.name, manifest.model_version, manifest.git_revision) == ("shop", "run-1", "0123abcd")
    assert manifest.inputs["history_item"] == ["history"]
    assert {"torch", "onnxruntime", "python"} <= set(manifest.versions)


def test_a_bundle_holds_no_pickle_and_no_path_of_this_machine(exported: ExportResult, feature_set: FeatureSet) -> None:
    raw = str(feature_set.contract.root).encode()
    for path in (path for path in exported.path.rglob("*") if path.is_file()):
        assert path.suffix in {".onnx", ".bin", ".json", ".md", ".arrow"}
        content = path.read_bytes()
        # Every pickle of protocol 2 and above opens with this.
        assert not content.startswith(b"\x80")
        assert raw not in content, path


def test_the_golden_requests_cover_the_edges(ranker: Ranker) -> None:
    cases = {case.name: case for case in ranker.bundle.golden().cases}
    assert len(cases) == 10
    assert {"no history", "one candidate", "candidates alone"} <= set(cases)
    assert cases["no history"].request["history"] == []
    # With what the counters say, and without.
    assert set(cases["logged"].request["candidates"][0]) == {"item", "item_rate", "item_count"}
    assert all(isinstance(item, int) for item in cases["candidates alone"].request["candidates"])
    assert len(cases["history longer than is read"].request["history"]) == HISTORY_LEN + 2
    unknown = cases["unknown user, history item and candidate"]
    result = ranker.rank(unknown.request)
    assert (len(result.unknown_candidates), result.unknown_history) == (1, 1)
    spread = np.concatenate([case.scores for case in cases.values()])
    assert spread.std() > 0.01


def test_the_card_shows_a_request_that_gives_the_scores_it_shows(ranker: Ranker, exported: ExportResult) -> None:
    card = (exported.path / MODEL_CARD).read_text()
    request, answer = (json.loads(block.split("```")[0]) for block in card.split("```json\n")[1:])
    result = ranker.rank(request)
    assert answer["model_version"] == result.model_version == "run-1"
    assert [entry["item"] for entry in answer["ranked"]] == [entry.item for entry in result.ranked]
    assert answer["ranked"][0]["score"] == pytest.approx(result.ranked[0].score, abs=1e-5)
    assert "| model, test | 0.7100 | 0.6900 | 0.5120 |" in card
    assert "| control: popularity | 0.6000 |  |  |" in card
    assert "| `context.user_rate` | a number; as the log ended where a request gives none |" in card
    assert "with fresher values of any of `item_rate`, `item_count` |" in card


def test_candidates_come_best_first(ranker: Ranker) -> None:
    result = ranker.rank(REQUEST)
    given = [entry.score for entry in result.ranked]
    assert given == sorted(given, reverse=True) and len(set(given)) == 5
    assert sorted(entry.item for entry in result.ranked) == REQUEST["candidates"]
    assert all(0 < score < 1 for score in given)
    assert ranker.rank(REQUEST, top=2).ranked == result.ranked[:2]


def test_equal_scores_keep_the_order_of_the_request(ranker: Ranker) -> None:
    # Items the log never saw share one row, hence one score.
    result = ranker.rank({**REQUEST, "candidates": [905, 901, 903]})
    assert [entry.item for entry in result.ranked] == [905, 901, 903]


@given(order=st.permutations(REQUEST["candidates"]))
@settings(max_examples=20, deadline=None)
def test_permuting_candidates_permutes_scores(ranker: Ranker, order: list[int]) -> None:
    assert scores(ranker, candidates=order) == pytest.approx(scores(ranker), abs=1e-6)


def test_a_candidates_score_does_not_depend_on_the_others(ranker: Ranker) -> None:
    together = scores(ranker)
    alone = {item: scores(ranker, candidates=[item])[item] for item in REQUEST["candidates"]}
    assert alone == pytest.approx(together, abs=1e-6)


def test_user_context_history_and_feedback_all_matter(ranker: Ranker) -> None:
    base = scores(ranker)
    changed = {
        "user": scores(ranker, user=None),
        "context": scores(ranker, context={"device": "tv", "load": 2.5}),
        "number": scores(ranker, context={"device": "desk", "load": 9.0}),
        "history": scores(ranker, history=[]),
        "feedback": scores(ranker, history=[{"item": 101, "label": 0}, {"item": 107, "label": 0}]),
    }
    for what, other in changed.items():
        assert other != pytest.approx(base, abs=1e-5), what


def test_of_a_long_history_the_newest_events_are_read(ranker: Ranker) -> None:
    items = [100 + i for i in range(HISTORY_LEN + 5)]
    assert scores(ranker, history=items) == scores(ranker, history=items[-HISTORY_LEN:])
    assert scores(ranker, history=items) != pytest.approx(scores(ranker, history=items[:HISTORY_LEN]), abs=1e-5)


def test_a_context_left_out_takes_its_default(ranker: Ranker) -> None:
    phone = scores(ranker, context={"device": "phone", "load": 1.0})
    assert scores(ranker, context={"load": 1.0}) == phone


def test_a_new_user_can_bring_their_columns(ranker: Ranker, feature_set: FeatureSet) -> None:
    users = ranker.encoder.users
    segment = ranker.encoder.user["segment"].vocabulary
    row = users.index("u3")
    known = {"segment": segment.value(feature_set.users["segment"][row])}
    encoder = ranker.encoder.user["age"]
    known["age"] = float(feature_set.users["age"][row]) * encoder.deviation + encoder.mean
    counted = {"user_rate": float(ranker.encoder.snapshot.users["user_rate"][row])}
    # The model does not read user ids, so columns and counters are all there is of u3.
    brought = scores(ranker, user=None, user_columns=known, context={**REQUEST["context"], **counted})
    assert brought == pytest.approx(scores(ranker), abs=1e-6)


def test_counters_are_as_the_log_ended_unless_the_request_knows_better(ranker: Ranker) -> None:
    items, snapshot = ranker.encoder.items, ranker.encoder.snapshot.items
    usual = scores(ranker)
    named = [
        {"item": item, **{name: float(values[items.index(item)]) for name, values in snapshot.items()}}
        for item in REQUEST["candidates"]
    ]
    assert scores(ranker, candidates=named) == pytest.approx(usual, abs=1e-6)
    first = REQUEST["candidates"][0]
    fresher = scores(ranker, candidates=[{"item": first, "item_rate": 0.99}, *REQUEST["candidates"][1:]])
    assert abs(fresher[first] - usual[first]) > 1e-4
    others = {item: score for item, score in usual.items() if item != first}
    assert {item: fresher[item] for item in others} == pytest.approx(others, abs=1e-6)


def test_an_unknown_item_has_the_counters_of_a_new_one(ranker: Ranker) -> None:
    snapshot = ranker.encoder.snapshot.items
    assert snapshot["item_count"][1] == 0 and 0.4 < snapshot["item_rate"][1] < 0.6


def test_unknown_ids_are_scored_and_reported(ranker: Ranker) -> None:
    result = ranker.rank({**REQUEST, "history": [101, 999], "candidates": [110, 998, 997]})
    assert result.unknown_candidates == (998, 997)
    assert result.unknown_history == 1
    assert len(result.ranked) == 3


def test_strict_names_unknown_ids(ranker: Ranker) -> None:
    request = {**REQUEST, "history": [999, *range(100, 100 + HISTORY_LEN - 1), 996], "candidates": [110, 998, 997]}
    with pytest.raises(
        ConfigError, match=r"candidates: unknown ids 998, 997; history: unknown ids 996\. Leave"
    ) as caught:
        ranker.rank(request, strict=True)
    assert caught.value.exit_code == 2
    many = {**REQUEST, "candidates": list(range(900, 920))}
    with pytest.raises(ConfigError, match="unknown ids 900, 901, 902, 903, 904 and 15 more"):
        ranker.rank(many, strict=True)
    assert ranker.rank(REQUEST, strict=True) == ranker.rank(REQUEST)


NO_ID = st.one_of(
    st.integers(max_value=-1),
    st.integers(min_value=2**63),
    st.floats(),
    st.booleans(),
    st.lists(st.integers(), max_size=2),
    # Text where the log has whole numbers: an upstream cast gone wrong.
    st.text(),
)


@given(bad=NO_ID, place=st.sampled_from(["candidates", "history"]))
@settings(max_examples=80, deadline=None)
def test_what_cannot_be_an_id_is_refused_and_named(ranker: Ranker, bad: Any, place: str) -> None:
    with pytest.raises(ConfigError, match=place) as caught:
        ranker.rank({**REQUEST, place: [101, bad]})
    assert caught.value.exit_code == 2
    assert repr(bad) in str(caught.value) or repr(bad)[:10] in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidates": []}, "`candidates` is empty"),
        ({"candidates": list(range(1001))}, "candidates: 1001 entries, at most 1000"),
        ({"user": -7}, "user: -7 cannot be an id"),
        ({"user": 7}, "user: 7 is of the wrong type"),
        ({"histroy": [1]}, "Did you mean 'history'"),
        ({"context": {"devise": "tv"}}, "Did you mean 'device'"),
        ({"context": {"load": "high"}}, "context.load: expected a finite number"),
        ({"candidates": [101, {"item": 102, "item_rate": "high"}]}, r"candidates\[1\]\.item_rate: expected a finite"),
    ],
)
def test_a_malformed_request_says_what_to_do(ranker: Ranker, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ranker.rank({**REQUEST, **change})


def test_top_must_leave_something(ranker: Ranker) -> None:
    with pytest.raises(ConfigError, match="top: must be at least 1, got 0"):
        ranker.rank(REQUEST, top=0)


def test_rows_outside_the_table_never_reach_the_graph(ranker: Ranker) -> None:
    (case,) = random_requests(ranker.encoder.schema, 1)
    encoded = case.encoded(ranker.encoder.schema, ranker.encoder.user_table)
    items = ranker.encoder.schema.items
    for row in (-1, items):
        encoded.candidate_item[0] = row
        with pytest.raises(ConfigError, match=f"candidates: item row {row} is outside the item table of {items} rows"):
            ranker.score(encoded)


def test_each_task_has_a_score_of_its_own(ranker: Ranker) -> None:
    assert ranker.tasks == ("like", "stay")
    for entry in ranker.rank(REQUEST).ranked:
        assert set(entry.as_json()) == {"item", "score", "tasks"}
        assert all(0 < score < 1 for score in entry.tasks.values())
        assert len({entry.score, *entry.tasks.values()}) == 3


def test_a_changed_golden_score_of_a_task_is_refused(copy: Path) -> None:
    golden = as_served(copy)
    golden["cases"][0]["tasks"]["stay"][0] = moved(golden["cases"][0]["tasks"]["stay"][0], 1.2)
    with pytest.raises(NumericalError, match="golden request 'logged' scores 1"):
        Ranker.load(with_golden(copy, golden))


def test_limits_can_be_tightened_and_golden_requests_still_replay(exported: ExportResult) -> None:
    tight = Ranker.load(exported.path, limits=Limits(max_candidates=2))
    with pytest.raises(ConfigError, match="5 entries, at most 2"):
        tight.rank(REQUEST)


def test_the_serving_file_holds_the_defaults() -> None:
    assert load_serve_config(ROOT / "conf/serve.yaml") == load_serve_config(ROOT / "conf/serve.yaml", {"threads": 1})
    assert load_serve_config(ROOT / "conf/serve.yaml").limits == Limits()
    with pytest.raises(ConfigError, match="Did you mean 'max_candidates'"):
        load_serve_config(ROOT / "conf/serve.yaml", {"limits": {"max_candidate": 3}})


def test_one_ranker_answers_many_threads(ranker: Ranker) -> None:
    requests = [{**REQUEST, "candidates": [100 + i, 101 + i]} for i in range(30)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ranker.rank, requests)) == [ranker.rank(request) for request in requests]


def test_a_flipped_bit_in_the_item_table_is_refused_where_onnx_runtime_alone_takes_it(copy: Path) -> None:
    table = bytearray((copy / ITEM_TABLE).read_bytes())
    table[len(table) // 2] ^= 0x40
    (copy / ITEM_TABLE).write_bytes(table)
    ort.InferenceSession(copy / RANKER)
    with pytest.raises(DataError, match=r"item_table\.bin: changed"):
        Ranker.load(copy)


def as_served(copy: Path) -> dict[str, Any]:
    """The golden requests with the scores that this machine gives: what is moved from them is moved by that alone."""
    ranker, golden = Ranker.load(copy), json.loads((copy / GOLDEN).read_text())
    for case in golden["cases"]:
        ranked = {entry.item: entry for entry in ranker.rank(case["request"]).ranked}
        entries = [ranked[item["item"] if isinstance(item, dict) else item] for item in case["request"]["candidates"]]
        case["scores"] = [entry.score for entry in entries]
        case["tasks"] = {name: [entry.tasks[name] for entry in entries] for name in case["tasks"]}
    return golden


def moved(score: float, by: float) -> float:
    """The probability whose logit is further from this one's by so many tolerances, beyond what rounding may do."""
    logit = math.log(score / (1 - score))
    rounding = 4 * 2.0**-24 / (1 - score)
    return 1 / (1 + math.exp(-(logit + rounding + by * TOLERANCE * max(1, abs(logit)))))


def with_golden(copy: Path, golden: dict[str, Any]) -> Path:
    """The bundle sealed again with these golden requests."""
    (copy / GOLDEN).write_text(json.dumps(golden))
    manifest = json.loads((copy / MANIFEST).read_text())
    seal(copy, BundleMetadata(**{name: manifest[name] for name in BundleMetadata.model_fields}))
    return copy


def test_other_scores_than_recorded_are_refused(copy: Path) -> None:
    golden = as_served(copy)
    golden["cases"][1]["scores"][0] = moved(golden["cases"][1]["scores"][0], 1.2)
    with pytest.raises(NumericalError, match=r"golden request 'logged 1, history of .*' scores 1.*e-05 in") as caught:
        Ranker.load(with_golden(copy, golden))
    assert caught.value.exit_code == 5


def test_scores_within_the_tolerance_are_taken(copy: Path) -> None:
    golden = as_served(copy)
    for case in golden["cases"]:
        case["scores"] = [moved(score, 0.8) for score in case["scores"]]
    assert Ranker.load(with_golden(copy, golden)).replay() == pytest.approx(0.8 * TOLERANCE, rel=0.2)


@pytest.mark.parametrize(("tolerance", "loads"), [(1.3 * TOLERANCE, True), (0.7 * TOLERANCE, False)])
def test_the_bundles_own_tolerance_decides(copy: Path, tolerance: float, loads: bool) -> None:
    golden = as_served(copy)
    assert golden["tolerance"] == TOLERANCE
    golden["tolerance"] = tolerance
    golden["cases"][0]["scores"][0] = moved(golden["cases"][0]["scores"][0], 1.0)
    with nullcontext() if loads else pytest.raises(NumericalError, match=f"at most {tolerance} is allowed"):
        Ranker.load(with_golden(copy, golden))


def test_a_bundle_works_wherever_it_is_moved(ranker: Ranker, copy: Path, tmp_path: Path) -> None:
    moved = tmp_path / "some where" / "else"
    moved.parent.mkdir()
    shutil.move(copy, moved)
    assert Ranker.load(moved).rank(REQUEST) == ranker.rank(REQUEST)


def test_a_failed_export_leaves_nothing(
    model: ClickModel, feature_set: FeatureSet, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def broken(*_: Any) -> float:
        raise NumericalError("parity: lost")

    monkeypatch.setattr("ctr.export.onnx_export.check_parity", broken)
    with pytest.raises(NumericalError, match="lost"):
        export(model, feature_set, copy.parent / "second")
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def with_a_wrong_weight(path: Path) -> None:
    """Scale one matrix of a saved graph."""
    graph = onnx.load(path, load_external_data=False)
    matrices = [one for one in graph.graph.initializer if len(one.dims) == 2 and not one.external_data]
    weight = numpy_helper.to_array(matrices[0])
    matrices[0].CopyFrom(numpy_helper.from_array(weight * np.float32(1.01), matrices[0].name))
    path.write_bytes(graph.SerializeToString())


def exported_with_a_wrong_weight(graph: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this export function of `ctr.export.onnx_export` write a graph that is not the model."""
    write = getattr(ctr.export.onnx_export, graph)

    def wrong(model: Any, schema: Any, path: Path) -> Any:
        shapes = write(model, schema, path)
        with_a_wrong_weight(path)
        return shapes

    monkeypatch.setattr(ctr.export.onnx_export, graph, wrong)


def test_a_graph_that_is_not_the_model_fails_its_golden_requests(
    model: ClickModel, feature_set: FeatureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported_with_a_wrong_weight("export_request_graph", monkeypatch)
    with pytest.raises(NumericalError, match="golden request 'logged' scores"):
        export(model, feature_set, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_is_not_the_model_fails_parity(
    model: ClickModel, feature_set: FeatureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Golden requests are few: without their replay the parity requests must find it."""
    exported_with_a_wrong_weight("export_request_graph", monkeypatch)
    monkeypatch.setattr(Ranker, "replay", lambda _: 0.0)
    with pytest.raises(NumericalError, match="parity: the exported graph and the trained model differ by"):
        export(model, feature_set, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_an_item_graph_that_is_not_the_model_is_not_published(
    model: ClickModel, feature_set: FeatureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported_with_a_wrong_weight("export_item_graph", monkeypatch)
    with pytest.raises(NumericalError, match=r"parity: items\.onnx gives item row"):
        export(model, feature_set, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_that_changed_since_the_build_is_not_exported(
    model: ClickModel, feature_set: FeatureSet, tmp_path: Path
) -> None:
    changed = Path(shutil.copytree(feature_set.path, tmp_path / "changed"))
    text = (changed / "encoder.json").read_text()
    (changed / "encoder.json").write_text(text.replace("log1p", "none"))
    with pytest.raises(DataError, match=r"encoder\.json: changed since the feature set was built"):
        export(model, FeatureSet.open(changed), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("kind", "method", "off", "where"),
    [
        (NumericEncoder, "encode_one", 1e-4, r"context\.load"),
        (CategoricalEncoder, "encode_one", 1, r"context\.device"),
        (NumericEncoder, "encode_many", np.float32(1e-4), r"history_events\.residual"),
    ],
)
def test_encoding_otherwise_online_than_offline_is_not_exported(
    model: ClickModel,
    feature_set: FeatureSet,
    monkeypatch: pytest.MonkeyPatch,
    kind: type,
    method: str,
    off: float,
    where: str,
) -> None:
    encode = getattr(kind, method)
    monkeypatch.setattr(kind, method, lambda self, value: encode(self, value) + off)
    with pytest.raises(DataError, match=f"golden request 'logged': {where} encodes to .* but the feature set holds"):
        golden_requests(model, feature_set, Encoder.load(feature_set.path))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_score_that_is_no_number_is_not_served(ranker: Ranker, exported: ExportResult, wrong: float) -> None:
    class Session:
        """As the real one, but the second candidate's score is wrong."""

        def __init__(self, real: ort.InferenceSession) -> None:
            self.get_inputs, self.get_outputs, self._real = real.get_inputs, real.get_outputs, real

        def run(self, *arguments: Any) -> list[np.ndarray]:
            scores = self._real.run(*arguments)
            scores[0][1] = wrong
            return scores

    session = Session(open_session(exported.path / RANKER))
    served = Ranker(ranker.bundle, ranker.encoder, session, Limits())
    with pytest.raises(NumericalError, match="run-1: 1 of 15 scores are not finite") as caught:
        served.rank(REQUEST)
    assert caught.value.exit_code == 5
