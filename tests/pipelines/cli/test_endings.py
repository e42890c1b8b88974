"""How a command ends: exit codes and messages of what stopped it, of wrong settings, and of a job that is at work."""

import json
import os
import signal
import subprocess
import sys

import pytest

from features.errors import ConfigError, DataError, LockError, NumericalError
from pipelines.workspace import Workspace
from tests.pipelines.cli.test_commands import SMALL, data
from tests.pipelines.cli.test_commands import raw as raw
from tests.pipelines.cli.test_commands import shell as shell
from tests.pipelines.cli.test_commands import work as work


@pytest.mark.parametrize(
    ("command", "advice"),
    [
        ("train", "The same command with `--resume latest` goes on from the last checkpoint"),
        ("tune", "The same command goes on: trials that ended are kept"),
        ("simulate", ""),
        ("features", ""),
    ],
)
def test_only_what_can_be_resumed_is_said_to_be(shell, raw, work, monkeypatch, command, advice):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    # What imports a function takes the one that it finds: before the first of these is replaced.
    for name in (
        "pipelines.job.build.build_feature_set",
        "features.build.build.build_feature_set",
        "pipelines.job.simulate.simulate",
    ):
        monkeypatch.setattr(name, stopped)
    rest = {"simulate": ["--out", work / "other"], "tune": [*data(raw, work), "--study", "stopped"]}
    code, result = shell(command, *rest.get(command, data(raw, work)))
    assert code == 130 and result["error"] == f"stopped. {advice}".strip()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--set", "train.epoch=1"], 2, ["train.epoch", "epochs"]),
        (["--set", "model.dropout=2"], 2, ["dropout"]),
        (["--set", "tarin.epochs=1"], 2, ["tarin", "train"]),
        (["--set", "train.epochs"], 2, ["section.key=value"]),
        (["--set", "data.history.maxlen=3"], 2, ["maxlen", "max_len"]),
        (["--model", "conf/model/none.yaml"], 2, ["none.yaml", "qin.yaml"]),
        (["--root", "/nowhere"], 4, ["/nowhere", "interactions.parquet"]),
        (["--set", "data.interactions.label=clicks"], 4, ["clicks", "clicked", "interactions.parquet"]),
    ],
)
def test_wrong_settings_are_explained(shell, raw, work, arguments, code, words):
    found, result = shell("train", *data(raw, work), *arguments)
    assert (found, result["status"]) == (code, "error")
    for word in words:
        assert word in result["error"]


def sigterm(*_):
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("raises", "code"),
    [(ConfigError("no"), 2), (DataError("no"), 4), (NumericalError("no"), 5), (LockError("no"), 7),
     (KeyboardInterrupt(), 130), (sigterm, 75)],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_the_job_ends_with_the_code_of_what_stopped_it(shell, raw, tmp_path, monkeypatch, raises, code):
    def stopped(*_):
        if callable(raises):
            raises()
        raise raises

    monkeypatch.setattr("pipelines.stages.steps.Features.run", stopped)
    found, result = shell("run", *data(raw, tmp_path), *SMALL)
    assert (found, result["exit_code"], result["status"]) == (code, code, "error")
    if code in (75, 130):
        assert result["error"] == "stopped. The same command goes on where it stood"


def test_a_second_job_on_the_same_data_is_kept_out(shell, raw, work):
    with Workspace(work).lock("simulated"):
        code, result = shell("run", *data(raw, work), *SMALL)
    assert code == 7 and "simulated.lock: another job on 'simulated'" in result["error"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--set", "data.histry.max_len=3"],
        ["--set", "gate.clicsk=1"],
        ["--set", "nothing=1"],
        ["--window", "14"],
        ["--data", "broken.yaml"],
    ],
    ids=lambda arguments: arguments[-1],
)
def test_whoever_watches_a_job_learns_of_settings_that_cannot_be_used(shell, raw, tmp_path, monkeypatch, arguments):
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: simulated  # the log\nlabels: [\n")
    words = [str(broken) if word == broken.name else word for word in arguments]
    code, result = shell("run", *data(raw, tmp_path), *words, "--log", tmp_path / "job.jsonl")
    outcome = json.loads((tmp_path / "status" / "simulated" / "outcome.json").read_text())
    assert (code, outcome["exit_code"], outcome["error"]) == (2, 2, result["error"])
    assert 'quadrank_exit_code{name="simulated"} 2.0' in (tmp_path / "status/simulated/quadrank.prom").read_text()
    assert json.loads((tmp_path / "job.jsonl").read_text())["message"] == result["error"]


def test_a_plan_that_fails_is_no_run(shell, raw, tmp_path):
    code, _ = shell("run", *data(raw, tmp_path), "--dry-run", "--window", "14")
    assert code == 2 and not (tmp_path / "status").exists()


LATE = """
import functools, io, os, signal, sys, time
from pathlib import Path
from features.stopping import held
from pipelines.cli import endings
from pipelines.operate.log import LoggedConsole
from pipelines.operate.outcome import watched
from pipelines.workspace import Workspace

def job():
    console = LoggedConsole(None, file=io.StringIO())
    with watched(Workspace(Path(sys.argv[1])), "shop", console), held():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

endings.listening = functools.partial(endings.listening, seconds=0.2)
endings.ended(job, ["run"])
"""


def test_a_job_that_does_not_end_in_time_is_recorded_as_ended(tmp_path):
    done = subprocess.run([sys.executable, "-c", LATE, str(tmp_path)], capture_output=True, text=True, timeout=100)
    outcome = json.loads((tmp_path / "status" / "shop" / "outcome.json").read_text())
    assert (done.returncode, outcome["exit_code"], outcome["error"]) == (
        75, 75, "stopped. The same command goes on where it stood",
    )  # fmt: skip


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_command_whose_reader_is_gone_goes_on_to_its_end(tmp_path, as_json):
    """As `quadrank init shop | head -1`, where `head` ends first."""
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, "-m", "pipelines", "init", str(tmp_path / "shop"), *as_json]
    done = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, text=True)
    os.close(writes)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "shop" / "Makefile").is_file()


def test_messages_that_nobody_reads_any_more_do_not_take_the_json_line_away(tmp_path):
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, "-m", "pipelines", "init", str(tmp_path / "shop"), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=writes, text=True)
    os.close(writes)
    assert done.returncode == 0
    assert json.loads(done.stdout)["status"] == "done"
