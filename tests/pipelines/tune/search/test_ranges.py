"""One searched setting: what is a range, what it draws, when it is searched, how far it reaches."""

from __future__ import annotations

import optuna
import pytest

from features.contract.settings import validate
from features.errors import ConfigError
from pipelines.tune.search.ranges import Range


def of(**content: object) -> Range:
    return validate(Range, content, "tune.yaml")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"low": 3, "high": 3}, "low must be below high, got 3 and 3"),
        ({"low": 0.4, "high": 0.1}, "low must be below high, got 0.4 and 0.1"),
        ({"choices": []}, "give either `choices`, or both `low` and `high`"),
        ({"low": 1}, "give either `choices`, or both `low` and `high`"),
        ({"choices": [1], "low": 1, "high": 2}, "give either `choices`"),
        ({"choices": [8, 16, 8]}, "a value is named twice"),
        ({"choices": [8, 16], "log": True}, "log and step belong to a range"),
        ({"low": 0.0, "high": 1.0, "log": True}, "log needs low above 0, got 0.0"),
        ({"low": 1, "high": 9, "step": 2, "log": True}, "step must be above 0, and goes without log"),
        ({"low": 1, "high": 9, "step": 0}, "step must be above 0"),
        ({"low": 1, "high": 2, "step": 4}, "step 4 is wider than the range 1..2"),
        ({"low": 0.1, "high": 0.4, "step": 0.31}, "step 0.31 is wider than the range"),
        ({"low": 1, "hihg": 9}, "Did you mean 'high'"),
    ],
)
def test_what_is_no_range_is_refused(content: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        of(**content)


@pytest.mark.parametrize(
    ("found", "kind", "allowed"),
    [
        (of(low=1, high=3), int, {1, 2, 3}),
        (of(low=512, high=2048, step=512), int, {512, 1024, 1536, 2048}),
        (of(choices=[[256, 128], [64]]), list, None),
        (of(choices=["a", "b"]), str, {"a", "b"}),
        (of(low=1, high=9, step=4.0), int, {1, 5, 9}),
        # Whole ends with a step that is not are no range of whole numbers.
        (of(low=0, high=1, step=0.25), float, {0.0, 0.25, 0.5, 0.75, 1.0}),
    ],
)
def test_a_value_keeps_its_kind(found: Range, kind: type, allowed: set[object] | None) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    drawn = [found.suggest(study.ask(), "x") for _ in range(40)]
    assert {type(one) for one in drawn} == {kind}
    assert allowed is None or set(drawn) == allowed


@pytest.mark.filterwarnings("error")
def test_a_list_is_kept_as_its_text() -> None:
    """Optuna warns of values that a storage cannot keep."""
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1)).ask()
    found = of(choices=[[256, 128], [64]])
    value = found.suggest(trial, "x")
    assert trial.params["x"] == found.stored(value) == str(value)


def test_a_logarithmic_range_draws_as_many_below_its_geometric_middle() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    drawn = [of(low=0.0001, high=1.0, log=True).suggest(study.ask(), "x") for _ in range(200)]
    assert 80 < sum(one < 0.01 for one in drawn) < 120


@pytest.mark.parametrize(
    ("found", "value", "ends"),
    [
        (of(low=0.1, high=0.4), 0.2, (0.1, 0.4)),
        (of(low=0.1, high=0.4), 0.6, (0.1, 0.6)),
        (of(low=2, high=3), 1, (1, 3)),
        (of(low=8, high=32, step=8), 50, (8, 56)),
        (of(low=8, high=32, step=8), 3, (0, 32)),
        (of(low=8, high=32, step=8), 20, (8, 32)),
        (of(low=0.2, high=0.4, step=0.1), 0.7, (0.2, 0.7)),
    ],
)
def test_a_range_is_widened_to_the_current_value(found: Range, value: float, ends: tuple[float, float]) -> None:
    assert found.reaching(value).bounds == ends


@pytest.mark.parametrize(
    ("found", "value", "ends"),
    [
        (of(low=512, high=2048, step=512), 256, (256, 1792)),
        (of(low=512, high=2048, step=512), 2100, (564, 2100)),
        (of(low=0.2, high=0.8, step=0.3), 0.9, (0.3, 0.9)),
        (of(low=0.1, high=0.4), 0.6, (0.1, 0.6)),
    ],
)
def test_the_steps_of_a_range_may_count_from_the_current_value(
    found: Range, value: float, ends: tuple[float, float]
) -> None:
    assert found.ending_at(value).bounds == ends


def test_the_values_that_stand_for_whole_ends_with_a_step_between_are_read_between_them() -> None:
    """So that a number of layers of 2.5 is refused before the first trial."""
    assert of(low=1, high=4, step=1.5).ends() == [1, 4, 2.5]


def test_a_range_that_reaches_the_current_value_stays_as_it_is() -> None:
    found, choices = of(low=0.1, high=0.4), of(choices=[1, 2])
    assert found.reaching(0.4) is found and choices.reaching(2) is choices
    assert choices.reaching(3).choices == [1, 2, 3]


@pytest.mark.parametrize(
    ("found", "value", "words"),
    [
        (of(low=0.1, high=0.4, log=True), 0.0, "it is 0.0, which no logarithmic range reaches"),
        (of(low=1, high=4), "sparse", "it is 'sparse', which no range reaches"),
        (of(low=1, high=4), 2.5, "the range is of whole numbers"),
    ],
)
def test_what_no_range_reaches_is_told(found: Range, value: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        found.reaching(value)


@pytest.mark.parametrize(
    ("when", "settings", "applies"),
    [
        ({}, {}, True),
        ({"model.tower": "quadratic"}, {"model.tower": "quadratic"}, True),
        ({"model.tower": "quadratic"}, {"model.tower": "mlp"}, False),
        ({"model.tower": ["quadratic", "cross"]}, {"model.tower": "cross"}, True),
        ({"model.tower": "quadratic", "model.layers": 2}, {"model.tower": "quadratic", "model.layers": 1}, False),
        ({"model.tower": "quadratic"}, {}, False),
    ],
)
def test_a_condition_names_values_of_other_settings(
    when: dict[str, object], settings: dict[str, object], applies: bool
) -> None:
    assert of(low=1, high=2, when=when).applies(settings) is applies


@pytest.mark.parametrize(
    ("found", "values"),
    [
        (of(low=1, high=3), [1, 2, 3]),
        (of(low=0.0, high=0.3, step=0.1), [0.0, 0.1, 0.2, 0.3]),
        (of(low=0.4, high=0.7, step=0.3), [0.4, 0.7]),
        (of(low=1, high=3, step=0.5), [1.0, 1.5, 2.0, 2.5, 3.0]),
        (of(choices=["a", None]), ["a", None]),
        (of(low=0.0, high=1.0), []),
    ],
)
def test_a_grid_has_the_values_of_a_range_with_steps(found: Range, values: list[object]) -> None:
    assert found.values() == values
