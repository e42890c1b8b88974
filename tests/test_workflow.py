"""Hosted CI, pre-commit hooks and `.ci/run` call what the Makefile has, on the Pythons that the package names."""

from __future__ import annotations

import re
import tomllib
from functools import cache

import pytest
import yaml

from tests.command_lines import commands_of, problem, read_makefile
from tests.documents import ROOT

WORKFLOW = ".github/workflows/ci.yml"


@cache
def workflow() -> dict:
    return yaml.safe_load((ROOT / WORKFLOW).read_text(encoding="utf-8"))


def steps() -> list[dict]:
    return [step for job in workflow()["jobs"].values() for step in job["steps"]]


def scripts() -> list[tuple[str, str]]:
    return [(WORKFLOW, re.sub(r"\$\{\{.*?\}\}", "X", step["run"])) for step in steps() if "run" in step] + [
        (name, (ROOT / name).read_text(encoding="utf-8")) for name in (".ci/run", ".ci/wheel")
    ]


@cache
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def named_pythons() -> list[str]:
    return [
        found[1]
        for name in project()["classifiers"]
        if (found := re.fullmatch(r"Programming Language :: Python :: (\d+\.\d+)", name))
    ]


def test_every_step_is_a_target_of_the_makefile():
    commands = [command for origin, text in scripts() for command in commands_of(origin, text, whole=True)]
    assert [f"{command.text}: {found}" for command in commands if (found := problem(command))] == []
    assert {command.words[0] for command in commands} == {"make"}


@pytest.mark.parametrize("target", ["lint", "docs", "test", "train"])
def test_hosted_ci_and_ci_run_both_call(target):
    called = {(origin, command.words[1]) for origin, text in scripts() for command in commands_of(origin, text, True)}
    assert {(WORKFLOW, target), (".ci/run", target)} <= called


def test_hosted_ci_and_ci_run_both_use_the_wheel_elsewhere():
    called = {origin for origin, text in scripts() if re.search(r"^\.ci/wheel( &)?$", text, re.MULTILINE)}
    assert called == {WORKFLOW, ".ci/run"}


def test_tests_run_on_the_pythons_that_the_package_names():
    job = workflow()["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == named_pythons()
    assert job["steps"][1]["with"]["python-version"] == "${{ matrix.python }}"
    assert [step["run"] for step in job["steps"] if "run" in step][-1] == "make test PYTHON=python${{ matrix.python }}"


@pytest.mark.parametrize(
    ("job", "before"), [("test", "make test PYTHON=python${{ matrix.python }}"), ("slow", "make test-slow")]
)
def test_hosted_tests_have_the_servers_that_those_of_ci_run_have(job, before):
    called = [step["run"] for step in workflow()["jobs"][job]["steps"] if "run" in step]
    assert called == ["sudo .ci/servers", before]
    ours = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    assert ours.index(".ci/servers") < ours.index("make test")


def test_the_oldest_named_python_is_the_oldest_allowed():
    assert project()["requires-python"] == f">={named_pythons()[0]}"


def test_hosted_ci_needs_no_machine_or_index_of_ours():
    assert {job["runs-on"] for job in workflow()["jobs"].values()} == {"ubuntu-latest"}
    assert workflow()["env"] == {"TORCH_INDEX": "https://download.pytorch.org/whl/cpu"}
    assert re.findall(r"index-url|find-links|secrets\.", (ROOT / WORKFLOW).read_text(encoding="utf-8")) == []


def test_the_makefile_reads_the_environment_of_hosted_ci():
    assert set(workflow()["env"]) <= read_makefile()[1]


def test_hooks_call_the_tools_of_make_lint():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    called = {" ".join(hook["entry"].removeprefix(".venv/bin/").split(" --force-exclude")).strip() for hook in hooks}
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert recipe is not None
    lint = {re.sub(r"\t@\$\(BIN\)/| --check| \.$", "", line) for line in recipe[1].splitlines()}
    assert called == lint == {"ruff format", "ruff check", "mypy"}
