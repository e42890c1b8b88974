"""Trials that draw the settings of an earlier one: nothing is trained again, and the worker says so."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from rich.console import Console

from ctr.reporting.mlflow_store import MlflowStore
from features.errors import NumericalError
from pipelines.tune.noise import USERS, outlook
from pipelines.tune.outcome import lines_of
from pipelines.tune.sweep import Sweep, run_sweep
from pipelines.tune.trial import HIGH, LOW, ROWS, RUN, SAME_AS, Trials
from tests.pipelines.tune.sweeping import run, settings, space

pytestmark = pytest.mark.usefixtures("place")
TWO = {"model.dropout": {"choices": [0.1, 0.2]}}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The settings that trials train with, which takes no time; a later training is worth less."""
    found: list[dict[str, Any]] = []

    def value(self: Trials, trial: optuna.Trial, chosen: dict[str, Any], renewal: object) -> float:
        found.append(dict(chosen))
        facts = {RUN: f"run {trial.number}", ROWS: 100, LOW: 0.5, HIGH: 0.9, USERS: 0.1}
        for name, fact in facts.items():
            trial.set_user_attr(name, fact)
        return 0.7 - 0.01 * len(found)

    monkeypatch.setattr(Trials, "_trained", value)
    return found


def test_settings_that_were_trained_before_are_not_trained_again(work: Path, trained: list[dict[str, Any]]) -> None:
    console = Console(record=True, width=200, file=io.StringIO())
    sweep = Sweep("repeated", space(space=TWO, sampler="random"), None, 6)
    found = run_sweep(replace(settings(work), console=console), sweep)
    assert sorted(one["model.dropout"] for one in trained) == [0.1, 0.2]
    assert found.summary()["trials"] == {"complete": 6}
    by_run = {one.user_attrs[RUN]: one for one in found.trials if SAME_AS not in one.user_attrs}
    assert len(by_run) == 2
    for one in found.trials:
        assert one.params == by_run[one.user_attrs[RUN]].params
        assert one.values == by_run[one.user_attrs[RUN]].values
        assert one.user_attrs[LOW] == 0.5
    said = console.export_text()
    repeated = next(one for one in found.trials if SAME_AS in one.user_attrs)
    of = repeated.user_attrs[SAME_AS]
    assert f"trial {repeated.number}: has the settings of trial {of}, whose result it takes: nothing is trained" in said


def test_rows_that_were_read_once_count_once(work: Path, trained: list[dict[str, Any]]) -> None:
    found = run(work, "counted once", 6, space=TWO, sampler="random")
    assert found.rows == 200


def test_the_last_lines_say_how_many_trials_repeat_others(work: Path, trained: list[dict[str, Any]]) -> None:
    found = run(work, "told", 6, space=TWO, sampler="random")
    assert "  4 of these trials have the settings of earlier ones: nothing was trained for them" in lines_of(found)
    few = run(work, "none repeated", 1, space=TWO, sampler="random")
    assert not [line for line in lines_of(few) if "settings of earlier ones" in line]


def test_settings_that_failed_are_trained_again(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have no result that could be taken."""
    tried: list[float] = []

    def value(self: Trials, trial: optuna.Trial, chosen: dict[str, Any], renewal: object) -> float:
        tried.append(chosen["model.dropout"])
        trial.set_user_attr(RUN, "nowhere")
        if chosen["model.dropout"] == 0.2:
            raise NumericalError("no such luck")
        return 0.7

    monkeypatch.setattr(Trials, "_trained", value)
    found = run(work, "failing", 6, space=TWO, sampler="random")
    failed = [one for one in found.trials if one.params["model.dropout"] == 0.2]
    assert len(failed) > 1
    assert tried.count(0.2) == len(failed)


def test_a_repeated_trial_says_nothing_of_the_noise_of_trainings() -> None:
    """Equal values at one place would look as if trainings had no scatter."""
    study = optuna.create_study(direction="maximize")
    space = {"model.dropout": optuna.distributions.FloatDistribution(0.0, 0.4)}
    for number in range(10):
        params = {"model.dropout": number / 25}
        study.add_trial(
            optuna.create_trial(value=0.7 + 0.01 * (number % 3), params=params, distributions=space,
                                user_attrs={USERS: 0.01})
        )  # fmt: skip
    alone = outlook(study.trials, maximize=True)
    for of in (2, 2, 5):
        one = study.trials[of]
        study.add_trial(
            optuna.create_trial(value=one.value, params=one.params, distributions=space, user_attrs={SAME_AS: of})
        )
    assert outlook(study.trials, maximize=True) == alone
    assert alone is not None


def test_mlflow_has_no_run_of_a_trial_that_trained_nothing(work: Path) -> None:
    found = run(work, "one run each", 4, space=TWO, sampler="random")
    client = MlflowStore(work).client
    experiment = client.get_run(str(found.parent)).info.experiment_id
    children = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{found.parent}'")
    own = [str(one.number) for one in found.trials if SAME_AS not in one.user_attrs]
    assert len(own) == 2
    assert sorted(one.data.tags["trial"] for one in children) == own
