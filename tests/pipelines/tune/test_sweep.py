"""A sweep with real trainings: what is tried first, what is pruned, the finalists, feature sets, MLflow."""

from __future__ import annotations

import io
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from rich.console import Console

from ctr.reporting.mlflow_store import MlflowStore
from features.contract.settings import validate
from features.errors import ConfigError, StoreAwayError, TryAgainError
from features.simulator.simulate import simulate
from features.store.feature_set import FeatureSet
from pipelines.cli.commands import main
from pipelines.cli.options import settings_of
from pipelines.job.train import Job, Trained
from pipelines.job_settings import JobSettings
from pipelines.operate.waiting import send_waiting
from pipelines.report.sweep import plots_of, report_sweep
from pipelines.tune import sweep as tune
from pipelines.tune.noise import Outlook
from pipelines.tune.outcome import Outcome, lines_of
from pipelines.tune.search.space import SearchSpace
from pipelines.tune.sweep import Sweep, run_sweep
from pipelines.tune.trial import FIRST, RUN, Trials
from pipelines.tune.workers.leases import Lease
from pipelines.tune.workers.standing import ERROR, state_of
from pipelines.tune.workers.storage import SharedStorage
from pipelines.workspace import Workspace
from tests.ctr.reporting.mlflow_server import free_port
from tests.pipelines.cli.test_commands import ROOT

RATE = {"train.learning_rate": {"low": 0.0003, "high": 0.003, "log": True}}
DROPOUT = {"model.dropout": {"low": 0.0, "high": 0.4}}
TINY = ["train.epochs=1", "train.batch_size=256", "train.evaluations_per_epoch=2", "train.patience=0"]
LR = ROOT / "conf" / "model" / "lr.yaml"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    simulate(folder / "raw", rows=6_000, users=150, items=100, seed=1)
    return folder


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def settings(work: Path, *assignments: str, root: Path | None = None) -> JobSettings:
    data = Path("conf/data/simulated.yaml")
    raw = str((root or work) / "raw")
    source, overrides = settings_of(data, [*TINY, *assignments], raw, None, None)
    return JobSettings(source, data, LR, Path("conf/train.yaml"), overrides, Workspace(work), Console(quiet=True))


def space(**content: Any) -> SearchSpace:
    shape = {"startup_trials": 1, "schedule": "none", "space": RATE | DROPOUT}
    return validate(SearchSpace, shape | content, "tune.yaml")


def run(work: Path, study: str, trials: int, *assignments: str, **content: Any) -> Outcome:
    return run_sweep(settings(work, *assignments), Sweep(study, space(**content), None, trials))


def load(work: Path, study: str) -> optuna.Study:
    shared = SharedStorage.of(None, study, Workspace(work), Lease())
    return optuna.load_study(study_name=study, storage=shared.open())


@pytest.fixture(scope="module")
def screened(work: Path) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        found = run(work, "screened", 4, schedule="screen", screen={"best": 1, "seeds": 2, "share": 0.5})
        report_sweep(found, settings(work))
    return found


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials draw their settings and are as good as their dropout is low; nothing is trained."""

    def value(self: Trials, trial: optuna.Trial, chosen: dict[str, float], renewal: object) -> float:
        trial.set_user_attr(RUN, "nowhere")
        return 1 - chosen["model.dropout"]

    monkeypatch.setattr(Trials, "_trained", value)


def test_the_first_trial_has_the_current_settings(screened: Outcome) -> None:
    first = screened.trials[0]
    assert first.params == {"train.learning_rate": 0.002, "model.dropout": 0.1} and first.user_attrs[FIRST]
    assert [one.user_attrs.get(FIRST) for one in screened.trials[1:]] == [None] * 3


def test_the_screen_trains_each_finalist_in_full_with_each_seed(screened: Outcome) -> None:
    """The best, and the current settings, which are always compared with."""
    settings_of_finals = {one.user_attrs["of"] for one in screened.finals}
    assert 0 in settings_of_finals and len(settings_of_finals) in (1, 2)
    assert {(one.user_attrs["of"], one.user_attrs["seed"]) for one in screened.finals} == {
        (number, seed) for number in settings_of_finals for seed in (1, 2)
    }
    assert max(screened.trials, key=lambda one: one.values[0]).number in settings_of_finals


def test_the_screen_spends_rows_of_a_share_of_the_users_first(screened: Outcome) -> None:
    searched = {one.user_attrs["rows"] for one in screened.trials}
    in_full = {one.user_attrs["rows"] for one in screened.finals}
    assert len(searched) == len(in_full) == 1
    assert 0.3 < searched.pop() / in_full.pop() < 0.7
    assert screened.rows == sum(one.user_attrs["rows"] for one in (*screened.trials, *screened.finals))


def test_the_winner_is_the_best_mean_over_seeds(screened: Outcome) -> None:
    means = {
        number: sum(values) / len(values)
        for number in {one.user_attrs["of"] for one in screened.finals}
        for values in [[one.values[0] for one in screened.finals if one.user_attrs["of"] == number]]
    }
    best = max(means, key=means.__getitem__)
    assert (screened.winner.trial, screened.winner.trainings) == (best, 2)
    assert screened.winner.value == pytest.approx(means[best])
    interval = screened.winner.interval
    assert interval is not None and interval.low < screened.winner.value < interval.high
    assert (screened.winner.gain is None) == (best == 0)


def test_the_best_settings_are_a_preset_with_the_command_that_trains_it(screened: Outcome, work: Path) -> None:
    text = screened.path.read_text()
    content = yaml.safe_load(text)
    assert content["model"]["dropout"] == pytest.approx(screened.winner.params["model.dropout"])
    assert content["train"]["learning_rate"] == pytest.approx(screened.winner.params["train.learning_rate"])
    assert screened.command in text and f"--model {screened.path}" in screened.command


def test_mlflow_has_one_parent_with_each_trial_and_training_below_it(screened: Outcome, work: Path) -> None:
    client = MlflowStore(work).client
    parent = client.get_run(screened.parent)
    children = client.search_runs([parent.info.experiment_id], f"tags.mlflow.parentRunId = '{screened.parent}'")
    stages = sorted((one.data.tags["stage"], int(one.data.tags["trial"])) for one in children)
    assert stages == [("final", n) for n in range(len(screened.finals))] + [("search", n) for n in range(4)]
    assert {(one.info.status, one.data.tags["trial_state"]) for one in children} == {("FINISHED", "complete")}
    assert all({"trial.rows", "trial.seconds", "trial.peak_mib"} <= set(one.data.metrics) for one in children)
    assert len({one.data.tags["worker"] for one in children}) == 1
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["best.model.dropout"] == str(screened.winner.params["model.dropout"])
    assert parent.data.metrics["rows_spent"] == screened.rows


def test_mlflow_has_page_figures_and_best_settings_of_the_study(screened: Outcome, work: Path) -> None:
    client = MlflowStore(work).client
    files = {
        one.path for folder in ("plots", "report", "best") for one in client.list_artifacts(screened.parent, folder)
    }
    assert files == {
        "plots/history.png", "plots/importance.png", "plots/slices.png", "plots/parallel_coordinates.png",
        "report/screened.html", "best/screened.best.yaml",
    }  # fmt: skip


def test_the_summary_is_json(screened: Outcome) -> None:
    told = json.loads(json.dumps(screened.summary()))
    assert told["trials"] == {"complete": 4} and told["ended"] == "trials"
    assert told["best"]["trial"] == screened.winner.trial and told["rows_spent"] == screened.rows


def test_a_study_that_has_its_trials_trains_nothing_again(screened: Outcome, work: Path) -> None:
    again = run(work, "screened", 4, schedule="screen", screen={"best": 1, "seeds": 2, "share": 0.5})
    assert [one.number for one in again.trials] == [0, 1, 2, 3]
    assert len(again.finals) == len(screened.finals) and again.winner == screened.winner


def test_another_space_under_the_same_name_is_refused(screened: Outcome, work: Path) -> None:
    with pytest.raises(ConfigError, match=r"space model.dropout: 0.0\.\.0.4 in the study, 0.0\.\.0.5 now"):
        run(
            work, "screened", 4, schedule="screen", screen={"share": 0.5},
            space=RATE | {"model.dropout": {"low": 0.0, "high": 0.5}},
        )  # fmt: skip


def test_other_settings_under_the_same_name_are_refused(screened: Outcome, work: Path) -> None:
    with pytest.raises(ConfigError, match=r"train.epochs: 1 in the study, 2 now"):
        run(work, "screened", 4, "train.epochs=2", schedule="screen", screen={"share": 0.5})


def test_the_best_of_another_study_are_tried_after_the_current_settings(
    screened: Outcome, work: Path, untrained: None
) -> None:
    sweep = Sweep("followed", space(), None, 3, from_study="screened", take=2)
    found = run_sweep(settings(work), sweep)
    ranked = sorted(screened.trials[1:], key=lambda one: -one.values[0])[:2]
    assert [one.params for one in found.trials[1:]] == [one.params for one in ranked]
    assert [one.user_attrs.get("from") for one in found.trials] == [None] + [f"screened {one.number}" for one in ranked]


def test_a_study_to_follow_has_no_more_trials_than_are_asked_for(
    screened: Outcome, work: Path, untrained: None
) -> None:
    found = run_sweep(settings(work), Sweep("short", space(), None, 2, from_study="screened", take=3))
    assert found.summary()["trials"] == {"complete": 2}


def test_what_another_study_tried_beyond_this_space_is_drawn(work: Path, untrained: None) -> None:
    """A choice that is none here, and a number beyond the range: both are told, and neither stops a worker."""
    wide = {"model.dropout": {"low": 0.2, "high": 0.8}, "train.batch_size": {"choices": [128, 256]}}
    run(work, "wide", 9, space=wide)
    console = Console(record=True, width=200, file=io.StringIO())
    narrow = space(space={"model.dropout": {"low": 0.0, "high": 0.15}, "train.batch_size": {"choices": [256, 512]}})
    sweep = Sweep("narrow", narrow, None, 6, from_study="wide", take=9)
    found = run_sweep(replace(settings(work), console=console), sweep)
    assert found.summary()["trials"] == {"complete": 6}
    assert all(one.params["model.dropout"] <= 0.15 for one in found.trials if one.params)
    told = console.export_text()
    assert "model.dropout is 0." in told and "train.batch_size is 128 there" in told


def test_a_study_is_begun_again_where_its_first_worker_was_stopped(work: Path, untrained: None) -> None:
    """It had said what the study is about, and queued nothing yet."""
    run(work, "begun", 1)
    begun = load(work, "begun")
    shared = SharedStorage.of(None, "halfway", Workspace(work), Lease())
    study = optuna.create_study(study_name="halfway", storage=shared.open(), direction="maximize")
    study.set_user_attr(tune.DEFINITION, begun.user_attrs[tune.DEFINITION])
    found = run(work, "halfway", 2)
    assert [one.user_attrs.get(FIRST) for one in found.trials] == [True, None]


def test_trials_that_were_added_later_become_finalists(work: Path, untrained: None) -> None:
    shape = {"schedule": "screen", "screen": {"best": 1, "seeds": 1}}
    run(work, "longer", 1, **shape)
    found = run(work, "longer", 8, **shape)
    best = max(found.trials, key=lambda one: one.values[0]).number
    assert found.winner.trial == best != 0


def test_a_study_to_follow_must_exist(work: Path) -> None:
    with pytest.raises(ConfigError, match="--from-study nothing: no such study"):
        run_sweep(settings(work), Sweep("follows", space(), None, 1, from_study="nothing"))


def test_the_best_loss_is_the_lowest(work: Path, untrained: None) -> None:
    found = run(work, "loss", 4, metric="log_loss")
    assert found.winner.value == min(one.values[0] for one in found.trials) < found.trials[0].values[0]


def test_the_best_auc_is_the_highest(work: Path, untrained: None) -> None:
    found = run(work, "highest", 4)
    assert found.winner.value == max(one.values[0] for one in found.trials) > found.trials[0].values[0]


def test_a_study_that_was_made_by_hand_with_another_direction_is_not_joined(work: Path, untrained: None) -> None:
    shared = SharedStorage.of(None, "turned", Workspace(work), Lease())
    optuna.create_study(study_name="turned", storage=shared.open(), direction="minimize")
    with pytest.raises(ConfigError, match=r"study 'turned': its direction is minimize.*another name with --study"):
        run(work, "turned", 1)


def test_a_study_that_ends_by_noise_gets_no_more_trials(
    work: Path, untrained: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = iter([None, Outlook(0.2, 0.1), Outlook(0.1, 0.2)])
    monkeypatch.setattr(tune, "outlook", lambda trials, maximize, seed: next(seen))
    found = run(work, "ended", 9, stop="noise")
    assert found.summary()["trials"] == {"complete": 3}
    assert found.summary()["ended"] == "expected gain 0.10000 is below the noise 0.20000"


def test_a_study_that_ended_by_noise_goes_on_without_that_rule(
    work: Path, untrained: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "outlook", lambda trials, maximize, seed: Outlook(0.1, 0.2))
    assert run(work, "on", 5, stop="noise").summary()["trials"] == {"complete": 1}
    found = run(work, "on", 3).summary()
    assert (found["trials"], found["ended"]) == ({"complete": 3}, "trials")


def test_the_finalists_of_a_study_that_ended_by_noise_are_trained(
    work: Path, untrained: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "outlook", lambda trials, maximize, seed: Outlook(0.1, 0.2))
    found = run(work, "noisy", 9, stop="noise", schedule="screen", screen={"best": 1, "seeds": 2})
    assert found.summary()["ended"].startswith("expected gain") and found.summary()["finalists"] == 1
    assert [one.state.name for one in found.finals] == ["COMPLETE"] * 2
    assert "ended before all trials: expected gain 0.10000 is below the noise 0.20000" in "\n".join(lines_of(found))


def test_a_study_without_that_rule_has_all_of_its_trials(
    work: Path, untrained: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "outlook", lambda trials, maximize, seed: Outlook(0.1, 0.2))
    assert run(work, "whole", 4).summary()["trials"] == {"complete": 4}


def test_two_objectives_have_a_front(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third trial is worse than the second in both."""
    values = iter([(0.6, 2.0), (0.7, 3.0), (0.65, 4.0)])

    def value(self: Trials, trial: optuna.Trial, *rest: object) -> tuple[float, float]:
        trial.set_user_attr(RUN, "nowhere")
        return next(values)

    monkeypatch.setattr(Trials, "_trained", value)
    found = run(work, "front", 3, against="latency")
    assert [one.number for one in found.front] == [0, 1] and found.winner.trial == 1
    assert found.summary()["pareto"] == [{"trial": 0, "values": [0.6, 2.0]}, {"trial": 1, "values": [0.7, 3.0]}]
    assert "pareto.png" in [one.file for one in plots_of(found)]


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (None, "2 of 9 trials: best auc 0.7000 (0.6500 – 0.7500), trial 1"),
        (Outlook(0.01, 0.02), "; still expected 0.0100, noise 0.0200: more trials cannot be told from noise"),
        (Outlook(0.03, 0.02), "; still expected 0.0300, noise 0.0200: more trials may help"),
    ],
)
def test_a_line_says_how_a_study_stands(now: Outlook | None, words: str) -> None:
    study = optuna.create_study(direction="maximize")
    for value, attributes in ((0.6, {}), (0.7, {"low": 0.65, "high": 0.75})):
        study.add_trial(optuna.create_trial(value=value, user_attrs=attributes))
    assert tune.line_of(study.trials, space(), 9, now).endswith(words)


def test_a_trial_that_is_pruned_is_recorded_as_pruned(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second trial is worse than the first at its second evaluation; the pruner goes by the median there."""
    values = iter([0.7, 0.8, 0.6, 0.5])
    report = optuna.trial.Trial.report
    monkeypatch.setattr(optuna.trial.Trial, "report", lambda trial, _, step: report(trial, next(values), step))
    found = run(work, "pruned", 2, schedule="median")
    assert [one.state.name for one in found.trials] == ["COMPLETE", "PRUNED"] and found.winner.trial == 0
    client = MlflowStore(work).client
    experiment = client.get_run(found.parent).info.experiment_id
    children = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{found.parent}'")
    assert {one.data.tags["trial"]: one.data.tags["trial_state"] for one in children} == {
        "0": "complete",
        "1": "pruned",
    }


def test_settings_of_the_data_have_a_feature_set_each_apart_from_the_current_one(work: Path, tmp_path: Path) -> None:
    (tmp_path / "raw").symlink_to(work / "raw")
    searched = {"data.history.max_len": {"choices": [20, 64]}}
    found = run(tmp_path, "data", 2, sampler="grid", space=searched)
    assert [one.params for one in found.trials] == [{"data.history.max_len": 64}, {"data.history.max_len": 20}]
    built = {path.parent.relative_to(tmp_path).parent.as_posix() for path in tmp_path.rglob("MANIFEST.json")}
    assert built == {"feature_sets/simulated", ".cache/feature_sets/simulated"}
    assert len(list(tmp_path.rglob("MANIFEST.json"))) == 2
    assert ("--set data.history.max_len=" in found.command) is True
    with pytest.raises(ConfigError, match=r"unknown key 'history.maxlen'. Did you mean 'max_len'"):
        run(tmp_path, "data", 2, space={"data.history.maxlen": {"choices": [20, 64]}})


@pytest.mark.parametrize(
    ("searched", "words"),
    [
        (
            {"model.layers": {"low": 1.0, "high": 3.0}},
            r"a value of the search space cannot be used: model.layers = 1\.7",
        ),
        (
            {"model.rows": {"low": 1, "high": 2, "when": {"data.history.maxlen": 9}}},
            "model.rows: when: there is no setting 'data.history.maxlen'",
        ),
        (
            {
                "model.tower": {"choices": ["mlp", "cross"]},
                "model.rows": {"low": 1, "high": 2, "when": {"model.tower": "quadratic"}},
            },
            "model.rows: when: model.tower is never 'quadratic', its range is mlp, cross",
        ),
    ],
)
def test_a_space_that_no_trial_could_be_drawn_from_is_refused(work: Path, searched: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        run(work, "odd", 1, space=searched)


def test_the_command_of_the_best_settings_trains_them_as_it_is(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of the data, which no preset has: the shorter of two histories wins."""

    def value(self: Trials, trial: optuna.Trial, chosen: dict[str, Any], renewal: object) -> float:
        trial.set_user_attr(RUN, "nowhere")
        return -float(chosen["data.history.max_len"]) - chosen["model.dropout"]

    monkeypatch.setattr(Trials, "_trained", value)
    place = ("--data", "conf/data/simulated.yaml", "--root", str(work / "raw"), "--work", str(tmp_path))
    searched = {"data.history.max_len": {"choices": [20, 64]}, "model.dropout": {"choices": [0.1, 0.05]}}
    sweep = Sweep("command", space(sampler="grid", space=searched), None, 4, data_options=place)
    found = run_sweep(replace(settings(work), workspace=Workspace(tmp_path)), sweep)
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(found.command)[1:])
    assert ended.value.code == 0
    (path,) = tmp_path.glob("runs/*/config.json")
    config, best = json.loads(path.read_text()), yaml.safe_load(found.path.read_text())
    assert config["preset"] == best and (best["train"]["epochs"], best["model"]["dropout"]) == (1, 0.05)
    made = FeatureSet.open(tmp_path / config["feature_set"])
    assert made.contract.history.max_len == found.winner.params["data.history.max_len"] == 20


def test_settings_that_cannot_be_trained_are_a_failed_trial_with_the_reason(work: Path) -> None:
    """The current settings can be; a batch of more rows than there are cannot."""
    found = run(work, "failed", 2, sampler="grid", space={"train.batch_size": {"choices": [256, 100_000]}})
    assert [state_of(one, found.trials) for one in found.trials] == ["complete", "failed"]
    assert "Set train.batch_size between 2 and" in found.trials[1].user_attrs[ERROR]
    assert found.summary()["trials"] == {"complete": 1, "failed": 1}


def test_a_trial_that_would_not_fit_into_memory_is_refused_with_the_figure(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.tune.trial.free_bytes", lambda: 1000)
    with pytest.raises(ConfigError, match=r"none of 1 trials was trained to its end.*needs about 0.0 GiB of memory"):
        run(work, "large", 1)


def test_a_trial_that_is_refused_is_a_failed_run_in_mlflow(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The study goes on, and its run has a child that says why."""
    free = iter([1000, None])
    monkeypatch.setattr("pipelines.tune.trial.free_bytes", lambda: next(free))
    found = run(work, "refused", 2)
    assert found.summary()["trials"] == {"complete": 1, "failed": 1}
    client = MlflowStore(work).client
    experiment = client.get_run(found.parent).info.experiment_id
    children = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{found.parent}'")
    refused = next(one for one in children if one.data.tags["trial"] == "0")
    assert (refused.info.status, refused.data.tags["trial_state"]) == ("FAILED", "failed")
    assert "GiB of memory" in refused.data.tags["error"]
    assert refused.data.params == {name: str(value) for name, value in found.trials[0].params.items()}
    assert len(children) == 2


def test_a_metric_that_the_rows_do_not_have_is_a_failed_trial(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Optuna would fail it without a word, and the worker would try it again."""
    fit = Job.fit

    def blank(self: Job, *rest: Any, **named: Any) -> Trained:
        fitted = fit(self, *rest, **named)
        fitted.result.best["auc"] = math.nan
        return fitted

    with monkeypatch.context() as patch:
        patch.setattr(Job, "fit", blank)
        with pytest.raises(ConfigError, match=r"none of 1 trials.*the auc of the validation rows is nan"):
            run(work, "blank", 1)
    assert len(load(work, "blank").trials) == 1


def test_a_new_study_is_told_at_once_that_mlflow_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the feature set is built: there are no raw files here."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(StoreAwayError, match="the MLflow store does not answer"):
        run(tmp_path, "away", 1)


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """SIGTERM comes once the first trial has its settings."""
    trained = Trials._trained

    def ended(self: Trials, trial: optuna.Trial, *rest: Any) -> Any:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        threading.Event().wait(30)
        return trained(self, trial, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Trials, "_trained", ended)
        yield


def test_sigterm_ends_a_sweep_with_75_and_leaves_its_trial_in_the_queue(work: Path, stopped: None) -> None:
    with pytest.raises(TryAgainError, match=r"study 'stopped': asked to end.*the same command goes on"):
        run(work, "stopped", 1)
    assert [one.state.name for one in load(work, "stopped").trials] == ["FAIL"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_current_feature_set_is_built_once_for_all_trials(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    build = tune.build

    def counted(source, workspace, wait):
        built.append(wait)
        return build(source, workspace, wait)

    monkeypatch.setattr(tune, "build", counted)
    run(work, "once", 2)
    assert built == [tune.LONGEST_WAIT]


def test_a_study_goes_on_where_mlflow_went_away_and_tells_it_later(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow answered when the study began; the second trial and the end of the study wait for it."""
    (tmp_path / "raw").symlink_to(work / "raw")
    parent = run(tmp_path, "outage", 1).parent
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
        found = run(tmp_path, "outage", 2)
        report_sweep(found, settings(tmp_path))
    assert found.parent == parent and found.summary()["trials"] == {"complete": 2}
    assert send_waiting(Workspace(tmp_path)).refused == 0
    client = MlflowStore(tmp_path).client
    known = client.get_run(parent)
    children = client.search_runs([known.info.experiment_id], f"tags.mlflow.parentRunId = '{parent}'")
    assert sorted((one.data.tags["trial"], one.data.tags["trial_state"], one.info.status) for one in children) == [
        ("0", "complete", "FINISHED"), ("1", "complete", "FINISHED"),
    ]  # fmt: skip
    assert (known.info.status, known.data.metrics["trials"]) == ("FINISHED", 2.0)
    assert [one.path for one in client.list_artifacts(parent, "report")] == ["report/outage.html"]


@pytest.mark.slow
def test_two_workers_share_a_study(work: Path, tmp_path: Path) -> None:
    """Started together on a feature set that is not built yet: neither fails, and no two trials are alike."""
    (tmp_path / "space.json").write_text(json.dumps({"startup_trials": 1, "schedule": "none", "space": RATE | DROPOUT}))
    command = [sys.executable, "-m", "pipelines", "tune", "--data", str(ROOT / "conf/data/simulated.yaml"),
               "--root", str(work / "raw"), "--work", str(tmp_path), "--model", str(LR), "--study", "shared",
               "--trials", "3", "--space", str(tmp_path / "space.json"), "--json"]  # fmt: skip
    command += [part for one in TINY for part in ("--set", one)]
    workers = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in "ab"
    ]
    ended = [worker.communicate() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], ended
    study = load(tmp_path, "shared")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3
    assert len({trial.params["train.learning_rate"] for trial in study.trials}) == 3
    summaries = [json.loads(out.splitlines()[-1]) for out, _ in ended]
    assert summaries[0]["run_id"] == summaries[1]["run_id"]  # one MLflow run over all trials
    assert summaries[0]["best"] == summaries[1]["best"]
    assert len(list((tmp_path / "feature_sets" / "simulated").glob("*/MANIFEST.json"))) == 1
    trials = {path.parent for path in (tmp_path / "runs").rglob("config.json")}
    assert len(trials) == 3 and {path.parent.name for path in trials} == {"shared"}
    assert {trial.user_attrs[RUN] for trial in study.trials} == {str(path.resolve()) for path in trials}
