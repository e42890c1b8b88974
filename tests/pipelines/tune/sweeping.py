"""Sweeps of a small simulated log: settings, spaces, and how to run and read one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
from rich.console import Console

from features.contract.settings import validate
from pipelines.cli.options import settings_of
from pipelines.job_settings import JobSettings
from pipelines.tune.outcome import Outcome
from pipelines.tune.search.space import SearchSpace
from pipelines.tune.sweep import Sweep, run_sweep
from pipelines.tune.workers.leases import Lease
from pipelines.tune.workers.storage import SharedStorage
from pipelines.workspace import Workspace
from tests.pipelines.cli.test_commands import ROOT

RATE = {"train.learning_rate": {"low": 0.0003, "high": 0.003, "log": True}}
DROPOUT = {"model.dropout": {"low": 0.0, "high": 0.4}}
TINY = ["train.epochs=1", "train.batch_size=256", "train.evaluations_per_epoch=2", "train.patience=0"]
LR = ROOT / "conf" / "model" / "lr.yaml"


def settings(work: Path, *assignments: str, root: Path | None = None) -> JobSettings:
    data = Path("conf/data/simulated.yaml")
    raw = str((root or work) / "raw")
    source, overrides = settings_of(data, [*TINY, *assignments], raw, None, None)
    return JobSettings(source, data, LR, Path("conf/train.yaml"), overrides, Workspace(work), Console(quiet=True))


def space(**content: Any) -> SearchSpace:
    shape = {"startup_trials": 1, "schedule": "none", "space": RATE | DROPOUT}
    return validate(SearchSpace, shape | content, "tune.yaml")


def run(work: Path, study: str, trials: int, *assignments: str, **content: Any) -> Outcome:
    return run_sweep(settings(work, *assignments), Sweep(study, space(**content), None, trials))


def load(work: Path, study: str) -> optuna.Study:
    shared = SharedStorage.of(None, study, Workspace(work), Lease())
    return optuna.load_study(study_name=study, storage=shared.open())
