"""Rankers of a study compared: calibrated alike, by the same users, their differences corrected."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from ctr.data.columns import column, row_weights
from ctr.evaluation.metrics import log_loss
from ctr.evaluation.ranking_metrics import requests_of
from ctr.evaluation.significance import holm, seeded_aucs, seeded_list_aucs
from ctr.training.calibrate import cross_fitted, recalibrated
from pipelines.study.tables import study_tables
from pipelines.study.verdicts import Ranker, Verdict, conventions, verdicts
from tests.listed import built_lists
from tests.toy import toy_feature_set


@pytest.fixture(scope="module")
def feature_set(tmp_path_factory):
    return toy_feature_set(tmp_path_factory.mktemp("toy") / "toy", rows=12_000)


def probability(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def rankers(feature_set) -> dict[str, Ranker]:
    """`good` of two seeds; `sure` ranks alike and is far too sure; `bad` of one seed is nearly noise."""
    logits = {}
    for split, seed in (("valid", 0), ("test", 1)):
        labels = column(feature_set, split, "label")
        draw = np.random.default_rng(seed)
        logits[split] = 1.2 * labels - 1 + draw.normal(size=(2, len(labels)))
    found = {}
    for name, change in (("good", lambda one: one), ("sure", lambda one: 4 * one + 2)):
        found[name] = Ranker(probability(change(logits["test"])), probability(change(logits["valid"])))
    noise = np.random.default_rng(2)
    found["bad"] = Ranker(noise.random((1, len(logits["test"][0]))), noise.random((1, len(logits["valid"][0]))))
    return found


@pytest.fixture(scope="module")
def compared(feature_set) -> dict[str, Verdict]:
    return verdicts(feature_set, "test", rankers(feature_set), "good")


def test_rankers_that_rank_alike_have_the_same_likelihood_however_sure_they_were(compared):
    assert compared["sure"].metrics == pytest.approx(compared["good"].metrics, abs=1e-3)
    assert {"log_loss", "ece", "normalized_entropy", "calibration_ratio"} <= set(compared["sure"].metrics)
    assert compared["sure"].calibrated


def test_each_seed_is_calibrated_by_its_own_validation_rows(feature_set, compared):
    labels, weights = column(feature_set, "test", "label"), row_weights(feature_set, "test")
    valid = column(feature_set, "valid", "label"), row_weights(feature_set, "valid")
    one = rankers(feature_set)["good"]
    by_hand = [
        log_loss(labels, recalibrated("platt", one.valid[seed], *valid, one.evaluated[seed]), weights)
        for seed in (0, 1)
    ]
    assert compared["good"].metrics["log_loss"] == pytest.approx(np.mean(by_hand))


def test_on_validation_rows_each_user_is_calibrated_by_other_users(feature_set):
    one = rankers(feature_set)["good"].valid[:1]
    found = verdicts(feature_set, "valid", {"a": Ranker(one, one)}, "a")["a"]
    labels, weights = column(feature_set, "valid", "label"), row_weights(feature_set, "valid")
    apart = cross_fitted("platt", one[0], labels, column(feature_set, "valid", "user"), weights)
    assert found.metrics["log_loss"] == pytest.approx(log_loss(labels, apart, weights))


def test_a_ranker_without_validation_scores_is_marked(feature_set):
    one = rankers(feature_set)["sure"]
    found = verdicts(feature_set, "test", {"a": Ranker(one.evaluated, None), "b": one}, "b")
    assert not found["a"].calibrated and found["b"].calibrated
    assert found["a"].metrics["log_loss"] > found["b"].metrics["log_loss"] + 0.1
    assert "a (uncalibrated)" in shown(found, "b") and "b (uncalibrated)" not in shown(found, "b")


def shown(found: dict[str, Verdict], reference: str) -> str:
    console = Console(width=100, file=StringIO())
    for table in study_tables(found, reference):
        console.print(table.on_terminal())
    return console.file.getvalue()


def line_of(name: str, text: str) -> str:
    return next(line for line in text.splitlines() if line.strip().startswith(name))


def test_intervals_and_p_values_draw_users(feature_set, compared):
    scores = {name: one.evaluated for name, one in rankers(feature_set).items()}
    labels, weights = column(feature_set, "test", "label"), row_weights(feature_set, "test")
    users = column(feature_set, "test", "user")
    expected = seeded_aucs(labels, scores, weights, clusters=users)
    assert compared["bad"].rows.auc.interval() == expected["bad"].interval()
    assert compared["bad"].rows.difference == expected["bad"].minus(expected["good"])
    assert compared["good"].rows.difference is None and compared["good"].record()["difference_low"] == 0


def test_a_star_follows_the_corrected_decision(compared):
    p_values = {name: one.rows.difference.p for name, one in compared.items() if one.rows.difference}
    assert {name: compared[name].rows.p_adjusted for name in p_values} == holm(p_values)
    decided = {name: one.rows.resolved for name, one in compared.items()}
    assert decided == {"bad": True, "sure": False, "good": False}
    assert " *" in line_of("bad", shown(compared, "good")) and " *" not in line_of("sure", shown(compared, "good"))
    assert compared["bad"].record()["resolved"] is True


def test_a_difference_that_only_its_own_interval_resolves_has_no_star(compared):
    weak = replace(compared["bad"], rows=replace(compared["bad"].rows, p_adjusted=0.06))
    line = line_of("bad", shown({"bad": weak}, "good"))
    assert weak.rows.difference is not None and weak.rows.difference.high < 0 and " *" not in line


def test_the_table_says_how_it_came_about(compared):
    said = " ".join(conventions(compared))
    assert "resampling 100 users" in said and "Holm's correction for the 2 differences" in said
    assert "one seed" in said and "every ranker is calibrated by platt" in said
    assert "one seed" not in " ".join(conventions({name: one for name, one in compared.items() if name != "bad"}))


def test_requests_have_intervals_and_corrected_differences_of_their_own(tmp_path):
    """Two trainings that rank within lists, and one that tells users apart alone."""
    listed = built_lists(tmp_path)
    labels, users = (
        np.concatenate([column(listed, split, name) for split in ("valid",)]) for name in ("label", "user")
    )
    draw = np.random.default_rng(3)
    good = np.stack([probability(2 * labels + draw.normal(size=len(labels))) for _ in range(2)])
    of_users = probability((users % 5 - 2).astype(float))[None]
    found = verdicts(listed, "valid", {"good": Ranker(good, good), "of_users": Ranker(of_users, of_users)}, "good")
    lists = requests_of(listed, "valid")
    expected = seeded_list_aucs(labels, {"good": good, "of_users": of_users}, lists, clusters=users)
    assert found["of_users"].lists.auc.interval().value == 0.5
    assert found["good"].lists.auc.interval() == expected["good"].interval()
    assert found["of_users"].lists.difference == expected["of_users"].minus(expected["good"])
    assert found["of_users"].record()["list_difference"] < 0 == found["good"].record()["list_difference"]
    text = shown(found, "good")
    assert "Ranking within requests" in text and "0.5000" in line_of("of_users", text.partition("within requests")[2])


FACTS = {"parameters": 12_345_678.0, "rows_per_second": 123_456.0, "rank_ms": 12.3456}
LISTS = {"group_auc": 0.71234, "mrr": 0.4, "ndcg_5": 0.5, "ndcg_10": 0.6}


@pytest.fixture
def wide(compared) -> dict[str, Verdict]:
    """With long names, costs and metrics of lists: as wide as tables become."""
    renamed = {"transformer_dcnv2": compared["good"], "shuffled_vectors": compared["bad"]}
    return {
        name: replace(one, facts=FACTS, metrics=one.metrics | LISTS, lists=one.rows) for name, one in renamed.items()
    }


def test_every_cell_is_whole_in_a_terminal_of_100_columns(wide):
    text = shown(wide, "transformer_dcnv2")
    assert "…" not in text and max(map(len, text.splitlines())) <= 100
    difference = wide["shuffled_vectors"].rows.difference
    assert f"{difference.value:+.4f} ({difference.low:+.4f} to {difference.high:+.4f}) *" in text
    for cell in ("12,345,678", "123,456", "12.35", "0.4000", "0.6000"):
        assert cell in line_after("transformer_dcnv2", cell, text)


def test_a_long_name_is_folded_and_numbers_stay_whole(wide):
    name = "transformer_dcnv2 with trees beside it, and without the vectors of images"
    found = {name: wide["transformer_dcnv2"], "shuffled_vectors": wide["shuffled_vectors"]}
    text = shown(found, "shuffled_vectors")
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 100


def line_after(name: str, cell: str, text: str) -> str:
    return next(line for line in text.splitlines() if line.strip().startswith(name) and cell in line)


def test_metrics_of_lists_have_a_table_where_every_ranker_has_them(wide, compared):
    titles = [table.title for table in study_tables(wide, "transformer_dcnv2")]
    assert titles[2:] == ["Ranking within requests", "Other metrics within requests"]
    assert len(study_tables(compared, "good")) == 2
    some = wide | {"shuffled_vectors": compared["bad"]}
    assert len(study_tables(some, "transformer_dcnv2")) == 2


def test_a_name_with_a_bar_is_one_cell_of_markdown(wide):
    """A variant is called what a folder may be called."""
    ranking, *_ = study_tables({"qin|din": wide["transformer_dcnv2"]}, "qin|din")
    lines = ranking.as_markdown().splitlines()
    assert lines[2].endswith(r"| against qin\|din |")
    assert lines[4].startswith(r"| qin\|din | 2 |")


def test_markdown_has_the_same_cells(wide):
    ranking, others, lists, further = study_tables(wide, "transformer_dcnv2")
    lines = ranking.as_markdown().splitlines()
    assert lines[0] == "### Ranking of all rows"
    assert lines[2] == "| ranker | seeds | AUC | 95 % interval | against transformer_dcnv2 |"
    assert lines[3] == "| --- | --: | --: | --: | --: |"
    assert lines[4].startswith("| transformer_dcnv2 | 2 | ") and lines[4].endswith(" |  |")
    assert lines[5].startswith("| shuffled_vectors | 1 | ") and lines[5].endswith(" * |")
    assert "| 12,345,678 | 123,456 | 12.35 |" in others.as_markdown()
    assert lists.as_markdown().splitlines()[5].endswith(" * |")
    assert further.as_markdown().splitlines()[4] == "| transformer_dcnv2 | 0.4000 | 0.5000 | 0.6000 |"
