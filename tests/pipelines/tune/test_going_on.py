"""A study that other commands go on with: more trials, another study's best, an end by noise, a signal, MLflow away."""

from __future__ import annotations

import io
import json
import os
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
from rich.console import Console

from ctr.reporting.entries import BeginRun, Known
from ctr.reporting.mlflow_runs import Tracker, beginning
from ctr.reporting.mlflow_store import MlflowStore
from ctr.reporting.mlflow_sweeps import close_trial
from ctr.reporting.outbox import OUTBOX, Outbox
from features.errors import ConfigError, StoreAwayError, TryAgainError
from pipelines.operate.waiting import send_waiting, waiting_by_run
from pipelines.report.sweep import report_sweep
from pipelines.tune import sweep as tune
from pipelines.tune.noise import Outlook
from pipelines.tune.outcome import lines_of
from pipelines.tune.parent import record_parent
from pipelines.tune.sweep import Sweep, run_sweep
from pipelines.tune.trial import FIRST, RUN, Trials
from pipelines.tune.workers.leases import Lease
from pipelines.tune.workers.standing import RETRIES
from pipelines.tune.workers.storage import SharedStorage
from pipelines.workspace import TRACKED, Workspace
from tests.ctr.reporting.mlflow_server import free_port
from tests.pipelines.cli.test_commands import ROOT
from tests.pipelines.tune.sweeping import DROPOUT, LR, RATE, TINY, load, run, settings, space

pytestmark = pytest.mark.usefixtures("place")


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


def test_a_study_takes_no_settings_from_itself(work: Path, untrained: None) -> None:
    """It would train its own best settings again."""
    run(work, "itself", 3)
    with pytest.raises(ConfigError, match=r"--from-study itself: is the study itself"):
        run_sweep(settings(work), Sweep("itself", space(), None, 5, from_study="itself"))
    assert len(load(work, "itself").trials) == 3


def test_what_another_study_tried_between_the_steps_of_a_grid_is_drawn(work: Path, untrained: None) -> None:
    run(work, "finer", 2, sampler="grid", space={"model.dropout": {"choices": [0.1, 0.07]}})
    grid = space(sampler="grid", space={"model.dropout": {"low": 0.0, "high": 0.2, "step": 0.1}})
    found = run_sweep(settings(work), Sweep("coarser", grid, None, 3, from_study="finer"))
    assert found.trials[1].user_attrs["from"] == "finer 1"
    assert sorted(one.params["model.dropout"] for one in found.trials) == [0.0, 0.1, 0.2]


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


@pytest.mark.parametrize("storage", [None, "sqlite:///elsewhere.db"])
def test_a_name_of_a_study_that_is_no_folder_is_refused_before_all_else(tmp_path: Path, storage: str | None) -> None:
    with pytest.raises(ConfigError, match="study 'a/b': its trials lie in a folder of this name"):
        run_sweep(settings(tmp_path), Sweep("a/b", space(), storage, 1))


def test_what_a_later_winner_does_not_have_is_blank_in_mlflow(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows belong to the quadratic tower, which wins at first."""

    def value(self: Trials, trial: optuna.Trial, chosen: dict[str, Any], renewal: object) -> float:
        trial.set_user_attr(RUN, "nowhere")
        return 0.5 + (0.1 if chosen["model.tower"] == "quadratic" else 0.2 * (trial.number > 3))

    monkeypatch.setattr(Trials, "_trained", value)
    monkeypatch.setattr(Trials, "_same", lambda self, trial: None)  # the same settings are worth more later
    rows = {"low": 1, "high": 4, "when": {"model.tower": "quadratic"}}
    searched = {"model.tower": {"choices": ["linear", "quadratic"]}, "model.rows": rows}
    for trials, tower in ((4, "quadratic"), (12, "linear")):
        found = run(work, "blanked", trials, sampler="random", space=searched)
        report_sweep(found, settings(work))
        tags = MlflowStore(work).client.get_run(str(found.parent)).data.tags
        assert (found.winner.params["model.tower"], tags["best.model.tower"]) == (tower, tower)
        assert tags["best.model.rows"] == str(found.winner.params.get("model.rows", ""))


def test_a_study_to_follow_must_exist(work: Path) -> None:
    with pytest.raises(ConfigError, match="--from-study nothing: no such study"):
        run_sweep(settings(work), Sweep("follows", space(), None, 1, from_study="nothing"))


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


def test_a_new_study_begins_while_mlflow_is_away_where_it_may_be_told_later(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "raw").symlink_to(work / "raw")
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
        first = run(tmp_path, "dark", 1, "train.tracking=later")
        report_sweep(first, settings(tmp_path))
        assert str(first.summary()["run_id"]).startswith("later-")
        with pytest.raises(StoreAwayError):
            run(tmp_path, "dark", 2)
        run(tmp_path, "dark", 2, "train.tracking=later")
    assert (send_waiting(Workspace(tmp_path)).refused, waiting_by_run(Workspace(tmp_path))) == (0, {})
    found = run(tmp_path, "dark", 3)
    client = MlflowStore(tmp_path).client
    experiment = client.get_experiment_by_name("quadrank-simulated")
    runs = client.search_runs([experiment.experiment_id])
    (known,) = (one for one in runs if "mlflow.parentRunId" not in one.data.tags)
    assert (known.info.run_id, known.info.status, known.data.metrics["trials"]) == (found.parent, "FINISHED", 1.0)
    assert known.data.params["search.metric"] == "auc"
    children = [one.data.tags for one in runs if one.info.run_id != known.info.run_id]
    assert sorted((one["trial"], one["trial_state"], one["mlflow.parentRunId"]) for one in children) == [
        (str(trial), "complete", found.parent) for trial in range(3)
    ]


def test_a_lost_trial_of_a_study_that_mlflow_does_not_know_is_closed_or_not_there(
    work: Path, untrained: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker was of another machine, so that its folder is not here."""
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
        begun = run(work, "unknown", 1, "train.tracking=later").parent
    store = MlflowStore(work)
    assert isinstance(begun, BeginRun)
    close_trial(store, begun, "search", 0, "retried")
    assert begun.found(store) == []
    tags = {"stage": "search", "trial": "0"}
    with Tracker(work).run("quadrank-simulated", "trial", tags, {}, parent_run=begun) as tracker:
        close_trial(store, begun, "search", 0, "retried")
        closed = store.client.get_run(tracker.run_id)
    assert (closed.info.status, closed.data.tags["trial_state"]) == ("KILLED", "retried")


def test_who_ends_a_study_on_another_machine_begins_its_run_too(tmp_path: Path) -> None:
    begun = beginning("later-1", "quadrank-simulated", "sweep far", {"study": "far"})
    record_parent(settings(tmp_path), "far", begun, {"trials": 4.0}, {"model.dropout": 0.5}, {}, {})
    (known,) = begun.found(MlflowStore(tmp_path))
    assert (known.data.metrics, known.data.tags["best.model.dropout"]) == ({"trials": 4.0}, "0.5")
    assert known.data.tags["study"] == "far"


def test_a_study_killed_when_mlflow_had_just_made_its_run_goes_on_in_that_one(
    work: Path, untrained: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver = BeginRun.deliver

    def killed(self: BeginRun, store: MlflowStore, known: Known) -> None:
        deliver(self, store, Known())
        raise SystemExit(137)

    with monkeypatch.context() as patch:
        patch.setattr(BeginRun, "deliver", killed)
        with pytest.raises(SystemExit):
            run(work, "orphan", 1)
    parent = run(work, "orphan", 1).parent
    client = MlflowStore(work).client
    experiment = client.get_run(parent).info.experiment_id
    found = client.search_runs([experiment], "attributes.run_name = 'sweep orphan'")
    assert [(one.info.run_id, one.info.status) for one in found] == [(parent, "FINISHED")]


@pytest.mark.parametrize(("retries", "state"), [(0, "retried"), (1, "failed")])
def test_the_run_of_a_dead_worker_whose_begin_still_waits_is_closed_when_it_is_sent(
    work: Path, untrained: None, monkeypatch: pytest.MonkeyPatch, retries: int, state: str
) -> None:
    """MLflow was away when its trial began, and is away when another worker finds it lost."""
    study, later = f"dead-{retries}", f"later-{retries}"
    parent = run(work, study, 1).parent
    folder = work / "runs" / "tune" / study / "20260101-000000"
    folder.mkdir(parents=True)
    (folder / TRACKED).write_text(later)
    outbox = Outbox(folder / OUTBOX)
    tags = {"mlflow.parentRunId": parent}
    outbox.append(BeginRun(run=later, experiment="quadrank-simulated", name="dead", tags=tags, begun=1))
    dead = optuna.create_trial(state=optuna.trial.TrialState.FAIL, user_attrs={RUN: str(folder), RETRIES: retries})
    load(work, study).add_trial(dead)
    with monkeypatch.context() as away:
        away.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
        run(work, study, 3)
    send_waiting(Workspace(work))
    found = MlflowStore(work).client.get_run(outbox.known().run(later))
    assert (found.info.status, found.data.tags["trial_state"]) == ("KILLED", state)


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
