"""The inputs of a job: data, settings of model and training, workspace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from ctr.config import Preset, load_preset
from features.contract.settings import merge
from pipelines.source import Source
from pipelines.workspace import Workspace

# Settings of training that change nothing in its weights, and those of the evaluation alone.
OF_NO_WEIGHT = ("train.checkpoint.steps", "train.checkpoint.minutes", "train.controls", "train.tracking")


@dataclass(frozen=True)
class JobSettings:
    """The inputs of `train`, `run` and `tune`.

    Args:
        source: contract, and the days of its log that are read.
        contract_file: of that contract.
        model: preset file.
        train: file of training defaults; the preset's own settings go before them.
        overrides: `--set` values of the sections `model` and `train`; they go before both files.
        workspace: where feature sets, runs and bundles are.
        console: where messages are printed.
        pasts: whether the bundle of `run` brings the newest events of each user.
        warm_start: run that the training goes on from, or `champion`; None trains from nothing.
    """

    source: Source
    contract_file: Path
    model: Path
    train: Path
    overrides: Mapping[str, Any]
    workspace: Workspace
    console: Console
    pasts: bool = False
    warm_start: str | None = None

    def preset(self) -> Preset:
        """Read the files. Raises ConfigError for a missing file, an unknown key or an impossible value."""
        return load_preset(self.model, self.train, dict(self.overrides))

    def changed(self, values: Mapping[str, Any]) -> JobSettings:
        """The same with other values on top, by section: `{"train": {"epochs": 2}}`."""
        return replace(self, overrides=merge(dict(self.overrides), dict(values)))
