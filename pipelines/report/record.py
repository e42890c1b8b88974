"""What a run folder holds: settings, metrics, curve, duration."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctr.training.checkpoint import MODEL
from pipelines.job.summary import Metrics
from pipelines.workspace import CONFIG, config_of, metrics_of


@dataclass(frozen=True)
class RunRecord:
    """The files of a finished run.

    Args:
        run_id: its name.
        config: `config.json`.
        metrics: of the model, by split.
        controls: metrics by name; `target_only` also has `run_id` and `day` of the run that trained it.
        curve: one mapping an evaluation of the validation rows.
        seconds: wall time from the first file to the weights, pauses included.
    """

    run_id: str
    config: dict[str, Any]
    metrics: dict[str, Metrics]
    controls: dict[str, dict[str, Any]]
    curve: list[dict[str, float]]
    seconds: float

    @classmethod
    def read(cls, run_dir: Path) -> RunRecord:
        """Read the folder of a run that was evaluated."""
        record = metrics_of(run_dir)
        config = run_dir / CONFIG
        lines = (run_dir / "curve.jsonl").read_text(encoding="utf-8").splitlines()
        return cls(
            run_id=run_dir.name,
            config=config_of(run_dir),
            metrics=record["metrics"],
            controls=record["controls"],
            curve=[json.loads(line) for line in lines],
            seconds=(run_dir / MODEL).stat().st_mtime - config.stat().st_mtime,
        )
