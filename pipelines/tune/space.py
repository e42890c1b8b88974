"""The search space of a sweep: ranges of settings, and the metric that ranks the trials."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from pydantic import BaseModel, Field, PositiveInt, field_validator, model_validator

from ctr.config import ModelConfig, TrainConfig
from features.contract.settings import Settings, load_yaml, unknown_key, validate

Direction = Literal["maximize", "minimize"]
SECTIONS: dict[str, type[BaseModel]] = {"model": ModelConfig, "train": TrainConfig}
DIRECTIONS: dict[str, Direction] = {"auc": "maximize", "gauc_by_samples": "maximize", "log_loss": "minimize"}


class Range(Settings):
    """One searched setting: `choices`, or a range `low`..`high` (whole numbers stay whole)."""

    choices: list[Any] | None = None
    low: float | int | None = None
    high: float | int | None = None
    log: bool = False

    @model_validator(mode="after")
    def _one_form(self) -> Range:
        ranged = self.low is not None and self.high is not None
        if bool(self.choices) == ranged:
            raise ValueError("give either `choices`, or both `low` and `high`")
        if ranged and self.low >= self.high:  # type: ignore[operator]  # both are numbers when ranged
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")
        return self

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        """Draw a value for this trial."""
        if self.choices:
            return trial.suggest_categorical(name, self.choices)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log)
        return trial.suggest_float(name, float(self.low or 0), float(self.high or 0), log=self.log)


class SearchSpace(Settings):
    """`conf/tune.yaml`: what is searched, and by which metric. Whether higher is better follows from the metric."""

    metric: Literal["auc", "log_loss", "gauc_by_samples"] = "auc"
    direction: Direction | None = Field(None, description="optional; must be the metric's")
    seed: int = 1
    startup_trials: PositiveInt = 5
    space: dict[str, Range] = Field(min_length=1)

    @property
    def better(self) -> Direction:
        """Whether a higher or a lower value of the metric is better."""
        return DIRECTIONS[self.metric]

    def sampler(self, trial: int) -> optuna.samplers.TPESampler:
        """The sampler of one trial, seeded by its number.

        Workers of one study have trials of different numbers, so none repeats another's draws; a sweep of one worker
        draws the same trials each time.
        """
        seed = int(np.random.SeedSequence([self.seed, trial]).generate_state(1)[0])
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.startup_trials)

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Draw a value of each searched setting: `{"train.learning_rate": 0.001}`."""
        return {name: found.suggest(trial, name) for name, found in self.space.items()}

    def any_values(self) -> dict[str, Any]:
        """One allowed value of each searched setting, in the form of `suggest`."""
        return {name: found.choices[0] if found.choices else found.low for name, found in self.space.items()}

    @model_validator(mode="after")
    def _direction_is_the_metrics(self) -> SearchSpace:
        if self.direction not in (None, self.better):
            raise ValueError(
                f"direction: {self.direction} would choose the worst model by {self.metric}. Leave the key out: it is "
                f"{self.better}"
            )
        return self

    @field_validator("space")
    @classmethod
    def _keys_are_settings(cls, space: dict[str, Range]) -> dict[str, Range]:
        for name in space:
            section, _, key = name.partition(".")
            if section not in SECTIONS or not key or "." in key:
                raise ValueError(f"{name!r} must be model.KEY or train.KEY")
            if key not in SECTIONS[section].model_fields:
                raise ValueError(f"{name!r} is no setting. {unknown_key(key, list(SECTIONS[section].model_fields))}")
        return space


def load_space(path: Path) -> SearchSpace:
    """Read a search space. Raises ConfigError for a missing file, an unknown key or an impossible value."""
    return validate(SearchSpace, load_yaml(path), str(path))


def by_section(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`{"train.epochs": 2}` as `{"train": {"epochs": 2}}`."""
    nested: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, key = name.split(".")
        nested.setdefault(section, {})[key] = value
    return nested
