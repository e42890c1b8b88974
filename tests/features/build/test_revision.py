"""Which code built a feature set: any changed file of the package is other code, anywhere else nothing is."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

import features
from features.build.revision import hash_of, revision_of

PACKAGE = Path(features.__file__).parent


def copied(folder: Path) -> Path:
    shutil.copytree(PACKAGE, folder / "features", ignore=shutil.ignore_patterns("__pycache__"))
    return folder / "features"


def test_the_same_sources_elsewhere_are_the_same_code(tmp_path: Path) -> None:
    assert hash_of(copied(tmp_path)) == hash_of(PACKAGE)


@pytest.mark.parametrize("file", ["errors.py", "point_in_time/history.py", "monitor/profile/bins.py"])
def test_a_changed_source_is_other_code(tmp_path: Path, file: str) -> None:
    package = copied(tmp_path)
    with (package / file).open("a") as source:
        source.write("# a mend\n")
    assert hash_of(package) != hash_of(PACKAGE)


def test_what_is_no_source_is_no_code(tmp_path: Path) -> None:
    package = copied(tmp_path)
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "history.cpython-311.pyc").write_bytes(b"x")
    (package / "notes.txt").write_text("x")
    assert hash_of(package) == hash_of(PACKAGE)


def test_outside_a_checkout_the_revision_is_that_of_the_package(tmp_path: Path) -> None:
    assert revision_of(copied(tmp_path)) == version("quadrank")


def test_in_a_checkout_the_revision_names_the_commit_and_changes(tmp_path: Path) -> None:
    package = copied(tmp_path)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (
        ["init", "-q"],
        ["add", "features/point_in_time/history.py"],
        [*identity, "commit", "-qm", "first"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    clean = revision_of(package)
    (package / "point_in_time/history.py").write_text("")
    assert re.fullmatch(rf"{re.escape(version('quadrank'))} \(git [0-9a-f]{{12}}\)", clean)
    assert revision_of(package) == clean.replace(")", "-dirty)")
