"""The best settings of a study as a bundle that has learned from the validation rows, too: `--bundle-best`.

No row is left that could end the training or calibrate it. The winner's trainings of the study had such rows: the
number of epochs and the calibration are theirs. Test rows, which nobody has learned from, say how good the bundle is.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ctr.config import Preset
from ctr.training.checkpoint import CURVE, MODEL, Evaluation
from features.errors import ConfigError
from features.store.feature_set import FeatureSet, SplitName
from pipelines.job.build import build
from pipelines.job.export import export_model
from pipelines.job.train import Job
from pipelines.job_settings import JobSettings
from pipelines.tune.outcome import Outcome, decoded
from pipelines.tune.search.resolve import with_values


class TrainAndValid(FeatureSet):
    """A feature set whose training rows are those of training and of validation.

    Args:
        whole: where rows come from.
    """

    def __init__(self, whole: FeatureSet) -> None:
        super().__init__(whole.path, whole.manifest)
        windows = whole.manifest.windows
        train, valid = windows["train"], windows["valid"]
        both = train.model_copy(
            update={
                "rows": train.rows + valid.rows,
                "positives": train.positives + valid.positives,
                "first_time": min(train.first_time, valid.first_time),
                "last_time": max(train.last_time, valid.last_time),
            }
        )
        self.manifest = whole.manifest.model_copy(update={"windows": {**windows, "train": both}})

    def rows(self, split: SplitName) -> list[dict[str, np.ndarray]]:
        """The row columns of a split, one dict a part."""
        return self._both_rows if split == "train" else super().rows(split)

    def events(self, split: SplitName) -> list[dict[str, np.ndarray]]:
        """The event columns that the rows of a split point into, one dict a part."""
        return self._both_events if split == "train" else super().events(split)

    @cached_property
    def _both_rows(self) -> list[dict[str, np.ndarray]]:
        return [*super().rows("train"), *super().rows("valid")]

    @cached_property
    def _both_events(self) -> list[dict[str, np.ndarray]]:
        return [*super().events("train"), *super().events("valid")]


def require_bundle(settings: JobSettings) -> None:
    """Refuse before the study what could not be done after it; `require_labels` asks the feature set.

    Raises:
        ConfigError: a model with trees, whose number and share are chosen by validation rows.
    """
    _require_no_trees(settings.preset())


def _require_no_trees(preset: Preset) -> None:
    if preset.model.base != "none":
        raise ConfigError(
            "--bundle-best: how many trees count, and for how much, is chosen by validation rows that they have not "
            "seen. Leave the option out, and train the best settings with `quadrank train`."
        )


def require_labels(feature_set: FeatureSet) -> None:
    """Refuse a feature set by whose test rows no bundle could be measured. Raises ConfigError."""
    if feature_set.judged_by != "test":
        raise ConfigError("--bundle-best: the test rows have no labels, so that nobody could say how good it is.")


def bundle_best(found: Outcome, settings: JobSettings) -> Path:
    """Train the best settings on training and validation rows, measure them on test rows, and export the bundle.

    Args:
        found: the outcome of a study.
        settings: those that all trials shared.

    Raises:
        ConfigError: the winner was trained on another machine, has trees, or test rows have no labels.
    """
    folders = [folder for folder in found.winner.folders if (folder / MODEL).is_file()]
    if not folders:
        raise ConfigError(
            f"--bundle-best: the trainings of trial {found.winner.trial} are not on this machine, and the number of "
            "epochs and the calibration are theirs. Start the command where they lie."
        )
    resolved = with_values(settings, decoded(found.search, found.winner.params))
    _require_no_trees(resolved.preset)
    same = resolved.source.contract.fingerprint() == settings.source.contract.fingerprint()
    place = settings.workspace if same else settings.workspace.apart
    whole = build(resolved.source, place).feature_set
    require_labels(whole)
    epochs = epochs_of(folders, resolved.preset)
    train = resolved.preset.train.model_copy(update={"epochs": epochs, "patience": 0, "controls": "never"})
    preset = resolved.preset.model_copy(update={"train": train})
    started = Job.start(preset, TrainAndValid(whole), settings.workspace, settings.console)
    job = replace(started, calibrated_by=folders[0])
    settings.console.print(f"the best settings on training and validation rows, {epochs} epochs")
    with job.tracked(parent_run=found.parent, extra_tags={"stage": "best"}) as tracker:
        model = job.train_and_evaluate(tracker).model
    return export_model(model, job.feature_set, job.run_dir, None, settings.workspace, settings.console).path


def epochs_of(folders: list[Path], preset: Preset) -> int:
    """After how many whole epochs these trainings were at their best, by what early stopping watches; at least 1."""
    metric = preset.train.metric
    sign = 1 if metric == "log_loss" else -1
    best = []
    for folder in folders:
        lines = (folder / CURVE).read_text(encoding="utf-8").splitlines()
        curve = [Evaluation.model_validate_json(line) for line in lines]
        best.append(min(curve, key=lambda one: sign * one.metrics()[metric]).epoch)
    return max(1, round(float(np.mean(best))))
