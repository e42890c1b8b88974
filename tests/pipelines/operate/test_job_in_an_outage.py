"""Whole jobs while MLflow is away: refused at once, or done and told later."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.ctr.reporting.mlflow_server import MlflowServer
from tests.documents import ROOT

PASSING = ["--model", "conf/model/lr.yaml", "--set", "train.epochs=3", "--set", "train.batch_size=128"]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    quadrank("simulate", "--out", str(tmp_path / "raw"), "--rows", "20000", "--users", "400", "--items", "300")
    return tmp_path / "raw"


def quadrank(*arguments: str, uri: str | None = None) -> tuple[int, dict[str, Any]]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    if uri is not None:
        environment["MLFLOW_TRACKING_URI"] = uri
    command = [sys.executable, "-m", "pipelines", *arguments, "--json"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip(), done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_job_is_refused_at_once_or_done_and_told_later(raw: Path, tmp_path: Path) -> None:
    server, work = MlflowServer(tmp_path), tmp_path / "work"
    job = ["run", "--data", "conf/data/simulated.yaml", "--root", str(raw), "--work", str(work), *PASSING]
    code, result = quadrank(*job, uri=server.uri)
    assert (code, result["exit_code"]) == (75, 75)
    assert "the MLflow store does not answer" in result["error"]
    assert [path.name for path in work.iterdir() if path.name != ".cache"] == ["status"]

    code, result = quadrank(*job, "--set", "train.tracking=later", uri=server.uri)
    assert (code, result["status"]) == (0, "done")
    run, bundle = result["run_id"], Path(result["bundle"])
    assert (bundle.parent / "CURRENT").read_text() == run
    code, found = quadrank("doctor", "--work", str(work), uri=server.uri)
    assert code == 2 and any("entries wait for MLflow" in one["text"] for one in found["findings"])

    server.start()
    try:
        code, found = quadrank("doctor", "--send", "--work", str(work), uri=server.uri)
        assert code == 0 and found["sent"] > 10, found
        client = MlflowClient(server.uri)
        champion = client.get_model_version_by_alias("quadrank-simulated", "champion")
        told = client.get_run(champion.run_id)
        assert champion.tags["model_version"] == run == told.info.run_name
        assert told.info.status == "FINISHED" and told.data.tags["gate"] == "passed"
        assert told.data.metrics["test.auc"] == pytest.approx(result["metrics"]["test"]["auc"])
        assert {one.path for one in client.list_artifacts(champion.run_id)} >= {"model", "plots", "run"}
        code, found = quadrank("gc", "--keep", "1", "--yes", "--work", str(work), uri=server.uri)
        assert (code, found["removed"]) == (0, [])
        code, found = quadrank("doctor", "--work", str(work), uri=server.uri)
        assert (code, found["status"]) == (0, "fine")
    finally:
        server.kill()
