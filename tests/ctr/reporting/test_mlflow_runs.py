"""MLflow tracking on a temporary SQLite store: runs and failures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from ctr.reporting.entries import BeginRun, Points, Status
from ctr.reporting.mlflow_runs import Tracker
from ctr.reporting.outbox import Outbox
from features.errors import ConfigError, DataError
from features.stopping import Stopped, listening
from tests.ctr.reporting.mlflow_server import free_port


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One migrated store for the module: a fresh one takes more than a second."""
    root = tmp_path_factory.mktemp("work")
    with Tracker(root).run("quadrank-toy", "warm up", {}, {}):
        pass
    return root


@pytest.fixture
def tracker(store: Path, monkeypatch: pytest.MonkeyPatch) -> Tracker:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Tracker(store)


def artifacts(tracker: Tracker, run_id: str, folder: str | None = None) -> set[str]:
    return {found.path for found in tracker.store.client.list_artifacts(run_id, folder)}


def test_a_run_holds_its_params_curves_tags_plots_and_files(tracker: Tracker, tmp_path: Path) -> None:
    note = tmp_path / "config.json"
    note.write_text("{}")
    params = {"train": {"epochs": 3, "deep": {"er": None}}, "data": "toy", **{f"p{i}": i for i in range(150)}}
    with tracker.run("quadrank-toy", "first", {"git_revision": "abc"}, params):
        run_id = tracker.run_id
        tracker.log_curve_point(10, {"auc": 0.6, "log_loss": 0.7})
        tracker.log_curve_point(20, {"auc": 0.65, "log_loss": 0.6})
        tracker.log_metrics({"test.auc": 0.64})
        tracker.log_figure(Figure(), "curve.png")
        tracker.log_file(note, "run")
        tracker.set_tag("gate", "passed")

    run = tracker.store.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "first"
    assert {key: run.data.params[key] for key in ("train.epochs", "train.deep.er", "data", "p149")} == {
        "train.epochs": "3",
        "train.deep.er": "None",
        "data": "toy",
        "p149": "149",
    }
    assert run.data.metrics["test.auc"] == 0.64
    curve = tracker.store.client.get_metric_history(run_id, "auc")
    assert [(point.step, point.value) for point in curve] == [(10, 0.6), (20, 0.65)]
    assert run.data.tags["gate"] == "passed"
    assert run.data.tags["mlflow.source.git.commit"] == "abc"
    assert artifacts(tracker, run_id) == {"plots", "run"}
    assert artifacts(tracker, run_id, "plots") == {"plots/curve.png"}
    assert (tracker.store.root / "mlartifacts" / "quadrank-toy" / run_id / "artifacts/run/config.json").is_file()


def test_a_name_that_mlflow_refuses_is_written_as_it_may_be(tracker: Tracker) -> None:
    with tracker.run("quadrank-toy", "first", {}, {"train": {"task_weights": {"like > 3": 2.0, "長い": 1.0}}}):
        run_id = tracker.run_id
        tracker.log_curve_point(5, {"tasks.like > 3.auc": 0.6})
        assert tracker.logged_steps("tasks.like > 3.auc") == {5}

    run = tracker.store.client.get_run(run_id)
    assert run.data.params == {"train.task_weights.like _ 3": "2.0", "train.task_weights.長い": "1.0"}
    assert run.data.metrics == {"tasks.like _ 3.auc": 0.6}


def test_a_child_run_nests_under_its_parent(tracker: Tracker) -> None:
    with tracker.run("quadrank-toy", "sweep", {}, {}):
        parent = tracker.run_id
    with tracker.run("quadrank-toy", "trial", {}, {}, parent_run=parent):
        child = tracker.run_id
    tags = tracker.store.client.get_run(child).data.tags
    assert tags["mlflow.parentRunId"] == parent
    assert "mlflow.parentRunId" not in tracker.store.client.get_run(parent).data.tags


def test_a_finished_run_is_opened_again_to_add_to_it(tracker: Tracker) -> None:
    with tracker.run("quadrank-toy", "sweep", {}, {}):
        run_id = tracker.run_id
    with tracker.resume(run_id):
        assert tracker.store.client.get_run(run_id).info.status == "RUNNING"
        tracker.log_metrics({"best.auc": 0.8})
    run = tracker.store.client.get_run(run_id)
    assert (run.info.status, run.data.metrics["best.auc"]) == ("FINISHED", 0.8)


@pytest.mark.parametrize(("error", "status"), [(DataError("no such file"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_what_breaks_a_run_marks_it(tracker: Tracker, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), tracker.run("quadrank-toy", "broken", {}, {}):
        run_id = tracker.run_id
        raise error
    run = tracker.store.client.get_run(run_id)
    assert run.info.status == status
    assert run.data.tags.get("error") == ("DataError: no such file" if status == "FAILED" else None)


def test_names_that_differ_in_signs_that_mlflow_refuses_stay_apart(tracker: Tracker) -> None:
    values = {"QIN+.auc": 0.6, "QIN*.auc": 0.7, "QIN_.auc": 0.8, "valid.auc": 0.9}
    with tracker.run("quadrank-toy", "signs", {}, {"variants": {"QIN+": "plus", "QIN*": "star"}}):
        run_id = tracker.run_id
        tracker.log_metrics(values)
        tracker.log_curve_point(3, dict(reversed(values.items())))
        assert tracker.logged_steps("valid.auc") == {0, 3}
    run = tracker.store.client.get_run(run_id)
    assert sorted(run.data.metrics.values()) == sorted(values.values())
    assert run.data.metrics["QIN_.auc"] == 0.8
    assert run.data.metrics["valid.auc"] == 0.9
    assert sorted(run.data.params.values()) == ["plus", "star"]


def test_logging_outside_a_run_is_refused(tracker: Tracker) -> None:
    with pytest.raises(RuntimeError, match="no MLflow run is open"):
        tracker.log_metrics({"auc": 0.5})


def test_a_store_that_cannot_be_used_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nosuchscheme://host/db")
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI"), Tracker(tmp_path).run("toy", "run", {}, {}):
        pass


@pytest.mark.slow
def test_processes_share_a_fresh_store_without_a_word(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from ctr.reporting.mlflow_runs import Tracker\n"
        "with Tracker(Path(sys.argv[1])).run('quadrank-toy', 'worker', {}, {'a': 1}) as tracker:\n"
        "    tracker.log_metrics({'m': 1.0})"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(3)
    ]
    said = [worker.communicate(timeout=120)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0], said
    assert said == ["", "", ""]
    tracker = Tracker(tmp_path)
    (experiment,) = tracker.store.client.search_experiments(filter_string="name = 'quadrank-toy'")
    assert len(tracker.store.client.search_runs([experiment.experiment_id])) == 3


def test_importing_the_tracker_does_not_load_mlflow() -> None:
    code = "import sys, ctr.reporting.mlflow_runs; print('mlflow' in sys.modules, 'matplotlib' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "False False"


def test_resuming_an_unknown_run_says_the_way_out(tracker: Tracker) -> None:
    words = r"MLflow run 0123abcd: not in the tracking store .* start a new run"
    with pytest.raises(ConfigError, match=words), tracker.resume("0123abcd"):
        pass


def test_steps_that_a_run_has_are_known_and_those_that_wait_with_them(tracker: Tracker, tmp_path: Path) -> None:
    with tracker.run("quadrank-toy", "steps", {}, {}):
        run_id = tracker.run_id
        tracker.log_curve_point(10, {"auc": 0.6})
        tracker.log_curve_point(20, {"auc": 0.7, "log_loss": 0.5})
        assert tracker.logged_steps("auc") == {10, 20}
        assert tracker.logged_steps("log_loss") == {20}
    waiting = Tracker(tracker.store.root, tmp_path)
    assert waiting.delivery.outbox is not None
    waiting.delivery.outbox.append(Points(run=run_id, moment=0, step=30, values={"auc": 0.8}))
    waiting._run_id = run_id
    assert waiting.logged_steps("auc") == {10, 20, 30}
    assert waiting.logged_steps("log_loss") == {20}


def test_a_run_that_looks_alive_is_ended_as_killed_and_others_are_left(tracker: Tracker) -> None:
    def status(run_id: str) -> str:
        return str(tracker.store.client.get_run(run_id).info.status)

    with tracker.run("quadrank-toy", "killed", {}, {}):
        run_id = tracker.run_id
    tracker.end_if_running(run_id)
    assert status(run_id) == "FINISHED"
    tracker.store.client.update_run(run_id, status="RUNNING")
    tracker.end_if_running(run_id)
    assert status(run_id) == "KILLED"
    tracker.end_if_running("0" * 32)  # of a store that was emptied since


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody answers at the address of the store."""
    monkeypatch.setattr("ctr.reporting.mlflow_store.SECONDS_BETWEEN_KNOCKS", 0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")


def test_a_run_that_began_and_was_left_while_mlflow_was_away_ends_as_killed(
    tracker: Tracker, tmp_path: Path, away: None
) -> None:
    left = Tracker(tracker.store.root, tmp_path, "later")
    left.delivery.put(BeginRun(run="later-1", experiment="quadrank-toy", name="left", tags={}, begun=1))
    left.end_if_running("later-1")
    Outbox(tmp_path).send(tracker.store)
    run = tracker.store.client.get_run(Outbox(tmp_path).known().run("later-1"))
    assert (run.info.run_name, run.info.status) == ("left", "KILLED")


@pytest.mark.parametrize(("before", "after"), [("RUNNING", "KILLED"), ("FAILED", "FAILED")])
def test_a_run_that_is_left_while_mlflow_is_away_is_ended_later_if_it_still_looks_alive(
    tracker: Tracker, tmp_path: Path, away: None, before: str, after: str
) -> None:
    experiment = tracker.store.experiment_id("quadrank-toy")
    run_id = tracker.store.client.create_run(experiment).info.run_id
    tracker.store.client.update_run(run_id, status=before)
    Tracker(tracker.store.root, tmp_path).end_if_running(run_id)
    Outbox(tmp_path).send(tracker.store)
    assert tracker.store.client.get_run(run_id).info.status == after


def test_sigterm_waits_until_mlflow_knows_that_a_run_is_finished(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, told = tracker.delivery.put, []

    def stopped(entry: Any) -> Any:
        if isinstance(entry, Status):
            os.kill(os.getpid(), signal.SIGTERM)
            told.append(entry.status)
        return put(entry)

    with listening(lambda: None), pytest.raises(Stopped), tracker.run("quadrank-toy", "stopped", {}, {}):
        run_id = tracker.run_id
        monkeypatch.setattr(tracker.delivery, "put", stopped)
    assert told == ["FINISHED"]
    assert tracker.store.client.get_run(run_id).info.status == "FINISHED"


def test_a_kill_while_the_default_store_is_made_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow refuses a store whose migration was cut short: every later command would end with exit 2."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client = Tracker(tmp_path).store.mlflow.MlflowClient

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(client, "search_registered_models", killed)
        with pytest.raises(KeyboardInterrupt):
            _ = Tracker(tmp_path).store.client
    assert not (tmp_path / "mlflow.db").exists()
    with Tracker(tmp_path).run("quadrank-toy", "after it", {}, {}) as tracker:
        assert tracker.store.client.get_run(tracker.run_id).info.status == "RUNNING"
    assert [path.name for path in tmp_path.glob("mlflow.db*")] == ["mlflow.db"]
