"""A sweep with real trainings: what is tried first, the finalists, feature sets, MLflow."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from ctr.reporting.mlflow_store import MlflowStore
from features.errors import ConfigError, DataError
from features.store.feature_set import FeatureSet
from features.store.pointer import CURRENT, follow
from pipelines.cli.commands import main
from pipelines.report.sweep import plots_of, report_sweep
from pipelines.tune import sweep as tune
from pipelines.tune.measure import ValidationRows
from pipelines.tune.noise import Outlook
from pipelines.tune.outcome import Outcome
from pipelines.tune.sweep import Sweep, run_sweep
from pipelines.tune.trial import FIRST, RUN, Trials
from pipelines.tune.workers.leases import Lease
from pipelines.tune.workers.storage import SharedStorage
from pipelines.workspace import Workspace
from tests.pipelines.cli.test_commands import ROOT
from tests.pipelines.tune.sweeping import RATE, run, settings, space

pytestmark = pytest.mark.usefixtures("place")


@pytest.fixture(scope="module")
def screened(work: Path) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        found = run(work, "screened", 4, schedule="screen", screen={"best": 1, "seeds": 2, "share": 0.5})
        report_sweep(found, settings(work))
    return found


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


def test_the_best_loss_is_the_lowest(work: Path, untrained: None) -> None:
    found = run(work, "loss", 4, metric="log_loss")
    assert found.winner.value == min(one.values[0] for one in found.trials) < found.trials[0].values[0]


def test_the_interval_of_a_loss_is_that_of_the_scores_whose_loss_it_is(work: Path) -> None:
    """Calibration comes after the evaluations, and lowers the loss: a trial is worth what it was before."""
    found = run(work, "scored", 1, metric="log_loss", schedule="screen", screen={"best": 1, "seeds": 1, "share": 0.5})
    ((final,), (trial,)) = found.finals, found.trials
    assert found.winner.interval is not None
    assert found.winner.interval.value == pytest.approx(found.winner.value, abs=1e-6)
    rows = ValidationRows(FeatureSet.open(follow(work / "feature_sets" / "simulated" / CURRENT)), "log_loss")
    for one in (trial, final):
        measured = rows.measured([Path(one.user_attrs[RUN])])
        assert measured is not None and measured.by_seed == pytest.approx([one.values[0]], abs=1e-6)
        assert one.user_attrs["low"] == pytest.approx(measured.interval().low)


def test_a_metric_that_the_validation_rows_do_not_define_is_refused_before_the_study(work: Path) -> None:
    with pytest.raises(DataError, match=r"^metric group_auc: the log does not name the request"):
        run(work, "within", 4, metric="group_auc")
    shared = SharedStorage.of(None, "within", Workspace(work), Lease())
    assert optuna.get_all_study_names(shared.open()) == []


def test_the_best_auc_is_the_highest(work: Path, untrained: None) -> None:
    found = run(work, "highest", 4)
    assert found.winner.value == max(one.values[0] for one in found.trials) > found.trials[0].values[0]


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
    assert "best log_loss 0.6000, trial 0" in tune.line_of(study.trials, space(metric="log_loss"), 9, now)


def test_settings_of_the_data_have_a_feature_set_each_apart_from_the_current_one(work: Path, tmp_path: Path) -> None:
    (tmp_path / "raw").symlink_to(work / "raw")
    searched = {"data.history.max_len": {"choices": [20, 128]}}
    found = run(tmp_path, "data", 2, sampler="grid", space=searched)
    assert [one.params for one in found.trials] == [{"data.history.max_len": 128}, {"data.history.max_len": 20}]
    built = {path.parent.relative_to(tmp_path).parent.as_posix() for path in tmp_path.rglob("MANIFEST.json")}
    assert built == {"feature_sets/simulated", ".cache/feature_sets/simulated"}
    assert len(list(tmp_path.rglob("MANIFEST.json"))) == 2
    assert ("--set data.history.max_len=" in found.command) is True
    with pytest.raises(ConfigError, match=r"unknown key 'history.maxlen'. Did you mean 'max_len'"):
        run(tmp_path, "data", 2, space={"data.history.maxlen": {"choices": [20, 128]}})


def test_the_command_of_the_best_settings_trains_them_as_it_is(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those of the data, which no preset has: the shorter of two histories wins."""

    def value(self: Trials, trial: optuna.Trial, chosen: dict[str, Any], renewal: object) -> float:
        trial.set_user_attr(RUN, "nowhere")
        return -float(chosen["data.history.max_len"]) - chosen["model.dropout"]

    monkeypatch.setattr(Trials, "_trained", value)
    place = ("--data", "conf/data/simulated.yaml", "--root", str(work / "raw"), "--work", str(tmp_path))
    searched = {"data.history.max_len": {"choices": [20, 128]}, "model.dropout": {"choices": [0.1, 0.05]}}
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


def test_the_current_feature_set_is_built_once_for_all_trials(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    build = tune.build

    def counted(source, workspace, wait):
        built.append(wait)
        return build(source, workspace, wait)

    monkeypatch.setattr(tune, "build", counted)
    run(work, "once", 2)
    assert built == [tune.LONGEST_WAIT]


def test_the_best_of_another_study_are_tried_after_the_current_settings(
    screened: Outcome, work: Path, untrained: None
) -> None:
    sweep = Sweep("followed", space(), None, 3, from_study="screened", take=2)
    found = run_sweep(settings(work), sweep)
    ranked = sorted(screened.trials[1:], key=lambda one: -one.values[0])[:2]
    assert [one.params for one in found.trials[1:]] == [one.params for one in ranked]
    assert [one.user_attrs.get("from") for one in found.trials] == [None] + [f"screened {one.number}" for one in ranked]


def test_the_best_of_another_study_of_a_loss_are_the_lowest(work: Path, untrained: None) -> None:
    before = run(work, "losses", 5, metric="log_loss")
    best = min(before.trials[1:], key=lambda one: one.values[0])
    found = run_sweep(settings(work), Sweep("lower", space(metric="log_loss"), None, 2, from_study="losses", take=1))
    assert best.values[0] < before.trials[0].values[0]
    assert found.trials[1].params == best.params


def test_a_study_to_follow_has_no_more_trials_than_are_asked_for(
    screened: Outcome, work: Path, untrained: None
) -> None:
    found = run_sweep(settings(work), Sweep("short", space(), None, 2, from_study="screened", take=3))
    assert found.summary()["trials"] == {"complete": 2}
