"""The gate: each rule just inside and just outside, with numbers made by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ctr.serving.bundle import FORMAT, Bundle, BundleManifest, publish, seal
from features.errors import GateError
from features.store.pointer import follow, point_at
from pipelines.job import promote
from pipelines.job.promote import gate, make_champion, promote_bundle, reasons_against
from pipelines.workspace import Workspace
from tests.ctr.serving.test_bundle import METADATA, fill

METRICS = {"auc": 0.70, "auc_low": 0.68, "auc_high": 0.72, "calibration_ratio": 1.0}
POPULARITY = 0.65


def manifest(metrics: dict[str, float], popularity: float = POPULARITY) -> BundleManifest:
    metadata = METADATA.model_copy(
        update={"metrics": {"test": metrics}, "controls": {"popularity": {"auc": popularity}}}
    )
    return BundleManifest(format=FORMAT, files={}, **dict(metadata))


def champion(test_auc: float, feature_set: str = METADATA.feature_set) -> dict[str, str]:
    """Tags of a registered version, which MLflow keeps as text."""
    return {"feature_set": feature_set, "test_auc": str(test_auc)}


class Registry:
    """The part of a registry that the gate asks."""

    def __init__(self, tags: dict[str, str]) -> None:
        self.tags = tags
        self.aliases: list[tuple[str, str, str]] = []

    def version_tags(self, name: str, alias: str) -> dict[str, str]:
        assert (name, alias) == ("quadrank-toy", "champion")
        return self.tags

    def set_alias(self, name: str, alias: str, version: str) -> None:
        self.aliases.append((name, alias, version))


@pytest.mark.parametrize(
    ("changed", "tags"),
    [
        ({}, {}),
        ({"calibration_ratio": 0.8}, {}),
        ({"calibration_ratio": 1.25}, {}),
        ({"auc": 0.6501}, {}),
        ({}, champion(0.70)),
        ({}, champion(0.72)),  # not below what the interval reaches
        ({}, champion(0.90, feature_set="2025-12-31-ffffffff")),  # measured on other rows
    ],
)
def test_just_inside(changed: dict[str, float], tags: dict[str, str]) -> None:
    assert reasons_against(manifest(METRICS | changed), tags) == []


@pytest.mark.parametrize(
    ("changed", "tags", "reason"),
    [
        ({"calibration_ratio": 0.799}, {}, "calibration ratio 0.799 is outside 0.8 to 1.25"),
        ({"calibration_ratio": 1.251}, {}, "calibration ratio 1.251 is outside 0.8 to 1.25"),
        ({"calibration_ratio": math.nan}, {}, "calibration ratio nan is outside 0.8 to 1.25"),
        ({"auc": 0.65}, {}, "test AUC 0.6500 is not above popularity's 0.6500"),
        ({"auc": 0.6499}, {}, "test AUC 0.6499 is not above popularity's 0.6500"),
        ({"auc": math.nan}, {}, "test AUC nan is not above popularity's 0.6500"),
        ({}, champion(0.7201), "test AUC 0.7000 (at most 0.7200) is below the champion's 0.7201"),
        ({"auc_high": math.nan}, champion(0.60), "test AUC 0.7000 (at most nan) is below the champion's 0.6000"),
    ],
)
def test_just_outside(changed: dict[str, float], tags: dict[str, str], reason: str) -> None:
    assert reasons_against(manifest(METRICS | changed), tags) == [reason]


def test_what_was_not_measured_lets_nothing_pass() -> None:
    assert reasons_against(manifest({}), champion(0.60)) == [
        "calibration ratio nan is outside 0.8 to 1.25",
        "test AUC nan is not above popularity's 0.6500",
        "test AUC nan (at most nan) is below the champion's 0.6000",
    ]
    unmeasured = {"feature_set": METADATA.feature_set}
    assert reasons_against(manifest(METRICS), unmeasured) == [
        "test AUC 0.7000 (at most 0.7200) is below the champion's nan"
    ]


def test_a_control_that_is_no_number_lets_nothing_pass() -> None:
    unmeasured = manifest(METRICS).model_copy(update={"controls": {"popularity": {}}})
    assert reasons_against(unmeasured, {}) == ["test AUC 0.7000 is not above popularity's nan"]
    assert reasons_against(manifest(METRICS, popularity=math.nan), {}) == [
        "test AUC 0.7000 is not above popularity's nan"
    ]


def test_the_gate_names_every_reason_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = manifest({"auc": 0.5, "auc_low": 0.4, "auc_high": 0.6, "calibration_ratio": 2.0})
    bundle = Bundle(Path("bundle"), bad)
    loaded: list[Path] = []
    monkeypatch.setattr(promote, "open_bundle", lambda path: bundle)
    monkeypatch.setattr(promote.Ranker, "load", loaded.append)
    registry: Any = Registry(champion(0.9))
    with pytest.raises(GateError, match=r"calibration ratio.*; test AUC.*popularity.*; test AUC.*champion") as refused:
        gate(Path("CURRENT"), registry)
    assert refused.value.exit_code == 6
    assert loaded == [Path("bundle")]  # what was opened is what is tried out, whatever the pointer names by then
    assert registry.aliases == []


def test_the_gate_asks_for_the_champion_and_returns_what_it_let_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Bundle(Path("bundle"), manifest(METRICS))
    monkeypatch.setattr(promote, "open_bundle", lambda path: bundle)
    monkeypatch.setattr(promote.Ranker, "load", lambda path: None)
    inside: Any = Registry(champion(0.72))
    assert gate(Path("CURRENT"), inside) is bundle
    outside: Any = Registry(champion(0.73))
    with pytest.raises(GateError, match=r"champion's 0\.7300"):
        gate(Path("CURRENT"), outside)


def test_the_alias_moves_before_current(tmp_path: Path) -> None:
    """A registry that fails leaves both as they were."""
    workspace = Workspace(tmp_path)
    bundles = workspace.bundles("toy")
    for name in ("old", "new"):
        with publish(bundles / name) as folder:
            fill(folder)
            seal(folder, METADATA)
    point_at(bundles, "old")
    bundle = Bundle((bundles / "new").resolve(), manifest(METRICS))

    class Down(Registry):
        def set_alias(self, name: str, alias: str, version: str) -> None:
            raise ConnectionError("registry")

    down: Any = Down({})
    with pytest.raises(ConnectionError):
        make_champion(bundle, "3", down, workspace)
    assert follow(bundles).name == "old"
    up: Any = Registry({})
    said = make_champion(bundle, "3", up, workspace)
    assert up.aliases == [("quadrank-toy", "champion", "3")]
    assert follow(bundles).name == "new" and said[1] == f"{bundles / 'CURRENT'} is now new"


class Store(Registry):
    """Registered versions in memory, and the runs that they are registered in."""

    run_id = "mlflow-1"

    def __init__(self, root: Path) -> None:
        super().__init__({})
        self.root = root
        self.known: dict[tuple[str, str], str] = {}
        self.runs: list[dict[str, Any]] = []
        self.running = False

    def find_version(self, name: str, model_version: str) -> str | None:
        return self.known.get((name, model_version))

    @contextmanager
    def run(self, **described: Any) -> Iterator[None]:
        self.runs.append(described)
        self.running = True
        yield
        self.running = False

    def register(self, path: Path, name: str, run_id: str) -> str:
        assert self.running and run_id == self.run_id and path.is_dir()
        version = str(len(self.known) + 1)
        self.known[name, "run-1"] = version
        return version


def test_a_bundle_is_registered_once_and_promoted_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(tmp_path)
    path = workspace.bundles("toy") / "run-1"
    metadata = METADATA.model_copy(
        update={"metrics": {"test": METRICS}, "controls": {"popularity": {"auc": POPULARITY}}}
    )
    with publish(path) as folder:
        fill(folder)
        seal(folder, metadata)
    store = Store(tmp_path)
    for name in ("Registry", "Tracker"):
        monkeypatch.setattr(promote, name, lambda root: store if root == tmp_path else None)
    monkeypatch.setattr(promote.Ranker, "load", lambda path: None)
    console = Console(record=True, width=200)
    first, again = (promote_bundle(path, workspace, console) for _ in range(2))
    described = {"experiment": "quadrank-toy", "run_name": "promote run-1", "tags": {"stage": "promote"}, "params": {}}
    assert store.runs == [described]
    expected = {"status": "done", "exit_code": 0, "name": "quadrank-toy", "version": "1", "alias": "champion"}
    assert first == again == expected | {"bundle": str(path)}
    assert store.aliases == [("quadrank-toy", "champion", "1")] * 2
    assert follow(workspace.bundles("toy")) == path
    assert "models:/quadrank-toy@champion is now version 1 (run-1)" in console.export_text()


def test_a_bundle_of_another_place_leaves_current(tmp_path: Path) -> None:
    registry: Any = Registry({})
    done = make_champion(Bundle(tmp_path / "elsewhere", manifest(METRICS)), "3", registry, Workspace(tmp_path / "work"))
    assert registry.aliases == [("quadrank-toy", "champion", "3")]
    current = tmp_path / "work/bundles/toy/CURRENT"
    assert done[-1] == f"{current} does not change: the bundle is in another folder" and not current.exists()
