"""The search space of a sweep, `conf/tune.yaml`: what is searched, how trials are drawn and scheduled, when it ends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from ctr.config import ModelConfig, TrainConfig
from features.contract.settings import Settings, load_yaml, unknown_key, validate
from pipelines.tune.search.ranges import Plain, Range

Direction = Literal["maximize", "minimize"]
Metric = Literal["auc", "log_loss", "gauc_by_samples", "group_auc"]
SamplerName = Literal["tpe", "gp", "cmaes", "qmc", "random", "grid"]
ScheduleName = Literal["screen", "median", "hyperband", "none"]
SECTIONS: dict[str, type[BaseModel]] = {"model": ModelConfig, "train": TrainConfig}
DATA = "data"
# Sections of a contract that decide which rows there are: trials must be measured on the same rows.
SAME_ROWS = ("name", "interactions", "split", "root")
DIRECTIONS: dict[str, Direction] = {
    "auc": "maximize",
    "gauc_by_samples": "maximize",
    "group_auc": "maximize",
    "log_loss": "minimize",
    "latency": "minimize",
}


class Screen(Settings):
    """The schedule `screen`: all trials on a share of the training rows, then the best in full with several seeds."""

    share: float = Field(0.25, gt=0, lt=1, description="of the users, with all of their training rows")
    best: PositiveInt = Field(2, description="trials that are trained in full, beside the current settings")
    seeds: PositiveInt = Field(3, description="trainings of each of them")


class SearchSpace(Settings):
    """`conf/tune.yaml`. Whether higher is better follows from the metric."""

    metric: Metric = "auc"
    against: Literal["latency"] | None = Field(
        None, description="second objective: milliseconds that the exported bundle takes to rank a request"
    )
    direction: Direction | None = Field(None, description="optional; must be the metric's")
    sampler: SamplerName = "tpe"
    schedule: ScheduleName = "screen"
    screen: Screen = Screen()
    stop: Literal["trials", "noise"] = Field("trials", description="noise: end when no gain above noise is expected")
    seed: NonNegativeInt = 1
    startup_trials: PositiveInt = 5
    space: dict[str, Range] = Field(min_length=1)

    @property
    def better(self) -> Direction:
        """Whether a higher or a lower value of the metric is better."""
        return DIRECTIONS[self.metric]

    @property
    def directions(self) -> list[Direction]:
        """Of each objective, the metric first."""
        return [self.better] if self.against is None else [self.better, DIRECTIONS[self.against]]

    @property
    def share(self) -> float:
        """Share of the training users whose rows a trial of the search is trained on."""
        return self.screen.share if self.schedule == "screen" else 1.0

    def has(self, name: str, stored: Plain) -> bool:
        """Whether a trial may have this value, as a study keeps it, of a searched setting; a grid has no others."""
        found = self.space[name]
        if self.sampler == "grid" and stored not in [found.stored(one) for one in found.values()]:
            return False
        return found.holds(stored)

    def ordered(self) -> dict[str, Range]:
        """The searched settings, each after those that its `when` names."""
        waiting, done = dict(self.space), dict[str, Range]()
        while waiting:
            ready = [name for name, found in waiting.items() if not set(found.when) & set(waiting)]
            for name in ready:
                done[name] = waiting.pop(name)
            if not ready:
                raise ValueError(f"when: {', '.join(waiting)} depend on each other in a circle")
        return done

    @model_validator(mode="after")
    def _parts_fit(self) -> SearchSpace:
        if self.direction not in (None, self.better):
            raise ValueError(
                f"direction: {self.direction} would choose the worst model by {self.metric}. Leave the key out: it is "
                f"{self.better}"
            )
        self.ordered()
        if self.sampler == "grid":
            endless = [name for name, found in self.space.items() if not found.values()]
            if endless:
                raise ValueError(f"sampler: grid needs a `step` or `choices` for {endless[0]}")
        if self.sampler == "gp" and any(found.choices or found.when for found in self.space.values()):
            odd = next(name for name, found in self.space.items() if found.choices or found.when)
            raise ValueError(f"sampler: gp searches numbers alone, and {odd} has choices or `when`; take tpe")
        if self.against is not None and self.sampler == "cmaes":
            raise ValueError("sampler: cmaes has one objective; take tpe, or leave out `against`")
        if self.against is not None and self.schedule != "none":
            raise ValueError("against: trials of two objectives are trained in full; set schedule: none")
        if self.against is not None and self.stop == "noise":
            raise ValueError("stop: noise weighs one objective; set it to trials, or leave out `against`")
        return self

    @field_validator("space")
    @classmethod
    def _keys_are_settings(cls, space: dict[str, Range]) -> dict[str, Range]:
        for name, found in space.items():
            _require_setting(name)
            for other in found.when:
                _require_setting(other)
        return space


def _require_setting(name: str) -> None:
    section, _, key = name.partition(".")
    if section == DATA and key:
        first = key.partition(".")[0]
        if first in SAME_ROWS:
            raise ValueError(
                f"{name!r} would give trials other rows, which cannot be compared. These stay as they are: "
                f"{', '.join(SAME_ROWS)}"
            )
        return
    if section not in SECTIONS or not key:
        raise ValueError(f"{name!r} must be model.KEY, train.KEY or data.KEY")
    if key not in SECTIONS[section].model_fields:
        raise ValueError(f"{name!r} is no setting. {unknown_key(key, list(SECTIONS[section].model_fields))}")


def load_space(path: Path) -> SearchSpace:
    """Read a search space. Raises ConfigError for a missing file, an unknown key or an impossible value."""
    return validate(SearchSpace, load_yaml(path), str(path))


def by_section(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`{"train.epochs": 2, "data.history.max_len": 50}` as nested mappings."""
    nested: dict[str, Any] = {}
    for name, value in values.items():
        *sections, key = name.split(".")
        node = nested
        for section in sections:
            node = node.setdefault(section, {})
        node[key] = value
    return nested


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, by dotted name; the opposite of `by_section`."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
