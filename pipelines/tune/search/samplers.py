"""What draws the settings of a trial, and what ends a trial early."""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial

from features.errors import ConfigError
from pipelines.tune.search.space import SearchSpace

_SIZE = ""  # no setting has this name
NOTHING: Mapping[str, Any] = MappingProxyType({})
REDUCTION = 3  # of Hyperband: a third of the trials goes on at each rung


def sampler(search: SearchSpace, trial: int, current: Mapping[str, Any] = NOTHING) -> optuna.samplers.BaseSampler:
    """What draws one trial, seeded by its number.

    Workers of one study have trials of different numbers, so none repeats another's draws, nor its own after a restart;
    a sweep of one worker draws the same trials each time. QMC has one sequence, seeded by the study.

    Args:
        search: the search space.
        trial: number that the trial will have.
        current: settings by dotted name that are not searched, for `when`.

    Raises:
        ConfigError: cmaes, and its package is not installed.
    """
    seed = int(np.random.SeedSequence([search.seed, trial]).generate_state(1)[0])
    of_study = int(np.random.SeedSequence([search.seed]).generate_state(1)[0])
    samplers = optuna.samplers
    with warnings.catch_warnings():
        # Optuna calls its Gaussian process and its quasi-random sequence experimental.
        warnings.simplefilter("ignore", ExperimentalWarning)
        match search.sampler:
            case "tpe":
                return samplers.TPESampler(seed=seed, n_startup_trials=search.startup_trials)
            case "gp":
                return samplers.GPSampler(seed=seed, n_startup_trials=search.startup_trials)
            case "cmaes":
                _require_cmaes()
                return samplers.CmaEsSampler(
                    seed=seed, n_startup_trials=search.startup_trials, warn_independent_sampling=False
                )
            case "qmc":
                return samplers.QMCSampler(
                    scramble=True, seed=of_study, warn_independent_sampling=False, warn_asynchronous_seeding=False
                )
            case "random":
                return samplers.RandomSampler(seed=seed)
            case "grid":
                return _Grid(search, current, seed)


def pruner(search: SearchSpace, evaluations: int) -> optuna.pruners.BasePruner:
    """What ends a trial before its last evaluation.

    Args:
        search: the search space, whose schedule decides.
        evaluations: of a trial that is trained to its end.
    """
    if search.schedule == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=search.startup_trials, n_warmup_steps=1)
    if search.schedule == "hyperband":
        return optuna.pruners.HyperbandPruner(
            min_resource=1, max_resource=max(evaluations, REDUCTION), reduction_factor=REDUCTION
        )
    return optuna.pruners.NopPruner()


def suggest(search: SearchSpace, trial: optuna.Trial, current: Mapping[str, Any]) -> dict[str, Any]:
    """Draw a value of each searched setting whose `when` holds: `{"train.learning_rate": 0.001}`.

    Args:
        search: the search space.
        trial: gets the values.
        current: settings by dotted name that are not searched, for `when`.
    """
    chosen: dict[str, Any] = {}
    for name, found in search.ordered().items():
        if found.applies({**_not_searched(current, search), **chosen}):
            chosen[name] = found.suggest(trial, name)
    return chosen


def grid_size(search: SearchSpace, current: Mapping[str, Any], given: Mapping[str, Any] = NOTHING) -> float:
    """Number of trials that a grid has, and its conditions leave; infinite for other samplers.

    Args:
        search: the search space.
        current: settings by dotted name that are not searched, for `when`.
        given: values that are fixed, as a study keeps them.
    """
    if search.sampler != "grid":
        return math.inf
    asked = {name for found in search.space.values() for name in found.when}
    points: list[dict[str, Any]] = [{}]
    for name, found in search.ordered().items():
        grown: list[dict[str, Any]] = []
        values = [found.value_of(given[name])] if name in given else found.values()
        for point in points:
            if not found.applies({**_not_searched(current, search), **point}):
                grown.append(point)
            elif name in asked:
                grown += [{**point, name: value} for value in values]
            else:
                grown.append({**point, _SIZE: point.get(_SIZE, 1) * len(values)})
        points = grown
    return sum(point.get(_SIZE, 1) for point in points)


class _Grid(optuna.samplers.BaseSampler):
    """Draws each point of a grid once: a value is drawn in proportion to the points with it that no trial has yet.

    A trial whose worker ended while it drew has a part of its settings, or none: it stands for no point.

    Args:
        search: the search space.
        current: settings by dotted name that are not searched, for `when`.
        seed: of the draws.
    """

    def __init__(self, search: SearchSpace, current: Mapping[str, Any], seed: int) -> None:
        self._search, self._current, self._seed = search, current, seed

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, optuna.distributions.BaseDistribution]:
        """None: each setting is drawn after those that its `when` names."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, optuna.distributions.BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing, likewise."""
        return {}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: optuna.distributions.BaseDistribution,
    ) -> Any:
        """A value of one setting, given those that the trial has already."""
        found, given = self._search.space[param_name], trial.params
        known = {
            frozenset(one.params.items()) for one in study.get_trials(deepcopy=False) if one.number != trial.number
        }
        taken = [dict(point) for point in known if self._is_whole(dict(point)) and given.items() <= dict(point).items()]
        left = []
        for value in map(found.stored, found.values()):
            points = grid_size(self._search, self._current, {**given, param_name: value})
            left.append(max(0.0, points - sum(point.get(param_name) == value for point in taken)))
        chances = np.array(left) if any(left) else np.ones(len(left))
        draw = np.random.default_rng([self._seed, len(given)])
        return found.stored(found.values()[int(draw.choice(len(left), p=chances / chances.sum()))])

    def _is_whole(self, params: Mapping[str, Any]) -> bool:
        """Whether a trial has all settings that its conditions leave."""
        values = _not_searched(self._current, self._search)
        for name, found in self._search.ordered().items():
            if found.applies(values):
                if name not in params:
                    return False
                values[name] = found.value_of(params[name])
        return True


def _not_searched(current: Mapping[str, Any], search: SearchSpace) -> dict[str, Any]:
    return {name: value for name, value in current.items() if name not in search.space}


def _require_cmaes() -> None:
    if importlib.util.find_spec("cmaes") is None:
        raise ConfigError(
            'sampler: cmaes needs the package cmaes, which is not installed. pip install "quadrank[tune]" brings it; '
            "sampler: tpe needs no package."
        )
