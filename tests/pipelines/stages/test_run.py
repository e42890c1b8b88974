"""What the whole job tells its user to do next."""

import sys

import pytest

from pipelines.stages.run import command_here


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
