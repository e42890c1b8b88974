"""Finished runs read back: the model of one with the feature set it was trained on, and the control of a recent one."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file

from ctr.config import ModelConfig, Preset, TrainConfig
from ctr.model.click_model import ClickModel
from ctr.training.checkpoint import MODEL
from features.contract.settings import validate
from features.errors import ConfigError
from features.store.feature_set import FeatureSet
from pipelines.job.fitting import new_model
from pipelines.workspace import CONFIG, METRICS, Workspace, feature_set_of, started_at

TARGET_ONLY = "target_only"  # the control's key among controls, and its folder in a run's


class LoadedRun(NamedTuple):
    """A finished run.

    Args:
        folder: its folder, named by the run id.
        model: in evaluation mode, its tables attached.
        feature_set: it was trained on.
    """

    folder: Path
    model: ClickModel
    feature_set: FeatureSet


def load_run(run_id: str, workspace: Workspace) -> LoadedRun:
    """Read a finished run. `latest` is resolved here, once: take the folder from what is returned.

    Args:
        run_id: or `latest`.
        workspace: where the run is.

    Raises:
        ConfigError: no such run, one of an older version, or its feature set was built from another contract.
        DataError: its feature set is gone.
    """
    return load_trained(workspace.run(run_id), workspace)


def load_trained(run_dir: Path, workspace: Workspace) -> LoadedRun:
    """Read a run that is trained and calibrated, whether or not it was evaluated.

    Raises:
        ConfigError, DataError: as `load_run`.
    """
    config = json.loads((run_dir / CONFIG).read_text(encoding="utf-8"))
    preset = _preset(run_dir, config["preset"])
    feature_set = FeatureSet.open(feature_set_of(run_dir, workspace))
    if feature_set.manifest.fingerprint != config["contract_fingerprint"]:
        raise ConfigError(f"{feature_set.path}: built from another contract than run {run_dir.name} was trained on.")
    model = new_model(preset.model, feature_set, preset.train.seed)
    try:
        model.load_state_dict(load_file(run_dir / MODEL))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ConfigError(
            f"{run_dir / MODEL}: weights of another version of the model ({reason}) Train again."
        ) from None
    return LoadedRun(run_dir, model.eval(), feature_set)


def _preset(run_dir: Path, content: dict[str, Any]) -> Preset:
    known = {"model": ModelConfig.model_fields, "train": TrainConfig.model_fields}
    unknown = [f"{part}.{key}" for part, fields in known.items() for key in content.get(part, {}) if key not in fields]
    if unknown:
        raise ConfigError(
            f"{run_dir / CONFIG}: {len(unknown)} settings that this version of QuadRank does not have, for example "
            f"{unknown[0]!r}: another version trained run {run_dir.name}. Train again, or read it with that version."
        )
    return validate(Preset, content, str(run_dir / CONFIG))


def recent_control(preset: Preset, feature_set: FeatureSet, workspace: Workspace, since: datetime) -> Any:
    """The target-only control of the newest finished run that trained it and began after `since`; None without one.

    Such a run has the same contract, model and training settings, `controls` and `tracking` apart, and judged by the
    same split. Its rows may be others: those of its own day.

    Returns:
        Metrics, and `run_id` and `day` of that run.
    """
    for record in sorted(workspace.runs.glob(f"*/{METRICS}"), reverse=True):
        run_dir = record.parent
        started = started_at(run_dir.name)
        if started is None or started <= since:
            continue
        config = json.loads((run_dir / CONFIG).read_text(encoding="utf-8"))
        alike = config["contract_fingerprint"] == feature_set.manifest.fingerprint
        if not alike or _without_controls(config["preset"]) != _without_controls(preset.model_dump(mode="json")):
            continue
        found = json.loads(record.read_text(encoding="utf-8"))
        control = found.get("controls", {}).get(TARGET_ONLY, {})
        if control.get("run_id") == run_dir.name and feature_set.judged_by in found["metrics"]:
            return control
    return None


def _without_controls(preset: dict[str, Any]) -> dict[str, Any]:
    changes_nothing = ("controls", "checkpoint", "tracking")
    return preset | {"train": {key: value for key, value in preset["train"].items() if key not in changes_nothing}}
