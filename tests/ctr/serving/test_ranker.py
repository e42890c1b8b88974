"""From raw requests to ranked candidates: a whole bundle of a small log, loaded as a server would."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctr.export.export_bundle import ExportResult
from ctr.export.parity import random_requests
from ctr.serving.bundle import ITEM_TABLE, MANIFEST, MODEL_CARD, RANKER, open_bundle
from ctr.serving.ranker import Ranker, open_session
from ctr.serving.settings import load_serve_config
from features.encoding.request import Limits
from features.errors import ConfigError, DataError, NumericalError
from features.store.feature_set import FeatureSet
from tests.ctr.serving.shop import REQUEST
from tests.trained import HISTORY_LEN

ROOT = Path(__file__).parents[3]


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
    whole = {
        **REQUEST,
        "history": [{"item": 101, "label": 1, "residual": 0.5}, {"item": 107, "label": 0, "residual": 0, "pause": 9}],
    }
    assert ranker.rank(whole, strict=True) == ranker.rank(whole)


def test_strict_names_what_the_request_lacks(ranker: Ranker) -> None:
    assert ranker.rank(REQUEST).missing == {"residual": 2, "pause": 1}
    with pytest.raises(ConfigError, match=r"missing: residual \(2\), pause \(1\)\. The model was trained on these"):
        ranker.rank(REQUEST, strict=True)


def test_raw_events_are_ranked_as_their_ready_columns_are(ranker: Ranker) -> None:
    raw = [
        {"item": 107, "time": 1_009, "clicked": 0, "item_rate": 0.25},
        {"item": 101, "time": 1_000, "clicked": 1, "item_rate": 0.4},
    ]
    ready = [{"item": 101, "label": 1, "residual": 0.6}, {"item": 107, "label": 0, "residual": -0.25, "pause": 9}]
    asked = {**REQUEST, "time": 1_010}
    assert scores(ranker, time=1_010, history=raw) == pytest.approx(scores(ranker, history=ready), abs=1e-7)
    assert ranker.rank({**asked, "history": raw}, strict=True).missing == {}
    # At its own instant an event is not known yet.
    assert scores(ranker, time=1_009, history=raw) == pytest.approx(scores(ranker, history=ready[:1]), abs=1e-7)
    unknown = [{"item": 999, "time": 1_000, "clicked": 1}]
    with pytest.raises(ConfigError, match="history: unknown ids 999"):
        ranker.rank({**asked, "history": unknown}, strict=True)


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


def test_a_bundle_works_wherever_it_is_moved(ranker: Ranker, copy: Path, tmp_path: Path) -> None:
    moved = tmp_path / "some where" / "else"
    moved.parent.mkdir()
    shutil.move(copy, moved)
    assert Ranker.load(moved).rank(REQUEST) == ranker.rank(REQUEST)


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
    # A number that no training row came near is the request's fault, and not the model's.
    with pytest.raises(ConfigError, match=r"history_residual: .* \(encoded\) is so far from what the model"):
        served.rank(REQUEST | {"history": [{"item": 101, "residual": 1e9}]})


def test_a_ranker_goes_without_a_search_for_garbage(exported: ExportResult) -> None:
    """A server looks for garbage seldom: each version that it replaced would stay."""
    gc.collect()
    gc.disable()
    try:
        ranker = Ranker.load(exported.path)
        ranker.rank(REQUEST)
        parts = [weakref.ref(part) for part in (ranker, ranker.encoder, ranker.bundle, ranker.counters)]
        del ranker
        assert [part() for part in parts] == [None] * 4
    finally:
        gc.enable()
