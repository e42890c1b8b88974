"""Rankers of a study judged side by side: calibrated alike, by the same users, their differences corrected."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from ctr.data.columns import column, row_weights
from ctr.evaluation.metrics import log_loss
from ctr.evaluation.significance import holm, seeded_aucs
from ctr.training.calibrate import cross_fitted, recalibrated
from pipelines.study.judging import Judged, RankerScores, conventions, judge, study_table
from tests.toy import toy_feature_set


@pytest.fixture(scope="module")
def feature_set(tmp_path_factory):
    return toy_feature_set(tmp_path_factory.mktemp("toy") / "toy", rows=12_000)


def probability(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def rankers(feature_set) -> dict[str, RankerScores]:
    """`good` of two seeds; `sure` ranks alike and is far too sure; `bad` of one seed is nearly noise."""
    logits = {}
    for split, seed in (("valid", 0), ("test", 1)):
        labels = column(feature_set, split, "label")
        draw = np.random.default_rng(seed)
        logits[split] = 1.2 * labels - 1 + draw.normal(size=(2, len(labels)))
    found = {}
    for name, change in (("good", lambda one: one), ("sure", lambda one: 4 * one + 2)):
        found[name] = RankerScores(probability(change(logits["test"])), probability(change(logits["valid"])))
    noise = np.random.default_rng(2)
    found["bad"] = RankerScores(noise.random((1, len(logits["test"][0]))), noise.random((1, len(logits["valid"][0]))))
    return found


@pytest.fixture(scope="module")
def judged(feature_set) -> dict[str, Judged]:
    return judge(feature_set, "test", rankers(feature_set), "good", {}, {})


def test_rankers_that_rank_alike_have_the_same_likelihood_however_sure_they_were(judged):
    assert judged["sure"].metrics == pytest.approx(judged["good"].metrics, abs=1e-3)
    assert {"log_loss", "ece", "normalized_entropy", "calibration_ratio"} <= set(judged["sure"].metrics)
    assert judged["sure"].calibrated


def test_each_seed_is_calibrated_by_its_own_validation_rows(feature_set, judged):
    labels, weights = column(feature_set, "test", "label"), row_weights(feature_set, "test")
    valid = column(feature_set, "valid", "label"), row_weights(feature_set, "valid")
    one = rankers(feature_set)["good"]
    by_hand = [
        log_loss(labels, recalibrated("platt", one.valid[seed], *valid, one.judged[seed]), weights) for seed in (0, 1)
    ]
    assert judged["good"].metrics["log_loss"] == pytest.approx(np.mean(by_hand))


def test_on_validation_rows_each_user_is_calibrated_by_other_users(feature_set):
    one = rankers(feature_set)["good"].valid[:1]
    found = judge(feature_set, "valid", {"a": RankerScores(one, one)}, "a", {}, {})["a"]
    labels, weights = column(feature_set, "valid", "label"), row_weights(feature_set, "valid")
    apart = cross_fitted("platt", one[0], labels, column(feature_set, "valid", "user"), weights)
    assert found.metrics["log_loss"] == pytest.approx(log_loss(labels, apart, weights))


def test_a_ranker_without_validation_scores_is_marked(feature_set):
    one = rankers(feature_set)["sure"]
    found = judge(feature_set, "test", {"a": RankerScores(one.judged, None), "b": one}, "b", {}, {})
    assert not found["a"].calibrated and found["b"].calibrated
    assert found["a"].metrics["log_loss"] > found["b"].metrics["log_loss"] + 0.1
    assert "a (uncalibrated)" in shown(found, "b") and "b (uncalibrated)" not in shown(found, "b")


def shown(found: dict[str, Judged], reference: str) -> str:
    console = Console(width=400, file=StringIO())
    console.print(study_table("title", found, reference))
    return console.file.getvalue()


def line_of(name: str, text: str) -> str:
    return next(line for line in text.splitlines() if line.strip(" │").startswith(name))


def test_intervals_and_p_values_draw_users(feature_set, judged):
    scores = {name: one.judged for name, one in rankers(feature_set).items()}
    labels, weights = column(feature_set, "test", "label"), row_weights(feature_set, "test")
    users = column(feature_set, "test", "user")
    expected = seeded_aucs(labels, scores, weights, clusters=users)
    assert judged["bad"].auc.interval() == expected["bad"].interval()
    assert judged["bad"].difference == expected["bad"].minus(expected["good"])
    assert judged["good"].difference is None and judged["good"].record()["difference_low"] == 0


def test_a_star_follows_the_corrected_decision(judged):
    p_values = {name: one.difference.p for name, one in judged.items() if one.difference}
    assert {name: judged[name].p_adjusted for name in p_values} == holm(p_values)
    assert judged["bad"].resolved and not judged["sure"].resolved and not judged["good"].resolved
    assert " *" in line_of("bad", shown(judged, "good")) and " *" not in line_of("sure", shown(judged, "good"))
    assert judged["bad"].record()["resolved"] is True


def test_a_difference_that_only_its_own_interval_resolves_has_no_star(judged):
    weak = replace(judged["bad"], p_adjusted=0.06)
    line = line_of("bad", shown({"bad": weak}, "good"))
    assert weak.difference is not None and weak.difference.high < 0 and " *" not in line


def test_the_table_says_how_it_came_about(judged):
    said = " ".join(conventions(judged))
    assert "drawing 100 users again" in said and "Holm's correction for the 2 differences" in said
    assert "one seed" in said and "calibrated alike, platt" in said
    assert "one seed" not in " ".join(conventions({name: one for name, one in judged.items() if name != "bad"}))
    assert "users again" in shown(judged, "good")
