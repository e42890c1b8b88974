"""Stage 5: the best weights of a run -> a verified ONNX bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from ctr.export import ExportResult, export_bundle
from ctr.models.click_model import ClickModel
from features.atomic import write_text
from features.feature_set import FeatureSet
from pipelines.load_run import load_run
from pipelines.workspace import Workspace


def export_model(
    model: ClickModel, feature_set: FeatureSet, run_dir: Path, out: Path, console: Console
) -> ExportResult:
    """Fold, export, prove parity and publish; writes an example request beside the bundle."""
    record = json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))
    config = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
    of_tasks = {
        f"{split}: {name}": values for split, tasks in record["tasks"].items() for name, values in tasks.items()
    }
    result = export_bundle(
        model,
        feature_set,
        out,
        model_version=run_dir.name,
        architecture=config["preset"]["model"]["architecture"],
        metrics=record["metrics"] | of_tasks,
        controls=record["controls"],
        git_revision=config["git_revision"],
    )
    golden = json.loads((out / "golden.json").read_text(encoding="utf-8"))
    write_text(out.parent / "request.json", json.dumps(golden["cases"][0]["request"], indent=2, ensure_ascii=False))
    console.print(
        f"bundle {result.path}: {result.bytes / 2**20:.1f} MiB, largest |ONNX - torch| "
        f"{result.max_abs_difference:.1e}, {result.max_logit_difference:.1e} in logits"
    )
    return result


def export_run(run_id: str, out: Path | None, workspace: Workspace, console: Console) -> dict[str, Any]:
    """Export a finished run again, from its folder alone.

    Raises:
        ConfigError: no such run, or its feature set is gone.
    """
    run_dir = workspace.run(run_id)
    model, feature_set = load_run(run_id, workspace)
    target = out or workspace.bundles(feature_set.contract.name) / run_dir.name
    result = export_model(model, feature_set, run_dir, target, console)
    return {
        "run_id": run_dir.name,
        "bundle": str(result.path),
        "bytes": result.bytes,
        "max_abs_difference": result.max_abs_difference,
        "max_logit_difference": result.max_logit_difference,
        "seconds": result.seconds,
    }
