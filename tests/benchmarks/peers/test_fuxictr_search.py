"""The search of FuxiCTR's settings: the same draws for each model, a quarter of the users, then the best in full."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import yaml

from benchmarks.peers import fuxictr_search
from benchmarks.peers.fuxictr_rows import MODELS, Failed, PeerScores, settings_of
from benchmarks.peers.fuxictr_search import SPACE, Search, drawn, search
from ctr.data.columns import column
from features.contract.settings import load_yaml
from tests.toy import toy_feature_set

NARROW = {
    "width": {"choices": [4, 8]},
    "epochs": {"low": 2, "high": 3},
    "rate": {"low": 0.001, "high": 0.1, "log": True},
    "dropout": {"low": 0.0, "high": 0.5},
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return toy_feature_set(tmp_path_factory.mktemp("toy"), rows=600, users=60, items=15)


@pytest.fixture
def trained(toy, monkeypatch):
    """Trainings by name, whose AUC grows as the learning rate falls; above 0.006 FuxiCTR fails."""
    asked = []
    labels = column(toy, "valid", "label")

    def train(rows, trainings, folder):
        found = []
        for out, settings in trainings.items():
            asked.append((out.relative_to(folder).as_posix(), rows.manifest.windows["train"].rows, settings))
            if settings["learning_rate"] > 0.006:
                found.append(Failed("no numbers"))
                continue
            noise = np.random.default_rng(0).normal(size=len(labels)) * settings["learning_rate"] * 500
            found.append(PeerScores({"valid": labels + noise}, {"seconds": 1.0}))
        return found

    monkeypatch.setattr(fuxictr_search, "train_rows", train)
    return asked


def test_draws_lie_in_the_space_and_are_the_same_again():
    found = [drawn(NARROW, 1, number) for number in range(200)]
    assert found == [drawn(NARROW, 1, number) for number in range(200)]
    assert found != [drawn(NARROW, 2, number) for number in range(200)]
    assert {one["width"] for one in found} == {4, 8}
    assert {one["epochs"] for one in found} == {2, 3}
    rates = np.array([one["rate"] for one in found])
    assert rates.min() >= 0.001
    assert rates.max() <= 0.1
    # Even in the logarithm: half of them lie below 0.01.
    assert 0.4 < (rates < 0.01).mean() < 0.6
    dropouts = np.array([one["dropout"] for one in found])
    assert 0.4 < (dropouts < 0.25).mean() < 0.6


def test_trials_are_drawn_for_a_quarter_and_the_best_and_the_present_settings_run_in_full(toy, trained, tmp_path):
    said = []
    found = search(Search(toy, "DCNv2", tmp_path, trials=6), said.append)
    whole = toy.manifest.windows["train"].rows
    trials = {name: (rows, settings) for name, rows, settings in trained if "trial-" in name}
    finals = {name: (rows, settings) for name, rows, settings in trained if "trial-" not in name}
    assert set(trials) == {f"search/DCNv2/trial-{name}" for name in ("present", *(f"{n:02}" for n in range(6)))}
    assert set(finals) == {f"search/DCNv2/{name}" for name in ("best-1", "best-2", "present")}
    assert len({rows for rows, _ in trials.values()}) == 1
    assert all(0.1 * whole < rows < 0.4 * whole for rows, _ in trials.values())
    assert {rows for rows, _ in finals.values()} == {whole}
    assert {settings["looks"] for _, settings in trials.values()} == {1}
    assert {settings["looks"] for _, settings in finals.values()} == {settings_of("DCNv2")["looks"]}
    # The fake's AUC falls with the learning rate.
    rates = sorted(settings["learning_rate"] for _, settings in trials.values())
    best = [finals[f"search/DCNv2/best-{place}"][1]["learning_rate"] for place in (1, 2)]
    assert best == rates[:2]
    assert found.settings["learning_rate"] == rates[0]
    assert len(said) == 10


def test_each_model_has_the_same_settings_to_choose_from(toy, trained, tmp_path):
    space = set(load_yaml(SPACE)["space"])
    drawn_by_model = []
    for model in MODELS:
        trained.clear()
        search(Search(toy, model, tmp_path, trials=4, best=0), print)
        assert {settings["model"] for _, _, settings in trained} == {model}
        chosen = [{key: settings[key] for key in space} for name, _, settings in trained if name[-1].isdigit()]
        assert len(chosen) == 4
        drawn_by_model.append(chosen)
    assert drawn_by_model[0] == drawn_by_model[1] == drawn_by_model[2]


def test_without_finals_the_best_trial_wins(toy, trained, tmp_path):
    found = search(Search(toy, "DIN", tmp_path, trials=3, best=0), print)
    assert all("trial-" in name for name, _, _ in trained)
    assert found.settings["learning_rate"] == min(settings["learning_rate"] for _, _, settings in trained)


def test_a_trial_that_failed_is_not_chosen(toy, trained, tmp_path, monkeypatch):
    space = {"learning_rate": {"choices": [0.001, 0.007]}}
    monkeypatch.setattr(fuxictr_search, "load_yaml", lambda _: {"space": space})
    found = search(Search(toy, "DIN", tmp_path, trials=8), print)
    tried = {settings["learning_rate"] for name, _, settings in trained if "present" not in name}
    assert tried == {0.001, 0.007}
    assert found.settings == {"learning_rate": 0.001}


def test_a_search_without_any_result_says_where_to_look(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(fuxictr_search, "train_rows", lambda _, trainings, __: [Failed("no numbers")] * len(trainings))
    with pytest.raises(RuntimeError, match=r"error\.txt"):
        search(Search(toy, "DIN", tmp_path, trials=2), print)


def test_the_command_prints_what_settings_yaml_takes(toy, trained, tmp_path, monkeypatch, capsys):
    command = ["fuxictr_search", "--feature-set", str(toy.path), "--folder", str(tmp_path), "--model", "DIN"]
    monkeypatch.setattr(sys, "argv", [*command, "--trials", "2"])
    fuxictr_search.main()
    *lines, last = capsys.readouterr().out.split("DIN:")
    assert "best-1: AUC" in lines[0]
    assert set(yaml.safe_load("DIN:" + last)["DIN"]) == set(load_yaml(SPACE)["space"])


@pytest.mark.parametrize("model", MODELS)
def test_settings_hold_all_that_is_searched(model):
    searched = load_yaml(SPACE)["space"]
    assert set(settings_of(model)) == {*searched, "looks"}


def test_settings_name_no_other_model():
    assert set(load_yaml(SPACE.with_name("settings.yaml"))["models"]) <= set(MODELS)
