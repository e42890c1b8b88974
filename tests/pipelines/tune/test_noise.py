"""When to stop: expected gain and noise of studies whose surface is known."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from pipelines.tune.noise import FEWEST_TRIALS, USERS, Outlook, coordinates, outlook, random_points

AXIS = {"x": FloatDistribution(0.0, 1.0)}


def trials(places: np.ndarray, values: np.ndarray, noise: float | None = 0.01) -> list[FrozenTrial]:
    """Complete trials of one setting; the newest was compared by user with the half width `noise`."""
    study = optuna.create_study(direction="maximize")
    for place, value in zip(places, values, strict=True):
        study.add_trial(optuna.create_trial(params={"x": float(place)}, distributions=AXIS, value=float(value)))
    found = study.trials
    if noise is not None:
        found[-1].user_attrs[USERS] = noise
    return found


PLACES = np.linspace(0.0, 0.5, 12)


def test_nothing_is_told_before_ten_trials_or_without_a_comparison() -> None:
    assert FEWEST_TRIALS == 10
    assert outlook(trials(PLACES[:9], PLACES[:9]), maximize=True) is None
    assert outlook(trials(PLACES, PLACES, noise=None), maximize=True) is None
    assert outlook(trials(PLACES, PLACES), maximize=True) is not None


def test_a_slope_that_goes_on_promises_more() -> None:
    """Half of the axis was searched, and the value still rises with it."""
    found = outlook(trials(PLACES, PLACES), maximize=True)
    assert found is not None and 0.2 < found.expected < 1.0 and not found.hopeless


def test_a_loss_that_still_falls_promises_more() -> None:
    falling, rising = (outlook(trials(PLACES, sign * PLACES), maximize=False) for sign in (-1, 1))
    assert falling is not None and rising is not None
    assert falling.expected > 0.2 and falling.expected > 4 * rising.expected


def test_a_hill_whose_top_was_found_promises_nothing_above_noise() -> None:
    places = np.linspace(0.0, 1.0, 21)
    found = outlook(trials(places, -((places - 0.5) ** 2)), maximize=True)
    assert found is not None and found.expected < 0.005 and found.hopeless


def test_scatter_alone_is_noise() -> None:
    """Values that no setting explains: their scatter s widens the noise to about 1.96 · √2 · s."""
    draw = np.random.default_rng(1)
    values = 0.01 * draw.standard_normal(40)
    found = outlook(trials(draw.random(40), values, noise=0.0), maximize=True)
    assert found is not None and found.hopeless
    assert found.noise == pytest.approx(1.96 * math.sqrt(2) * values.std(), rel=0.2)
    # Of many trainings the luckiest lies far above the best setting: luck is no gain.
    assert found.expected < values.std()


def test_equal_values_leave_the_noise_of_users() -> None:
    found = trials(PLACES, np.full(12, 0.7), noise=0.004)
    found[3].user_attrs[USERS] = 0.5  # compared with a trial that led then
    assert outlook(found, maximize=True) == Outlook(0.0, 0.004)


def test_of_trials_that_drew_nothing_nothing_is_told() -> None:
    study = optuna.create_study(direction="maximize")
    for value in PLACES:
        study.add_trial(optuna.create_trial(value=float(value), user_attrs={USERS: 0.01}))
    assert outlook(study.trials, maximize=True) is None


def test_a_range_of_one_value_is_a_middle() -> None:
    """A storage may have one of an earlier version: Optuna narrows a range to what its step reaches."""
    assert coordinates({"layers": 1}, {"layers": IntDistribution(1, 1)}) == [0.5]


def test_of_many_trials_the_newest_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.tune.noise.MOST_TRIALS", 10)
    found = trials(PLACES, np.where(np.arange(12) < 2, 9.0, PLACES))
    assert outlook(found, maximize=True) == outlook(found[2:], maximize=True)


def test_only_complete_trials_count() -> None:
    found = trials(PLACES, PLACES)
    for one in found[:3]:
        one.state = TrialState.PRUNED
    assert outlook(found, maximize=True) is None


def test_a_study_is_told_the_same_twice() -> None:
    found = trials(PLACES, PLACES)
    assert outlook(found, maximize=True, seed=3) == outlook(found, maximize=True, seed=3)


@pytest.mark.parametrize(("expected", "noise", "hopeless"), [(0.1, 0.2, True), (0.2, 0.1, False), (0.1, 0.1, False)])
def test_hopeless_is_a_gain_below_noise(expected: float, noise: float, hopeless: bool) -> None:
    assert Outlook(expected, noise).hopeless is hopeless


SPACE = {
    "rate": FloatDistribution(0.001, 0.1, log=True),
    "layers": IntDistribution(1, 5),
    "tower": CategoricalDistribution(["a", "b"]),
}


@pytest.mark.parametrize(
    ("params", "found"),
    [
        ({"rate": 0.01, "layers": 2, "tower": "b"}, [0.5, 0.25, 0.0, 1.0]),
        ({"rate": 0.001, "layers": 5}, [0.0, 1.0, 0.0, 0.0]),
        ({"tower": "a"}, [0.5, 0.5, 1.0, 0.0]),
    ],
)
def test_drawn_values_are_coordinates_from_0_to_1(params: dict[str, object], found: list[float]) -> None:
    assert coordinates(params, SPACE) == pytest.approx(found)


def test_random_settings_have_one_choice_each() -> None:
    found = random_points(SPACE, 50, np.random.default_rng(0))
    assert found.shape == (50, 4) and found.min() >= 0 and found.max() <= 1
    assert set(map(tuple, found[:, 2:])) == {(0.0, 1.0), (1.0, 0.0)}
