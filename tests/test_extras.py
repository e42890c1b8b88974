"""The extras of pyproject.toml: each module that they bring is known by name, and is named where it is missing."""

import ast
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from pipelines.extras import MODULES, missing_extra

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OURS = {"features", "ctr", "pipelines", "benchmarks"}


def normal(name: str) -> str:
    return name.lower().replace("_", "-")


def distributions(requirements: list[str]) -> set[str]:
    return {normal(Requirement(text).name) for text in requirements} - {"quadrank"}


BASE = distributions(PROJECT["dependencies"])
EXTRAS = {extra: distributions(PROJECT["optional-dependencies"][extra]) for extra in MODULES}


def imported() -> set[str]:
    """Third-party modules that the packages import anywhere, at the top of a file or inside a function."""
    names = set()
    for package in ("features", "ctr", "pipelines"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    names |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    names.add((node.module or "").partition(".")[0])
    return names - set(sys.stdlib_module_names) - OURS


def brought_by() -> dict[str, set[str]]:
    return {module: {normal(one) for one in found} for module, found in packages_distributions().items()}


@pytest.mark.parametrize("extra", MODULES)
def test_a_known_module_belongs_to_its_extra(extra):
    """`llvmlite` is numba's own and has no line in pyproject.toml."""
    found = {module: brought_by().get(module, set()) for module in MODULES[extra] - {"llvmlite"}}
    assert {module for module, names in found.items() if not names & EXTRAS[extra]} == set()


def test_every_import_is_of_the_base_set_or_of_a_known_extra():
    known = set().union(*MODULES.values())
    of_base = {module for module, names in brought_by().items() if names & BASE}
    assert imported() - known - of_base == set()


def test_what_ranking_needs_is_all_that_the_base_set_holds():
    assert {"msgspec", "numpy", "polars", "pyarrow", "onnxruntime", "pydantic", "pyyaml", "typer", "rich"} == BASE


def test_a_missing_module_is_answered_with_its_extra():
    error = ModuleNotFoundError("No module named 'optuna'", name="optuna.samplers")
    assert missing_extra(error, "tune") == (
        "quadrank tune: needs optuna, which is not installed. The extra `train` brings it: "
        'pip install "quadrank[train]"'
    )


def test_a_module_of_no_extra_is_no_business_of_ours():
    assert missing_extra(ModuleNotFoundError("No module named 'yaml'", name="yaml"), "train") is None
