"""Golden requests: a model, graph or encoder that scores otherwise than the trained model is not served."""

from __future__ import annotations

import json
import math
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import ctr.export.export_bundle
from ctr.export.golden_requests import golden_requests
from ctr.model.click_model import ClickModel
from ctr.serving.agreement import TOLERANCE
from ctr.serving.bundle import GOLDEN, MANIFEST, BundleMetadata, seal
from ctr.serving.ranker import Ranker
from features.encoding.category import CategoricalEncoder
from features.encoding.encoder import Encoder
from features.encoding.number import NumericEncoder
from features.errors import DataError, NumericalError
from features.store.feature_set import FeatureSet
from tests.ctr.serving.shop import export
from tests.trained import HISTORY_LEN


def test_the_golden_requests_cover_the_edges(ranker: Ranker) -> None:
    cases = {case.name: case for case in ranker.bundle.golden().cases}
    assert len(cases) == 11
    assert {"no history", "one candidate", "candidates alone"} <= set(cases)
    assert cases["no history"].request["history"] == []
    # With what the counters say, and without.
    assert set(cases["logged"].request["candidates"][0]) == {"item", "item_rate", "item_count"}
    assert all(isinstance(item, int) for item in cases["candidates alone"].request["candidates"])
    assert len(cases["history longer than is read"].request["history"]) == HISTORY_LEN + 2
    events = cases["events as the log has them"].request
    assert events["history"] and {*map(frozenset, events["history"])} == {frozenset({"item", "time", "clicked"})}
    assert ranker.rank(events, strict=True).missing == {}
    unknown = cases["unknown user, history item and candidate"]
    result = ranker.rank(unknown.request)
    assert (len(result.unknown_candidates), result.unknown_history) == (1, 1)
    spread = np.concatenate([case.scores for case in cases.values()])
    assert spread.std() > 0.01


def test_a_changed_golden_score_of_a_task_is_refused(copy: Path) -> None:
    golden = as_served(copy)
    golden["cases"][1]["tasks"]["stay"][0] = moved(golden["cases"][1]["tasks"]["stay"][0], 1.2)
    with pytest.raises(NumericalError, match="golden request 'logged' scores 1"):
        Ranker.load(with_golden(copy, golden))


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
    golden["cases"][2]["scores"][0] = moved(golden["cases"][2]["scores"][0], 1.2)
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


def test_a_failed_export_leaves_nothing(
    model: ClickModel, feature_set: FeatureSet, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def broken(*_: Any) -> float:
        raise NumericalError("parity: lost")

    monkeypatch.setattr("ctr.export.export_bundle.check_parity", broken)
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
    """Let this export function of `ctr.export.export_bundle` write a graph that is not the model."""
    write = getattr(ctr.export.export_bundle, graph)

    def wrong(model: Any, schema: Any, path: Path) -> Any:
        shapes = write(model, schema, path)
        with_a_wrong_weight(path)
        return shapes

    monkeypatch.setattr(ctr.export.export_bundle, graph, wrong)


def test_a_graph_that_is_not_the_model_fails_its_golden_requests(
    model: ClickModel, feature_set: FeatureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported_with_a_wrong_weight("export_request_graph", monkeypatch)
    with pytest.raises(NumericalError, match="golden request 'events as the log has them' scores"):
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
