"""When to stop: the gain that is still expected of a sweep, against what the validation rows can tell apart.

The gain is that of a Gaussian process over the finished trials: the mean, over surfaces drawn from it, of how far the
best of many settings lies above the best trial. The noise is the half width of the 95 % interval of a difference of two
trials, of users (paired, by bootstrap) and of trainings (the scatter that the process cannot explain). Where the first
is below the second, more trials may still find another winner, but these rows cannot tell that it is one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

FEWEST_TRIALS = 10  # with fewer the process knows nothing, and would call everything noise
MOST_TRIALS = 200  # newest ones; the time grows with the cube
CANDIDATES, SURFACES = 128, 64
LEADERS = 16  # trials that a surface may lift above the best one
NORMAL_95 = 1.96
JITTER = 1e-9
USERS = "noise"  # attribute of a trial: half width of its difference to another one, over users
SAME_AS = "same_as"  # attribute of a trial: number of the one that had its settings before, and whose result it took


@dataclass(frozen=True)
class Outlook:
    """What more trials may bring.

    Args:
        expected: gain above the best trial, in the unit of the metric; at least 0.
        noise: half width of the 95 % interval of a difference of two trials.
    """

    expected: float
    noise: float

    @property
    def hopeless(self) -> bool:
        """Whether no gain above noise is expected."""
        return self.expected < self.noise


def outlook(trials: Sequence[FrozenTrial], maximize: bool, seed: int = 0) -> Outlook | None:
    """What more trials may bring; None while there are too few, or no two of them were compared by user.

    Args:
        trials: of the study.
        maximize: whether higher is better.
        seed: of the drawn settings and surfaces.
    """
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE and trial.value is not None]
    # Equal results at one place would look as if trainings had no scatter.
    done = [trial for trial in complete if SAME_AS not in trial.user_attrs]
    compared = [trial for trial in done if USERS in trial.user_attrs]
    if len(done) < FEWEST_TRIALS or not compared:
        return None
    done = done[-MOST_TRIALS:]
    values = np.array([trial.value for trial in done], float) * (1 if maximize else -1)
    of_users = float(compared[-1].user_attrs[USERS])
    spread = float(values.std())
    if values.min() == values.max():
        return Outlook(0.0, of_users)
    space = {name: found for trial in done for name, found in trial.distributions.items()}
    if not space:
        return None
    points = np.array([coordinates(trial.params, space) for trial in done])
    draw = np.random.default_rng(seed)
    leaders = np.argsort(-values, kind="stable")[:LEADERS]
    candidates = np.vstack([random_points(space, CANDIDATES, draw), points[leaders]])
    # These matrices are so small that a second thread would only wait.
    with threadpool_limits(1):
        process = _fitted(points, (values - values.mean()) / spread)
        surfaces = _surfaces(process, candidates, draw)
    expected = float((surfaces.max(axis=0) - surfaces[CANDIDATES]).mean()) * spread
    of_training = math.sqrt(float(process.kernel_.k2.noise_level)) * spread
    return Outlook(max(0.0, expected), math.hypot(of_users, NORMAL_95 * math.sqrt(2) * of_training))


def coordinates(params: Mapping[str, object], space: Mapping[str, BaseDistribution]) -> list[float]:
    """Drawn values as numbers from 0 to 1, a choice as one of several; the middle where a setting was not searched."""
    found: list[float] = []
    for name, distribution in space.items():
        if isinstance(distribution, CategoricalDistribution):
            found += [float(name in params and params[name] == choice) for choice in distribution.choices]
        elif name not in params:
            found.append(0.5)
        else:
            low, high, value = _scaled(distribution, float(params[name]))  # type: ignore[arg-type]
            found.append((value - low) / (high - low) if low < high else 0.5)
    return found


def random_points(space: Mapping[str, BaseDistribution], count: int, draw: np.random.Generator) -> np.ndarray:
    """Settings drawn evenly from a space, in `coordinates`, [count, width]."""
    columns: list[np.ndarray] = []
    for distribution in space.values():
        if isinstance(distribution, CategoricalDistribution):
            chosen = draw.integers(len(distribution.choices), size=count)
            columns += [(chosen == place).astype(float) for place in range(len(distribution.choices))]
        else:
            columns.append(draw.random(count))
    return np.stack(columns, axis=1)


def _scaled(distribution: BaseDistribution, value: float) -> tuple[float, float, float]:
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = float(distribution.low), float(distribution.high)
    if distribution.log:
        return math.log(low), math.log(high), math.log(value)
    return low, high, value


def _surfaces(process: GaussianProcessRegressor, points: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Surfaces drawn from the process at these points, without the scatter of trainings, [points, SURFACES]."""
    mean, covariance = process.predict(points, return_cov=True)
    scatter = float(process.kernel_.k2.noise_level)
    smooth = covariance - (scatter - JITTER) * np.eye(len(points))
    values, vectors = np.linalg.eigh(smooth)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    return mean[:, None] + root @ draw.standard_normal((len(points), SURFACES))


def _fitted(points: np.ndarray, values: np.ndarray) -> GaussianProcessRegressor:
    kernel = ConstantKernel(1.0, (0.1, 10)) * Matern(1.0, (0.1, 10), nu=2.5) + WhiteKernel(0.1, (1e-4, 1.0))
    process = GaussianProcessRegressor(kernel)
    with warnings.catch_warnings():
        # A best fit at the end of a range of lengths is a fit.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return process.fit(points, values)
