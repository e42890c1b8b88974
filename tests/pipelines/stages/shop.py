"""A small log with its job, and a stand-in for the signal that ends a process."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ctr.reporting.mlflow_runs import Tracker
from pipelines.gate.settings import GateRules
from pipelines.gate.verdict import Finding, Verdict
from pipelines.job.summary import Summary
from pipelines.job_settings import JobSettings
from pipelines.operate.clock import StageClock
from pipelines.source import Source
from pipelines.stages.run import run_job
from pipelines.workspace import Workspace
from tests.trained import built_feature_set, raw_contract

MODEL = """
model: {attention: mean, tower: linear, embedding_dim: 4, vector_dim: 4, attention_dim: 4}
train: {epochs: 2, batch_size: 64, evaluations_per_epoch: 2, patience: 0, controls: never, device: cpu}
"""
STAGES = ("features", "train", "evaluate", "export", "gate", "promote")
PASSED = Verdict("shop", None, (Finding("parity", True),))


class Killed(BaseException):
    """Stands for the signal that ends a process."""


@dataclass
class Shop:
    """One workspace, its log and its job."""

    folder: Path
    overrides: dict[str, Any] = field(default_factory=dict)
    as_of: str | None = None
    checks: dict[str, Any] = field(default_factory=dict)
    said: str = ""
    rules: GateRules = field(default_factory=GateRules)

    def settings(self) -> JobSettings:
        self.out = io.StringIO()
        contract = raw_contract(self.folder / "raw")
        contract = contract.model_copy(update={"checks": contract.checks.model_copy(update=self.checks)})
        return JobSettings(
            Source(contract, self.as_of),
            Path("conf/data/shop.yaml"),
            self.folder / "model.yaml",
            Path(__file__).parents[3] / "conf" / "train.yaml",
            self.overrides,
            self.workspace,
            Console(file=self.out, width=500),
        )

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.folder / "work")

    def run(self) -> Summary:
        try:
            return run_job(self.settings(), self.rules, StageClock())
        finally:
            self.said = self.out.getvalue()

    def killed(self) -> None:
        with pytest.raises(Killed):
            self.run()

    def weights(self, summary: Summary) -> bytes:
        return (self.workspace.runs / str(summary.run_id) / "model.safetensors").read_bytes()

    def mlflow_runs(self) -> list[Any]:
        client = Tracker(self.workspace.root).store.client
        experiment = client.get_experiment_by_name("quadrank-shop")
        return list(client.search_runs([experiment.experiment_id]))


def shop_in(folder: Path) -> Shop:
    built_feature_set(folder)  # for its raw log
    shutil.rmtree(folder / "feature_sets")
    (folder / "model.yaml").write_text(MODEL, encoding="utf-8")
    return Shop(folder)


def does(summary: Summary) -> dict[str, str]:
    return {name: found["does"] for name, found in summary.stages.items()}


def kill_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, when: Callable[..., bool]) -> None:
    """Kill instead of a call for which `when` holds."""
    original = getattr(owner, name)

    def call(*arguments: Any, **named: Any) -> Any:
        if when(*arguments):
            raise Killed
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, call)


def kill() -> None:
    raise Killed
