"""Files of runs lie in a store of their own, such as S3: it is away or refuses while MLflow itself answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ctr.reporting.mlflow_registry import Registry
from ctr.reporting.mlflow_runs import Tracker
from ctr.reporting.mlflow_store import MlflowStore
from features.errors import ConfigError, StoreAwayError
from tests.ctr.reporting.mlflow_server import Cable
from tests.ctr.reporting.test_mlflow_registry import toy_bundle
from tests.ctr.reporting.test_mlflow_runs import artifacts
from tests.ctr.reporting.test_outage import cable as cable
from tests.ctr.reporting.test_outage import server as server
from tests.ctr.reporting.test_outage import values


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What never answers is asked once, for ten seconds."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def note(tmp_path: Path) -> Path:
    file = tmp_path / "note.json"
    file.write_text("{}")
    return file


@pytest.mark.parametrize("status", [500, 503, 0], ids=["500", "503", "no answer"])
def test_files_wait_while_their_store_is_away_and_the_run_goes_on(
    cable: Cable, tmp_path: Path, note: Path, status: int
) -> None:
    tracker = Tracker(tmp_path, tmp_path / "outbox")
    registry = Registry(delivery=tracker.delivery)
    name = f"quadrank-artifacts-{status}"
    with tracker.run(name, "away", {}, {}):
        run_id = tracker.run_id
        cable.artifacts = status
        tracker.log_file(note, "run")
        tracker.log_curve_point(1, {"auc": 0.6})
        version = registry.register(toy_bundle(tmp_path / "bundle"), name, run_id)
        assert version.startswith("pending-")
        assert registry.set_alias(name, "champion", version) is False
        cable.artifacts = None
    outbox = tracker.delivery.outbox
    assert outbox is not None
    assert outbox.waiting() == []
    assert outbox.refused() == []
    assert artifacts(tracker, run_id, "run") == {"run/note.json"}
    assert values(tracker, run_id, "auc") == [(1, 0.6)]
    assert tracker.store.client.get_run(run_id).info.status == "FINISHED"
    champion = registry.get_alias(name, "champion")
    assert champion is not None
    assert champion.tags["model_version"] == "run-1"


def test_a_file_that_its_store_refuses_ends_no_run_and_a_bundle_says_why(
    cable: Cable, tmp_path: Path, note: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = Tracker(tmp_path, tmp_path / "outbox")
    with tracker.run("quadrank-refused", "refused", {}, {}):
        run_id = tracker.run_id
        cable.artifacts = 403
        tracker.log_file(note, "run")
        bundle = toy_bundle(tmp_path / "bundle")
        with pytest.raises(ConfigError, match=r"refuses .*403.* credentials"):
            Registry(delivery=tracker.delivery).register(bundle, "quadrank-refused", run_id)
    assert "MLflow refuses a file, the run goes on" in capsys.readouterr().err
    outbox = tracker.delivery.outbox
    assert outbox is not None
    assert len(outbox.refused()) == 1
    assert tracker.store.client.get_run(run_id).info.status == "FINISHED"


class ClientError(Exception):
    """As botocore raises it: any answer of S3 but a good one."""

    def __init__(self, status: int) -> None:
        self.response = {"Error": {"Code": "Some"}, "ResponseMetadata": {"HTTPStatusCode": status}}


class S3UploadFailedError(Exception):
    """As boto3 raises it while it handles the one above."""


class EndpointConnectionError(Exception):
    """As botocore raises it where nobody answers."""


EndpointConnectionError.__module__ = "botocore.exceptions"
EndpointConnectionError.__name__ = "ConnectionError"


def of_boto3(status: int) -> Exception:
    error = S3UploadFailedError(f"Failed to upload note.json: {status}")
    error.__context__ = ClientError(status)
    return error


class HttpError(Exception):
    """As other clients raise it, with the status on the error or on its response."""

    def __init__(self, status: int) -> None:
        self.status_code = status


@pytest.mark.parametrize("uri", ["http://127.0.0.1:5000", "sqlite:///here.db"])
@pytest.mark.parametrize(
    ("error", "away"),
    [
        (of_boto3(500), True),
        (of_boto3(503), True),
        (of_boto3(429), True),
        (of_boto3(403), False),
        (of_boto3(404), False),
        (HttpError(502), True),
        (HttpError(400), False),
        (EndpointConnectionError("Could not connect"), True),
    ],
    ids=str,
)
def test_an_answer_for_later_is_told_from_a_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, error: Exception, away: bool
) -> None:
    """Where MLflow's own data lie in a file, too: files of its runs may lie elsewhere."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert MlflowStore(tmp_path).is_away(error) is away


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Exception]]:
    """MLflow's client of a file, whose uploads raise the errors of this list first."""
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    raised: list[Exception] = []
    upload = MlflowClient.log_artifact

    def failing(self: MlflowClient, *arguments: Any, **named: Any) -> None:
        if raised:
            raise raised.pop(0)
        upload(self, *arguments, **named)

    monkeypatch.setattr(MlflowClient, "log_artifact", failing)
    yield raised


def test_a_file_that_s3_does_not_take_now_comes_later(tmp_path: Path, note: Path, local: list[Exception]) -> None:
    tracker = Tracker(tmp_path, tmp_path / "outbox")
    with tracker.run("quadrank-s3", "slow down", {}, {}):
        run_id = tracker.run_id
        local.append(of_boto3(503))
        tracker.log_file(note, "run")
    assert artifacts(tracker, run_id, "run") == {"run/note.json"}
    assert tracker.store.client.get_run(run_id).info.status == "FINISHED"


def test_without_an_outbox_it_is_an_outage_like_any_other(tmp_path: Path, note: Path, local: list[Exception]) -> None:
    tracker = Tracker(tmp_path)
    with pytest.raises(StoreAwayError), tracker.run("quadrank-s3", "slow down", {}, {}):
        local.append(of_boto3(503))
        tracker.log_file(note, "run")
