"""The shell blocks of README, and of pages whose commands are cheap, run in order in a project of their own."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from features.store.pointer import follow
from tests.documents import ROOT, codes, shell_blocks

README = ROOT / "README.md"
# Pages whose commands take seconds and need no more than what README's commands left behind.
PAGES = ["docs/report.md"]
# Command as it is written -> what is added to it, so that it takes seconds; the job's sizes are those of .ci/run.
SMALLER = {"make train": 'ROWS=100000 USERS=1000 ITEMS=600 SET="train.batch_size=256 train.epochs=2"'}


def command_lines(page: Path) -> list[str]:
    """Every line of the page's shell blocks, joined where `\\` continues it, without comments."""
    lines = []
    for block in shell_blocks(page):
        for line in re.sub(r"\\\n\s*", " ", block.text).splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            lines += [shlex.join(words)] if words else []
    return lines


def runnable(page: Path) -> Iterator[str]:
    for line in command_lines(page):
        yield f"{line} {SMALLER.get(line, '')}".strip()


def run(line: str, folder: Path) -> None:
    """Run one line; `make` takes the environment of this test as the one that it would set up."""
    line = re.sub(r"^make\b", "make -o .venv/.ready", line)
    line = re.sub(r"^quadrank\b", ".venv/bin/quadrank", line)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run(["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{line}\nends with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A folder with what a clone has, after every command of README."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("Makefile", "pyproject.toml", "requirements.lock", "requirements-torch.lock"):
        shutil.copy2(ROOT / name, folder / name)
    shutil.copytree(ROOT / "conf", folder / "conf")
    (folder / ".venv").symlink_to(sys.prefix)
    for line in runnable(README):
        run(line, folder)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_commands_of_readme_run(project):
    assert (project / "runs").is_dir()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(page, project):
    for line in runnable(ROOT / page):
        run(line, project)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_python_of_readme_runs(project):
    """All blocks in one interpreter; `request` is the bundle's own example."""
    blocks = [code.text for code in codes(README) if code.language == "python"]
    example = follow(project / "bundles/simulated/CURRENT") / "request.json"
    request = f"request = {json.loads(example.read_text(encoding='utf-8'))!r}"
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([request, *blocks])],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("line", SMALLER)
def test_what_is_changed_is_a_command_of_readme(line):
    assert line in command_lines(README)
