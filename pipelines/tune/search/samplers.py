"""What draws the settings of a trial, and what ends a trial early."""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState

from features.errors import ConfigError
from pipelines.tune.search.space import SearchSpace
from pipelines.tune.workers.leases import WORKER

_SIZE = ""  # no setting has this name
REDUCTION = 3  # of Hyperband: a third of the trials goes on at each rung


def sampler(search: SearchSpace, trial: int) -> optuna.samplers.BaseSampler:
    """What draws one trial, seeded by its number.

    Workers of one study have trials of different numbers, so none repeats another's draws, nor its own after a restart;
    a sweep of one worker draws the same trials each time. QMC and the grid have one sequence, seeded by the study.

    Args:
        search: the search space.
        trial: number that the trial will have.

    Raises:
        ConfigError: cmaes, and its package is not installed.
    """
    seed = int(np.random.SeedSequence([search.seed, trial]).generate_state(1)[0])
    of_study = int(np.random.SeedSequence([search.seed]).generate_state(1)[0])
    samplers = optuna.samplers
    with warnings.catch_warnings():
        # Optuna calls its Gaussian process, its quasi-random sequence and its grid experimental.
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
                return _Grid(seed=of_study)


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


def grid_size(search: SearchSpace, current: Mapping[str, Any]) -> float:
    """Number of trials that a grid has, and its conditions leave; infinite for other samplers.

    Args:
        search: the search space.
        current: settings by dotted name that are not searched, for `when`.
    """
    if search.sampler != "grid":
        return math.inf
    asked = {name for found in search.space.values() for name in found.when}
    points: list[dict[str, Any]] = [{}]
    for name, found in search.ordered().items():
        grown: list[dict[str, Any]] = []
        for point in points:
            if not found.applies({**_not_searched(current, search), **point}):
                grown.append(point)
            elif name in asked:
                grown += [{**point, name: value} for value in found.values()]
            else:
                grown.append({**point, _SIZE: point.get(_SIZE, 1) * len(found.values())})
        points = grown
    return sum(point.get(_SIZE, 1) for point in points)


class _Grid(optuna.samplers.BruteForceSampler):
    """Optuna's grid, without trials whose worker ended while it drew them.

    Such a trial has a part of its settings, or none, and Optuna takes them for all that a trial has: it raises at each
    later trial (https://github.com/optuna/optuna/issues/5097).
    """

    @staticmethod
    def _populate_tree(tree: Any, trials: list[FrozenTrial], params: dict[str, Any]) -> None:
        drawn = [one for one in trials if one.state is not TrialState.FAIL or WORKER in one.user_attrs]
        optuna.samplers.BruteForceSampler._populate_tree(tree, drawn, params)


def _not_searched(current: Mapping[str, Any], search: SearchSpace) -> dict[str, Any]:
    return {name: value for name, value in current.items() if name not in search.space}


def _require_cmaes() -> None:
    if importlib.util.find_spec("cmaes") is None:
        raise ConfigError(
            'sampler: cmaes needs the package cmaes, which is not installed. pip install "quadrank[tune]" brings it; '
            "sampler: tpe needs no package."
        )
