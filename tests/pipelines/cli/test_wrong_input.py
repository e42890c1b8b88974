"""What a user gets wrong in an empty folder: one message on stderr, the exit code, and one JSON object on stdout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipelines.cli.commands import main

CONTRACT = Path(__file__).parents[3] / "conf/data/simulated.yaml"
DATA = ["--data", "simulated.yaml"]
FILES = {
    "badkey.yaml": "name: x\ninteractions: {path: a.parquet, usr: u}\n",
    "keys.yaml": "space:\n  model.layerz: {low: 1, high: 3}\n",
    "values.yaml": "space:\n  train.epochs: {low: -3, high: -1}\n",
    "request.json": "{}",
    "full/file.txt": "",
}
NO_RUN = "runs: holds no finished run. `quadrank train` makes one; --work names another workspace"
NO_BUNDLE = "no such folder: not a bundle. Make one with `quadrank export`"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    shutil.copy(CONTRACT, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["export"], 2, NO_RUN),
        (["export", "--run", "nope"], 2, "runs/nope: no finished run of that name"),
        (["export", "--out", "full"], 2, "full: exists"),
        (["report"], 2, NO_RUN),
        (["stress"], 2, NO_RUN),
        (["submit"], 2, NO_RUN),
        (["explain", "--request", "request.json"], 2, NO_RUN),
        (["explain"], 2, "Missing option '--request'"),
        (
            ["train", *DATA, "--resume", "latest", "--warm-start", "champion"],
            2,
            "--resume with --warm-start: a run that is resumed goes on from what it was started from",
        ),
        (["train", *DATA, "--resume", "latest"], 2, "runs: holds no unfinished run. Leave out --resume to start one."),
        (["train", *DATA, "--resume", "gone"], 2, "runs/gone: no unfinished run of that name."),
        (["train", *DATA], 4, "data/simulated/interactions.parquet: no such file"),
        (["evaluate", "--bundle", "nowhere"], 4, NO_BUNDLE),
        (["rank", "--bundle", "nowhere"], 4, NO_BUNDLE),
        (["promote", "--bundle", "nowhere"], 4, NO_BUNDLE),
        (["promote", "--bundle", "nowhere", "--set", "gate.slice=1"], 2, "'slice'. Did you mean 'slices'?"),
        (["promote", "--bundle", "nowhere", "--gate", "missing.yaml"], 2, "missing.yaml: no such file. Files there: "),
        (["rollback"], 2, "rollback: name the contract with either --name NAME or --data FILE"),
        (["rollback", "--name", "x", *DATA], 2, "rollback: name the contract with either --name NAME or --data FILE"),
        (["rollback", "--name", "x", "--list"], 2, "bundles/x: holds no bundle. Name the contract with --name"),
        (["rollback", "--name", "x", "--why", "worse"], 2, "bundles/x: holds no bundle. Name the contract"),
        (["tune", *DATA, "--study", "s", "--space", "keys.yaml"], 2,
         "keys.yaml: space: 'model.layerz' is no setting. Did you mean 'layers'?"),
        (["tune", *DATA, "--study", "s", "--space", "values.yaml"], 2, "a value of the search space cannot be used: "),
        (["tune", *DATA, "--study", "s", "--space", "missing.yaml"], 2, "missing.yaml: no such file. Files there: "),
        (["compare", "--study", "missing.yaml"], 2, "missing.yaml: no such file. Files there: "),
        (["compare", "--models", "nope"], 2, "model/nope.yaml; conf/model has boosting, dcnv2, "),
        (["compare"], 2, "compare: name either --study FILE or --models A,B"),
        (["train", *DATA, "--model", "missing.yaml"], 2, "missing.yaml: no such file. Files there: "),
        (["train", "--data", "badkey.yaml"], 2, "unknown key 'interactions.usr'. Did you mean 'user'?"),
        (["train"], 2, "Missing option '--data'"),
        (["drift", "--base", "missing", "--new", "missing"], 4, "missing: no such file. Name a feature set's folder"),
        (["simulate", "--rows", "0"], 2, "--rows 0: fewer rows than the 5000 users"),
        (["init", "full"], 2, "full: not empty, it holds file.txt, and nothing is written over"),
        (["init", "full/file.txt/shop"], 2, "full/file.txt is no folder, so nothing can lie below it"),
        (["doctor", "--work", "nowhere"], 2, "--work nowhere: no such folder, so there is nothing to look at"),
        (["gc", "--work", "nowhere"], 2, "--work nowhere: no such folder, so there is nothing to look at"),
        (["doctor", "--work", "request.json"], 2, "--work request.json: no folder"),
        (["run", *DATA, "--work", "request.json"], 2, "request.json is no folder, so nothing can lie below it"),
        (["run", *DATA, "--log", "full"], 2, "full: is a folder, where a file is wanted"),
        (["trian"], 2, "No such command 'trian'"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_once(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--json"])
    said = capsys.readouterr()
    assert stop.value.code == code
    assert words in said.err and "Traceback" not in said.err
    (line,) = said.out.splitlines()
    told = json.loads(line)
    assert told == {"status": "error", "exit_code": code, "error": told["error"]}
    assert words in told["error"] and "\n" not in told["error"].strip()
    assert not (folder / "runs").exists() and not (folder / "mlflow.db").exists()
