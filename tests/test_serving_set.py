"""What ranks a request: `pip install quadrank` alone, without torch and all that training needs.

A fresh interpreter is kept from each distribution that the base dependencies do not bring, as if it were not installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import polars as pl
import pytest
from packaging.requirements import Requirement

from ctr.config import ModelConfig
from ctr.export.export_bundle import Extras, export_bundle
from tests.trained import built_feature_set, random_model

ROOT = Path(__file__).parent.parent
TRAINING = {"torch", "mlflow", "optuna", "sklearn", "scipy", "numba", "matplotlib", "onnx"}
SERVING_MODULES = ["ctr.serving.ranker", "ctr.serving.bundle", "features.encoding.encoder", "features.encoding.request"]
# Python runs `sitecustomize` before anything else.
KEEPER = """
import importlib.abc, sys
ABSENT = {absent!r}
class Keeper(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Keeper())
"""


def brought(requirements: list[str]) -> set[str]:
    """Distributions that these requirements bring here, and those that they need in turn."""
    found: set[str] = set()
    left = [Requirement(text) for text in requirements]
    while left:
        one = left.pop()
        name = one.name.lower().replace("_", "-")
        if name in found or (one.marker and not one.marker.evaluate({"extra": ""})):
            continue
        try:
            left += [Requirement(text) for text in requires(name) or []]
        except PackageNotFoundError:
            continue
        found.add(name)
    return found


def absent_modules() -> set[str]:
    """Top-level modules of this environment that an environment of the base dependencies alone lacks."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    base = brought(project["dependencies"]) | {"quadrank"}
    distributions = packages_distributions()
    return {
        module
        for module, names in distributions.items()
        if not {name.lower().replace("_", "-") for name in names} & base
        if module not in sys.stdlib_module_names
    }


@pytest.fixture(scope="module")
def serving_set(tmp_path_factory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python with these arguments as if the base dependencies alone were installed, in an empty folder."""
    folder = tmp_path_factory.mktemp("serving")
    (folder / "sitecustomize.py").write_text(KEEPER.format(absent=absent_modules()), encoding="utf-8")
    (folder / "empty").mkdir()

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            cwd=folder / "empty",
            env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
        )

    return run


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    feature_set = built_feature_set(folder)
    model = random_model(feature_set, ModelConfig(embedding_dim=8, attention_dim=8), seed=5)
    return export_bundle(
        model,
        feature_set,
        folder / "bundle",
        model_version="run-1",
        architecture="qin",
        metrics={"test": {"auc": 0.71}},
        controls={"popularity": {"auc": 0.6}},
        git_revision="0123abcd",
        extras=Extras(scorer=True),
    ).path


def test_the_interpreter_is_kept_from_what_training_needs():
    assert absent_modules() >= TRAINING
    assert not absent_modules() & {"numpy", "polars", "pyarrow", "onnxruntime", "pydantic", "yaml", "typer", "rich"}


@pytest.mark.parametrize("module", SERVING_MODULES)
def test_a_serving_module_needs_the_base_set_alone(serving_set, module):
    result = serving_set("-c", f"import {module}")
    assert (result.returncode, result.stderr) == (0, "")


def test_ranking_imports_these_and_no_others(serving_set):
    """Third-party distributions loaded by all of `ctr.serving`: the runtime, arrays, tables, settings."""
    code = (
        "import sys; before = set(sys.modules)\nimport json, pkgutil, importlib, ctr.serving\n"
        "for one in pkgutil.iter_modules(ctr.serving.__path__): importlib.import_module(f'ctr.serving.{one.name}')\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    loaded = {name.partition(".")[0] for name in json.loads(serving_set("-c", code).stdout)}
    third_party = loaded & set(packages_distributions()) - set(sys.stdlib_module_names)
    # The last five are helpers of pydantic and polars.
    assert third_party - {"features", "ctr", "pipelines"} == {
        "msgspec",
        "numpy",
        "onnxruntime",
        "polars",
        "pyarrow",
        "pydantic",
        "yaml",
        "_polars_runtime_32",
        "annotated_types",
        "pydantic_core",
        "typing_extensions",
        "typing_inspection",
    }


def test_the_command_shows_its_help(serving_set):
    result = serving_set("-m", "pipelines", "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert " rank " in result.stdout


def test_a_request_is_ranked_by_the_command(serving_set, bundle):
    """In a folder without settings: those that are shipped hold."""
    result = serving_set("-m", "pipelines", "rank", "--bundle", str(bundle), "--json")
    assert result.returncode == 0, result.stderr
    request = json.loads((bundle / "request.json").read_text(encoding="utf-8"))
    ranked = json.loads(result.stdout)["ranked"]
    assert {entry["item"] for entry in ranked} == {candidate["item"] for candidate in request["candidates"]}


def test_items_are_upserted_without_torch(serving_set, bundle, tmp_path):
    items = {"item_id": [900, 901], "genre": ["drama", None], "tags": [["new"], []], "price": [9.5, None]}
    pl.DataFrame(items).write_parquet(tmp_path / "items.parquet")
    pl.DataFrame({"item_id": [900], "vector": [[0.5] * 8]}).write_parquet(tmp_path / "text.parquet")
    files = ["--items", str(tmp_path / "items.parquet"), "--vectors", f"text={tmp_path / 'text.parquet'}"]
    out = ["--out", str(tmp_path / "out")]
    result = serving_set("-m", "pipelines", "items", "upsert", "--bundle", str(bundle), *files, *out, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["new"] == 2
    request = tmp_path / "request.json"
    request.write_text('{"user": null, "history": [], "candidates": [900, 901], "context": {"load": 1.0}}')
    asked = ["--bundle", str(tmp_path / "out"), "--request", str(request), "--strict", "--json"]
    ranked = serving_set("-m", "pipelines", "rank", *asked)
    assert ranked.returncode == 0, ranked.stderr


def test_rows_are_scored_without_torch(serving_set, bundle, tmp_path):
    rows, log = tmp_path / "rows.parquet", tmp_path / "log.parquet"
    pl.DataFrame({"user": ["u1", "u2"], "item": [101, 102], "device": ["tv", None], "load": [1.0, 2.0]}).write_parquet(
        rows
    )
    pl.DataFrame({"user": ["u1"], "item": [103], "time": [5], "clicked": [1]}).write_parquet(log)
    files = ["--input", str(rows), "--events", str(log), "--output", str(tmp_path / "scores.parquet")]
    result = serving_set("-m", "pipelines", "score", "--bundle", str(bundle), *files, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["rows"] == 2
    assert pl.read_parquet(tmp_path / "scores.parquet")["score"].is_between(0, 1).all()


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--data", str(ROOT / "conf/data/simulated.yaml")],
        ["tune", "--data", str(ROOT / "conf/data/simulated.yaml"), "--study", "first"],
        ["evaluate", "--bundle", "bundle"],
        ["report"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_command_of_another_extra_names_it(serving_set, arguments):
    result = serving_set("-m", "pipelines", *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: quadrank {arguments[0]}: needs ")
    assert 'pip install "quadrank[train]"' in result.stderr and "Traceback" not in result.stderr
