"""A real MLflow server that goes away while a run is open, and comes back: nothing is lost, nothing is doubled."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from ctr.reporting.mlflow_registry import Registry
from ctr.reporting.mlflow_runs import Tracker
from ctr.reporting.outbox import Outbox
from features.errors import StoreAwayError
from tests.ctr.reporting.mlflow_server import Cable, MlflowServer, free_port
from tests.ctr.reporting.test_mlflow_registry import toy_bundle
from tests.ctr.reporting.test_mlflow_runs import artifacts


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """One server for the module: it takes ten seconds to start."""
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def cable(server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cable]:
    cable = Cable(server.port)
    cable.plug_in()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", cable.uri)
    # A busy machine answers late; a cable that is pulled refuses at once.
    for name, seconds in (("FIRST_TIMEOUT", 60), ("SECONDS_TO_KNOCK", 60.0), ("SECONDS_OF_FIRST_CONTACT", 120.0)):
        monkeypatch.setattr(f"ctr.reporting.mlflow_store.{name}", seconds)
    yield cable
    cable.pull()


def values(tracker: Tracker, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in tracker.store.client.get_metric_history(run_id, name)]


def test_what_is_logged_while_the_server_is_away_comes_later_in_order(cable: Cable, tmp_path: Path) -> None:
    note = tmp_path / "note.json"
    tracker = Tracker(tmp_path, tmp_path / "outbox")
    registry = Registry(delivery=tracker.delivery)
    with tracker.run("quadrank-outage", "middle", {}, {"a": 1}):
        run_id = tracker.run_id
        tracker.log_curve_point(10, {"auc": 0.6})
        cable.pull()
        tracker.log_curve_point(20, {"auc": 0.7})
        note.write_text("as it was then")
        tracker.log_file(note, "run")
        note.write_text("changed since")
        tracker.log_figure(Figure(), "curve.png")
        tracker.set_tag("gate", "passed")
        version = registry.register(toy_bundle(tmp_path / "bundle"), "quadrank-outage", run_id)
        registry.set_alias("quadrank-outage", "champion", version)
        cable.plug_in()
        tracker.log_curve_point(30, {"auc": 0.8})
    assert Outbox(tmp_path / "outbox").waiting() == []
    run = tracker.store.client.get_run(run_id)
    assert (run.info.status, run.data.params, run.data.tags["gate"]) == ("FINISHED", {"a": "1"}, "passed")
    assert values(tracker, run_id, "auc") == [(10, 0.6), (20, 0.7), (30, 0.8)]
    assert {"run/note.json"} == artifacts(tracker, run_id, "run")
    copied = tracker.store.client.download_artifacts(run_id, "run/note.json", str(tmp_path))
    assert Path(copied).read_text() == "as it was then"
    assert {"plots/curve.png"} == artifacts(tracker, run_id, "plots")
    champion = registry.get_alias("quadrank-outage", "champion")
    assert champion is not None and champion.tags["model_version"] == "run-1"


def test_what_was_sent_and_whose_answer_was_lost_is_there_once(cable: Cable, tmp_path: Path) -> None:
    """As after a kill between the answer and the record of it: the record is put back to where it was."""
    outbox = Outbox(tmp_path / "outbox")
    tracker = Tracker(tmp_path, outbox.folder, begin="later")
    registry = Registry(delivery=tracker.delivery)
    cable.pull()
    with tracker.run("quadrank-twice", "all of it", {}, {"a": 1}):
        tracker.log_curve_point(1, {"auc": 0.5})
        version = registry.register(toy_bundle(tmp_path / "bundle"), "quadrank-twice", tracker.run_id)
        registry.set_alias("quadrank-twice", "champion", version)
    assert version.startswith("pending-")
    cable.plug_in()
    assert outbox.send(tracker.store) == 6
    (outbox.folder / "sent.json").unlink()
    assert outbox.send(tracker.store) == 6
    client = tracker.store.client
    experiment = client.get_experiment_by_name("quadrank-twice")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("all of it", "FINISHED")
    assert values(tracker, run.info.run_id, "auc") == [(1, 0.5)]
    (found,) = client.search_model_versions("name = 'quadrank-twice'")
    assert found.run_id == run.info.run_id
    assert client.get_model_version_by_alias("quadrank-twice", "champion").version == found.version
    assert outbox.refused() == []


def test_an_alias_that_waited_does_not_undo_a_later_one(cable: Cable, tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, tmp_path / "outbox")
    direct = Registry(tmp_path)
    with tracker.run("quadrank-alias", "two", {}, {}):
        first = direct.register(toy_bundle(tmp_path / "one", "run-1"), "quadrank-alias", tracker.run_id)
        second = direct.register(toy_bundle(tmp_path / "two", "run-2"), "quadrank-alias", tracker.run_id)
        cable.pull()
        Registry(delivery=tracker.delivery).set_alias("quadrank-alias", "champion", first)
        cable.plug_in()
        direct.set_alias("quadrank-alias", "champion", second)
    champion = direct.get_alias("quadrank-alias", "champion")
    assert champion is not None and champion.version == second


def test_a_server_that_is_away_at_the_start_is_refused_within_seconds(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from ctr.reporting.mlflow_runs import Tracker\n"
        "with Tracker(Path(sys.argv[1]), Path(sys.argv[1]) / 'outbox').run('toy', 'first', {}, {}): pass"
    )
    environment = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{free_port()}"}
    tried = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=os.environ | environment, capture_output=True, text=True
    )
    assert "StoreAwayError: http://127.0.0.1" in tried.stderr and "--set train.tracking=later" in tried.stderr
    assert not (tmp_path / "outbox").exists()


@pytest.mark.slow
def test_a_server_killed_and_started_again_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = MlflowServer(tmp_path)
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    tracker = Tracker(tmp_path, tmp_path / "outbox")
    try:
        with tracker.run("quadrank-killed", "middle", {}, {}):
            run_id = tracker.run_id
            for step in range(30):
                if step == 10:
                    server.kill()
                if step == 20:
                    server.start()
                tracker.log_curve_point(step, {"auc": step / 30})
        assert values(tracker, run_id, "auc") == [(step, step / 30) for step in range(30)]
    finally:
        server.kill()


@pytest.mark.slow
@pytest.mark.timeout(100)  # MLflow's own client waits for a quarter of an hour
def test_a_server_that_takes_connections_and_never_answers_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        with pytest.raises(StoreAwayError), Tracker(tmp_path).run("toy", "first", {}, {}):
            pass
