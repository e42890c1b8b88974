"""Exported bundles of a small log for all tests of serving: one of a process, and two that servers replace."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctr.config import ModelConfig
from ctr.export.export_bundle import ExportResult
from ctr.model.click_model import ClickModel
from ctr.serving.bundle import open_bundle
from ctr.serving.ranker import Ranker
from features.store.feature_set import FeatureSet
from features.store.pointer import point_at
from tests.ctr.serving.shop import export, two_bundles
from tests.trained import built_feature_set, random_model


def shop_model(feature_set: FeatureSet) -> ClickModel:
    parts = {"match_features": True, "tasks": ("like", "stay")}
    return random_model(feature_set, ModelConfig(embedding_dim=8, attention_dim=8, **parts), seed=5)


@pytest.fixture(scope="session")
def feature_set(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    """Of a process: nobody changes its files."""
    return built_feature_set(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def model(feature_set: FeatureSet) -> ClickModel:
    return shop_model(feature_set)


@pytest.fixture(scope="session")
def exported(feature_set: FeatureSet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExportResult]:
    """Exported once in a process; a test that changes a bundle has a `copy` of its own."""
    result = export(shop_model(feature_set), feature_set, tmp_path_factory.mktemp("bundles") / "first")
    yield result
    open_bundle(result.path)  # nothing changed it


@pytest.fixture(scope="module")
def ranker(exported: ExportResult) -> Ranker:
    return Ranker.load(exported.path)


@pytest.fixture
def copy(exported: ExportResult, tmp_path: Path) -> Path:
    return shutil.copytree(exported.path, tmp_path / "copy")


@pytest.fixture(scope="session")
def exported_bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bundles of one shop, exported once in a process."""
    return two_bundles(tmp_path_factory.mktemp("two-bundles"))


@pytest.fixture(scope="module")
def bundles(exported_bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`first`, `second` and a pointer to the first, of this module alone."""
    folder = shutil.copytree(exported_bundles, tmp_path_factory.mktemp("server") / "bundles")
    point_at(folder, "first")
    return folder
