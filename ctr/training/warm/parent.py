"""The run that a warm start goes on from, read back from its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ctr.config import Preset
from ctr.model.click_model import ClickModel
from ctr.training.checkpoint import MODEL, read_optimizer
from ctr.training.train_step import Moments, TrainStep
from features.encoding.encoder import Encoder
from features.errors import ConfigError
from features.store.feature_set import FeatureSet


@dataclass(frozen=True)
class Parent:
    """A finished run that another one goes on from.

    Args:
        run_id: of the run.
        generation: how many warm starts lie between the last full training and it; 0 for a full training.
        model: of its kind and size, without tables: it tells what each weight belongs to.
        weights: its best ones, by name.
        moments: of its optimisers, by the name of their parameter; None where they were cleaned away.
        feature_set: it was trained on.
        encoder: of that feature set.
    """

    run_id: str
    generation: int
    model: ClickModel
    weights: dict[str, Tensor]
    moments: Moments | None
    feature_set: FeatureSet
    encoder: Encoder

    @classmethod
    def read(cls, folder: Path, preset: Preset, feature_set: FeatureSet, generation: int = 0) -> Parent:
        """Read a finished run.

        Args:
            folder: of the run; its name is the run's id.
            preset: its settings.
            feature_set: it was trained on.
            generation: as above.

        Raises:
            ConfigError: its weights are those of another version of the model.
            DataError: its feature set has no encoder, or its checkpoint is damaged.
        """
        model = ClickModel(preset.model, feature_set.schema)
        try:
            model.load_state_dict(load_file(folder / MODEL))
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise ConfigError(
                f"{folder / MODEL}: weights of another version of the model ({reason}) No training can go on from "
                "them: train without --warm-start."
            ) from None
        saved = read_optimizer(folder)
        moments = None
        if saved is not None:
            step = TrainStep(model, preset.train.model_copy(update={"compile": False}), torch.device("cpu"))
            step.load_state(saved)
            moments = step.moments()
        return cls(
            folder.name, generation, model, model.state_dict(), moments, feature_set, Encoder.load(feature_set.path)
        )

    @property
    def newest(self) -> int:
        """Time of the newest row that it was trained on, µs since 1970."""
        return self.feature_set.manifest.windows["train"].last_time
