"""The list of packages that serve a bundle: whole, of serving alone, and the same each time."""

from __future__ import annotations

import json
from email.message import Message
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ctr.export.layouts.parts_list import licence_of, write_parts_list


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("list") / "sbom.json"
    write_parts_list(path)
    return json.loads(path.read_text())


def test_it_is_cyclonedx_of_quadrank(listed: Any) -> None:
    assert (listed["bomFormat"], listed["specVersion"], listed["version"]) == ("CycloneDX", "1.6", 1)
    assert listed["metadata"]["component"]["name"] == "quadrank"
    assert listed["metadata"]["component"]["type"] == "application"


def test_it_has_what_serves_and_nothing_of_training(listed: Any) -> None:
    names = [one["name"] for one in listed["components"]]
    assert {"onnxruntime", "numpy", "polars", "pyarrow", "pydantic-core"} <= set(names)
    assert not {"torch", "mlflow", "optuna", "scikit-learn", "quadrank"} & set(names)
    assert names == sorted(set(names))


def test_a_package_has_version_address_and_licence(listed: Any) -> None:
    (numpy,) = [one for one in listed["components"] if one["name"] == "numpy"]
    assert (numpy["version"], numpy["purl"]) == (version("numpy"), f"pkg:pypi/numpy@{version('numpy')}")
    assert "BSD" in numpy["licenses"][0]["license"]["name"]


def test_the_same_packages_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_parts_list(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ([("License-Expression", "MIT"), ("License", "other")], "MIT"),
        ([("Classifier", "License :: OSI Approved :: BSD License"), ("License", "Copyright")], "BSD License"),
        ([("License", "Apache 2.0\nmore of it")], "Apache 2.0"),
        ([("Classifier", "Programming Language :: Python")], "not stated"),
    ],
)
def test_a_licence_is_the_most_exact_that_the_metadata_has(fields: list[tuple[str, str]], licence: str) -> None:
    metadata = Message()
    for name, value in fields:
        metadata[name] = value
    assert licence_of(SimpleNamespace(metadata=metadata)) == licence  # type: ignore[arg-type]
