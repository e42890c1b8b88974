"""How a command ends: exit codes and messages of what stopped it, of wrong settings, and of a job that is at work."""

import os
import signal

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
