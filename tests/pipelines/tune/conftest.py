"""A small simulated log, and trials that train nothing."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from features.simulator.simulate import simulate
from pipelines.tune.trial import RUN, Trials
from tests.pipelines.cli.test_commands import ROOT


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    simulate(folder / "raw", rows=6_000, users=150, items=100, seed=1)
    return folder


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials draw their settings and are as good as their dropout is low; nothing is trained."""

    def value(self: Trials, trial: optuna.Trial, chosen: dict[str, float], renewal: object) -> float:
        trial.set_user_attr(RUN, "nowhere")
        return 1 - chosen["model.dropout"]

    monkeypatch.setattr(Trials, "_trained", value)
