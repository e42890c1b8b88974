"""Finished runs read back: the model of one, the control of a recent one, the parent of a warm start."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from safetensors.torch import load_file

from ctr.config import ModelConfig, Preset, TrainConfig
from ctr.model.click_model import ClickModel
from ctr.serving.bundle import MANIFEST, run_of
from ctr.training.checkpoint import MODEL
from ctr.training.warm.agreement import require_agreement
from ctr.training.warm.parent import Parent
from features.contract.settings import validate
from features.encoding.encoder import Encoder
from features.encoding.vocabulary import Vocabulary
from features.errors import ConfigError, DataError
from features.store.feature_set import FeatureSet
from features.store.pointer import CURRENT, follow, named_by
from pipelines.job.fitting import new_model
from pipelines.operate.uses import read_json
from pipelines.workspace import CONFIG, METRICS, Workspace, config_of, feature_set_of, started_at

CHAMPION = "champion"  # of `--warm-start`: the run whose bundle serves
WARM_START = "warm_start"  # in a run's config: what it went on from
TARGET_ONLY = "target_only"  # the control's key among controls, and its folder in a run's
KNOWN_FROM_BEFORE = 0.5  # least share of the users or of the items of a log that it still has when it went on


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
    config = config_of(run_dir)
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
    same split. Its rows may be others of the same log: those of its own day (`_goes_on`).

    Returns:
        Metrics, and `run_id` and `day` of that run.
    """
    for record in sorted(workspace.runs.glob(f"*/{METRICS}"), reverse=True):
        run_dir = record.parent
        started = started_at(run_dir.name)
        if started is None or started <= since:
            continue
        try:
            config = config_of(run_dir)
        except DataError:
            continue
        alike = config["contract_fingerprint"] == feature_set.manifest.fingerprint
        if not alike or _without_controls(config["preset"]) != _without_controls(preset.model_dump(mode="json")):
            continue
        try:
            found = json.loads(record.read_text(encoding="utf-8"))
            control = found["controls"][TARGET_ONLY]
            is_its_own = control["run_id"] == run_dir.name and feature_set.judged_by in found["metrics"]
            if is_its_own and _goes_on(FeatureSet.open(feature_set_of(run_dir, workspace)), feature_set):
                return control
        except DataError:
            continue  # its feature set is gone: nothing tells of which log it was
        except (ValueError, KeyError, TypeError):
            continue  # it has none, or was broken by hand, which is no reason to end another job
    return None


def _goes_on(before: FeatureSet, now: FeatureSet) -> bool:
    """Whether a feature set is of the same input as an earlier one, or of the same log some time later.

    A log goes on where it has newer rows, and most of its users or items are known from before. One that was replaced,
    or corrected, has others, or no newer row.
    """
    if before.manifest.source == now.manifest.source:
        return True
    newest = [max(window.last_time for window in one.manifest.windows.values()) for one in (before, now)]
    if newest[1] <= newest[0]:
        return False
    was, has = Encoder.load(before.path), Encoder.load(now.path)
    known = (_known(was.users, has.users), _known(was.items, has.items))
    return max(known) >= KNOWN_FROM_BEFORE


def _known(before: Vocabulary, now: Vocabulary) -> float:
    """The share of ids that are known still."""
    if before.values.dtype != now.values.dtype or not len(before.values):
        return 0.0
    return int(before.values.is_in(now.values.implode()).sum()) / len(before.values)


def parent_of(
    name: str, preset: Preset, feature_set: FeatureSet, workspace: Workspace, console: Console
) -> Parent | None:
    """The run that `--warm-start NAME` goes on from; None where a full training is due.

    With `champion` that is so where no bundle serves yet, its run is gone or cannot be gone on from, and once in
    `train.warm_start.full_every` runs: the console says why. A run that is named by its id is gone on from or refused.

    Args:
        name: run id, or `champion`.
        preset: settings of the new run.
        feature_set: the new run trains on.
        workspace: where runs and bundles are.
        console: where people read.

    Raises:
        ConfigError: no such run, or it cannot be gone on from.
        DataError: its feature set is gone, or its checkpoint is damaged.
    """
    if name != CHAMPION:
        return _agreeing_parent(name, preset, feature_set, workspace)
    try:
        bundle = workspace.bundles(feature_set.contract.name)
        if named_by(bundle / CURRENT) is None:
            raise ConfigError(f"{bundle / CURRENT}: no bundle serves yet")
        manifest = follow(bundle) / MANIFEST
        version = read_json(manifest).get("model_version")
        if not isinstance(version, str):
            raise DataError(f"{manifest}: does not say which model it is of any more")
        run_id = run_of(version)
        generation, full_every = generation_of(workspace.run(run_id)) + 1, preset.train.warm_start.full_every
        if generation >= full_every:
            console.print(
                f"full training: the champion {run_id} is {generation - 1} warm starts away from the last one, and "
                f"train.warm_start.full_every is {full_every}"
            )
            return None
        return _agreeing_parent(run_id, preset, feature_set, workspace)
    except (ConfigError, DataError) as error:
        console.print(f"full training, as the champion cannot be gone on from: {error}", style="yellow")
        return None


def generation_of(run_dir: Path) -> int:
    """How many warm starts lie between the last full training and a run, itself included; 0 for a full training."""
    config = config_of(run_dir)
    return int((config.get(WARM_START) or {"generation": 0})["generation"])


def _agreeing_parent(run_id: str, preset: Preset, feature_set: FeatureSet, workspace: Workspace) -> Parent:
    run_dir = workspace.run(run_id)
    config = config_of(run_dir)
    trained_on = FeatureSet.open(feature_set_of(run_dir, workspace))
    parent = Parent.read(run_dir, _preset(run_dir, config["preset"]), trained_on, generation_of(run_dir))
    require_agreement(parent, preset.model, feature_set)
    return parent


def _without_controls(preset: dict[str, Any]) -> dict[str, Any]:
    changes_nothing = ("controls", "checkpoint", "tracking")
    return preset | {"train": {key: value for key, value in preset["train"].items() if key not in changes_nothing}}
