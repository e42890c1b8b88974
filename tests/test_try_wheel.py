"""The place where a wheel is tried: commands there know nothing of the checkout, and a failure is told.

The whole of it, with real packages, is `.ci/wheel`.
"""

from __future__ import annotations

import os
import sys

import pytest

from tools.installers import InstallError
from tools.try_wheel import OF_CHECKOUT, Place, serve


@pytest.fixture
def place(tmp_path):
    """Without an environment: this one's Python takes its place."""
    found = Place.__new__(Place)
    found.folder, found.venv = tmp_path, tmp_path / "venv"
    return found


def test_commands_run_in_the_places_folder_and_know_nothing_of_the_checkout(place, monkeypatch):
    for name in OF_CHECKOUT:
        monkeypatch.setenv(name, "of the checkout")
    code = "import os; print(os.getcwd(), os.environ['PATH'], *os.environ.values(), sep='\\n')"
    folder, path, *values = place.run(sys.executable, "-c", code).splitlines()
    assert folder == str(place.folder)
    assert path.split(os.pathsep)[0] == str(place.venv / "bin")
    assert "of the checkout" not in values


def test_a_command_that_fails_is_told_with_its_account(place):
    with pytest.raises(InstallError, match=r"ends with 3\n\nno such thing"):
        place.run(sys.executable, "-c", "import sys; print('no such thing', file=sys.stderr); sys.exit(3)")


def test_a_serving_set_that_brings_what_training_needs_is_refused(place, monkeypatch):
    monkeypatch.setattr(place, "install", lambda *requirements: None)
    monkeypatch.setattr(place, "run", lambda *command: "torch mlflow\n")
    with pytest.raises(InstallError, match="pip install quadrank brings torch, mlflow"):
        serve(place, place.folder / "quadrank-1-py3-none-any.whl", place.folder)
