"""What a job leaves for whoever watches it: after a success, a failure, and both."""

from __future__ import annotations

import http.server
import io
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from features.errors import GateError
from features.stopping import Stopped
from pipelines.operate.log import LoggedConsole
from pipelines.operate.outcome import ended_at_once, post, record_outcome, textfile, watched
from pipelines.workspace import Workspace
from tests.strict_json import strict

SUMMARY = {
    "status": "done",
    "exit_code": 0,
    "run_id": "run-1",
    "bundle": "bundles/shop/run-1",
    "rows": {"train": 800, "test": 100},
    "seconds": 12.5,
    "peak_mib": 2.0,
    "metrics": {"test": {"auc": 0.75}},
}


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.delenv("QUADRANK_WEBHOOK", raising=False)
    return Workspace(tmp_path)


@pytest.fixture
def console(tmp_path: Path) -> LoggedConsole:
    return LoggedConsole(tmp_path / "job.jsonl", file=io.StringIO())


def logged(workspace: Workspace) -> list[tuple[str, str]]:
    lines = (workspace.root / "job.jsonl").read_text().splitlines()
    return [(line["level"], line["message"]) for line in map(json.loads, lines)]


def read(workspace: Workspace, name: str) -> Any:
    return json.loads((workspace.status("shop") / name).read_text())


def numbers(workspace: Workspace) -> dict[str, float]:
    lines = (workspace.status("shop") / "quadrank.prom").read_text().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def test_a_success_is_written_with_its_figures(workspace: Workspace) -> None:
    bundle = workspace.bundles("shop") / "run-1"
    bundle.mkdir(parents=True)
    windows = {"train": {"last_time": 5_000_000}, "test": {"last_time": 7_000_000}}
    (bundle / "MANIFEST.json").write_text(json.dumps({"windows": windows}))
    (workspace.bundles("shop") / "CURRENT").write_text("run-1")
    record_outcome(workspace, "shop", SUMMARY, {"train": 9.5})
    assert read(workspace, "outcome.json")["stages"] == {"train": 9.5}
    assert read(workspace, "LAST_SUCCESS")["run_id"] == "run-1"
    found = numbers(workspace)
    ended = found.pop('quadrank_last_run_timestamp_seconds{name="shop"}')
    assert found == {
        'quadrank_last_success_timestamp_seconds{name="shop"}': ended,
        'quadrank_exit_code{name="shop"}': 0,
        'quadrank_duration_seconds{name="shop"}': 12.5,
        'quadrank_stage_duration_seconds{name="shop",stage="train"}': 9.5,
        'quadrank_peak_bytes{name="shop"}': 2 * 2**20,
        'quadrank_champion_data_timestamp_seconds{name="shop"}': 7.0,
        'quadrank_auc{name="shop",split="test"}': 0.75,
        'quadrank_rows{name="shop",split="train"}': 800,
        'quadrank_rows{name="shop",split="test"}': 100,
    }


def test_a_metric_that_is_no_number_is_null_for_whoever_reads_the_outcome(workspace: Workspace) -> None:
    record_outcome(workspace, "shop", SUMMARY | {"metrics": {"test": {"auc": float("nan")}}}, {})
    for name in ("outcome.json", "LAST_SUCCESS"):
        text = (workspace.status("shop") / name).read_text(encoding="utf-8")
        assert strict(text)["metrics"] == {"test": {"auc": None}}


def test_a_failure_keeps_the_last_success(workspace: Workspace, console: LoggedConsole) -> None:
    record_outcome(workspace, "shop", SUMMARY, {})
    before = read(workspace, "LAST_SUCCESS")
    with pytest.raises(GateError), watched(workspace, "shop", console) as job, job.clock.stage("gate"):
        raise GateError("too low")
    assert read(workspace, "LAST_SUCCESS") == before
    outcome = read(workspace, "outcome.json")
    assert (outcome["status"], outcome["exit_code"], outcome["error"]) == ("error", 6, "too low")
    assert list(outcome["stages"]) == ["gate"]
    found = numbers(workspace)
    assert found['quadrank_exit_code{name="shop"}'] == 6
    assert found['quadrank_auc{name="shop",split="test"}'] == 0.75


@pytest.mark.parametrize(("code", "succeeded"), [(0, True), (3, True), (6, False), (75, False)])
def test_what_counts_as_a_success(workspace: Workspace, code: int, succeeded: bool) -> None:
    record_outcome(workspace, "shop", SUMMARY | {"exit_code": code}, {})
    assert (workspace.status("shop") / "LAST_SUCCESS").exists() is succeeded


def test_a_success_without_a_training_keeps_the_figures_of_the_last_one(workspace: Workspace) -> None:
    record_outcome(workspace, "shop", SUMMARY, {})
    record_outcome(workspace, "shop", {"status": "nothing new", "exit_code": 0, "rows": {}, "metrics": {}}, {})
    found = read(workspace, "LAST_SUCCESS")
    assert (found["status"], found["run_id"], found["metrics"]) == ("nothing new", "run-1", SUMMARY["metrics"])


def test_a_name_with_quotes_is_escaped() -> None:
    outcome = {"ended": "1970-01-01T00:00:05+00:00", "exit_code": 0, "stages": {}}
    assert 'quadrank_exit_code{name="a\\"b"} 0.0\n' in textfile('a"b', outcome, {}, None)


class Receiver(http.server.BaseHTTPRequestHandler):
    bodies: list[Any] = []

    def do_POST(self) -> None:
        self.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass


def test_the_webhook_gets_the_outcome(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        monkeypatch.setenv("QUADRANK_WEBHOOK", f"http://127.0.0.1:{server.server_port}/job")
        record_outcome(workspace, "shop", SUMMARY, {})
    assert [(body["name"], body["exit_code"]) for body in Receiver.bodies] == [("shop", 0)]


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/x", "file:///etc/passwd"])
def test_a_webhook_that_cannot_be_told_is_a_warning(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], address: str
) -> None:
    monkeypatch.setenv("QUADRANK_WEBHOOK", address)
    record_outcome(workspace, "shop", SUMMARY, {})
    assert "warning: $QUADRANK_WEBHOOK: the outcome was not delivered" in capsys.readouterr().err
    assert read(workspace, "LAST_SUCCESS")["run_id"] == "run-1"


def test_a_webhook_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="'file' is no kind of web address"):
        post("file:///etc/passwd", {})


def test_an_outcome_that_cannot_be_written_does_not_end_the_job(
    workspace: Workspace, console: LoggedConsole, capsys: pytest.CaptureFixture[str]
) -> None:
    (workspace.root / "status").write_text("a file in its place")
    with watched(workspace, "shop", console) as job:
        job.summary = dict(SUMMARY)
    assert "the outcome was not written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"),
    [(GateError("too low"), "too low"), (Stopped(), "stopped"), (KeyboardInterrupt(), "stopped")],
    ids=["explained", "SIGTERM", "Ctrl-C"],
)
def test_the_error_that_ends_a_job_is_in_its_log(
    workspace: Workspace, console: LoggedConsole, error: BaseException, message: str
) -> None:
    with pytest.raises(type(error)), watched(workspace, "shop", console):
        raise error
    assert logged(workspace) == [("error", message)] and read(workspace, "outcome.json")["error"] == message
    # Whoever calls the job shows it to people.
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]


def test_a_defect_is_in_the_log_with_its_traceback(workspace: Workspace, console: LoggedConsole) -> None:
    with pytest.raises(ZeroDivisionError), watched(workspace, "shop", console):
        1 / 0  # noqa: B018
    ((level, message),) = logged(workspace)
    assert level == "error" and "test_outcome.py" in message
    assert message.endswith("ZeroDivisionError: division by zero")


def test_a_log_that_cannot_be_written_hides_no_error(
    workspace: Workspace, console: LoggedConsole, capsys: pytest.CaptureFixture[str]
) -> None:
    (workspace.root / "job.jsonl").mkdir()
    with pytest.raises(GateError), watched(workspace, "shop", console):
        raise GateError("too low")
    assert read(workspace, "outcome.json")["error"] == "too low"
    assert "job.jsonl" in capsys.readouterr().err


def test_a_job_without_a_name_is_logged_and_leaves_no_outcome(workspace: Workspace, console: LoggedConsole) -> None:
    with pytest.raises(GateError), watched(workspace, None, console):
        raise GateError("too low")
    assert [path.name for path in workspace.root.iterdir()] == ["job.jsonl"]


def test_a_job_that_is_ended_in_the_middle_is_recorded_and_the_webhook_not_waited_for(
    workspace: Workspace, console: LoggedConsole, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QUADRANK_WEBHOOK", "http://127.0.0.1:9/x")
    with watched(workspace, "shop", console) as job, job.clock.stage("features"):
        ended_at_once("stopped. The same command goes on", 75)
        outcome, log, said = read(workspace, "outcome.json"), logged(workspace), capsys.readouterr().err
    assert (outcome["status"], outcome["exit_code"], outcome["error"]) == (
        "error", 75, "stopped. The same command goes on",
    )  # fmt: skip
    assert (log, said) == ([("error", "stopped. The same command goes on")], "")


def test_a_job_that_is_over_is_not_recorded_again(workspace: Workspace, console: LoggedConsole) -> None:
    with watched(workspace, "shop", console) as job:
        job.summary = dict(SUMMARY)
    ended_at_once("stopped", 75)
    assert read(workspace, "outcome.json")["exit_code"] == 0
