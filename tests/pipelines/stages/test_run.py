"""What the whole job tells its user to do next."""

import sys
from pathlib import Path

import pytest

from pipelines.stages.run import command_here, next_steps


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """An environment `.venv` with the command `quadrank`, of the Python that runs, in the working folder."""
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    (folder / "quadrank").write_text("#!/bin/sh\n", encoding="utf-8")
    (folder / "quadrank").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_command_that_the_path_finds_goes_by_its_name(environment, monkeypatch):
    monkeypatch.setenv("PATH", str(environment))
    assert command_here("quadrank") == "quadrank"


def test_a_command_of_an_environment_in_the_working_folder_goes_by_its_path_there(environment):
    assert command_here("quadrank") == ".venv/bin/quadrank"


def test_a_command_of_an_environment_elsewhere_goes_by_its_whole_path(environment, monkeypatch):
    (environment / "elsewhere").mkdir()
    monkeypatch.chdir(environment / "elsewhere")
    assert command_here("quadrank") == str(environment / "quadrank")


def test_a_command_that_is_not_installed_goes_by_its_name(environment):
    assert command_here("mlflow") == "mlflow"


CONTRACT = Path("conf/data/my shop.yaml")


@pytest.fixture
def commands(environment, monkeypatch):
    """The next commands after a bundle in a workspace, without their comments."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def told(work):
        lines = next_steps(CONTRACT, Path(work), Path(work) / "bundles/shop/a")
        return [line.partition("   # ")[0] for line in lines]

    return told


def test_the_next_commands_can_be_pasted(commands):
    assert commands(".") == [
        ".venv/bin/quadrank rank --bundle bundles/shop/a",
        ".venv/bin/quadrank tune --data 'conf/data/my shop.yaml' --study first --trials 10",
        "mlflow ui --backend-store-uri sqlite:///mlflow.db",
    ]


def test_the_next_commands_name_a_workspace_that_is_elsewhere(commands, environment):
    root = environment.parents[1]
    assert commands("w k") == [
        ".venv/bin/quadrank rank --bundle 'w k/bundles/shop/a'",
        ".venv/bin/quadrank tune --data 'conf/data/my shop.yaml' --study first --trials 10 --work 'w k'",
        f"mlflow ui --backend-store-uri 'sqlite:///{root}/w k/mlflow.db'",
    ]


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("http://me:secret@tracking:5000", "http://me:…@tracking:5000"),
        ("postgresql://me:secret@db/mlflow", 'mlflow ui --backend-store-uri "$MLFLOW_TRACKING_URI"'),
    ],
)
def test_another_mlflow_is_named_without_its_password(commands, monkeypatch, uri, told):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert commands(".")[2] == told
