"""A study is joined only by a sweep that is about the same."""

from __future__ import annotations

import pytest

from features.errors import ConfigError
from pipelines.tune.search.definition import definition, differences, require_same
from pipelines.tune.search.space import SearchSpace

SPACE = {"model.dropout": {"low": 0.0, "high": 0.4}, "data.history.max_len": {"choices": [20, 30]}}
SETTINGS = {"model.dropout": 0.1, "model.layers": 2, "data.history.max_len": 20, "data.history.events": "all"}


def of(settings: dict[str, object] = SETTINGS, version: str = "2026-01-31-ab", **content: object) -> dict[str, object]:
    return definition(SearchSpace.model_validate({"space": SPACE} | content), settings, version)


def test_sampler_seed_and_end_may_change_between_two_starts() -> None:
    assert differences(of(), of(sampler="random", seed=7, stop="noise", screen={"best": 5, "seeds": 4})) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train.tracking", "later"),  # which a message recommends when MLflow is away
        ("train.checkpoint.steps", 100),
        ("train.checkpoint.minutes", 1),
        ("train.controls", "never"),
    ],
)
def test_settings_that_change_no_weight_may_change_too(name: str, value: object) -> None:
    assert differences(of({**SETTINGS, name: "as before"}), of({**SETTINGS, name: value})) == []


def test_searched_settings_are_in_the_space_and_not_among_the_fixed_ones() -> None:
    found = of()
    assert found["space model.dropout"] == "0.0..0.4" and "model.dropout" not in found
    assert found["model.layers"] == 2 and found["data.history.events"] == "all"


def test_a_setting_that_is_searched_under_a_condition_is_fixed_without_it() -> None:
    """Trials whose condition does not hold have its current value."""
    rows = {"model.rows": {"low": 1, "high": 4, "when": {"model.tower": "quadratic"}}}
    before, after = (of({**SETTINGS, "model.rows": now}, space=SPACE | rows) for now in (1, 2))
    assert differences(before, after) == ["model.rows: 1 in the study, 2 now"]


@pytest.mark.parametrize(
    ("other", "line"),
    [
        (of(metric="log_loss"), "metric: auc in the study, log_loss now"),
        (of(screen={"share": 0.5}), "share: 0.25 in the study, 0.5 now"),
        (of(version="2026-02-01-ab"), "feature_set: 2026-01-31-ab in the study, 2026-02-01-ab now"),
        (of({**SETTINGS, "model.layers": 3}), "model.layers: 2 in the study, 3 now"),
        (
            of(space={**SPACE, "model.dropout": {"low": 0.0, "high": 0.6}}),
            "space model.dropout: 0.0..0.4 in the study, 0.0..0.6 now",
        ),
        (
            of(space={**SPACE, "model.rows": {"low": 1, "high": 4}}),
            "space model.rows: nothing in the study, 1..4 now",
        ),
    ],
)
def test_what_differs_is_a_line(other: dict[str, object], line: str) -> None:
    assert differences(of(), other) == [line]


def test_a_condition_that_is_new_differs_and_so_does_the_value_without_it() -> None:
    conditional = {**SPACE, "model.dropout": {"low": 0.0, "high": 0.4, "when": {"model.tower": "mlp"}}}
    assert differences(of(), of(space=conditional)) == [
        "space model.dropout: 0.0..0.4 in the study, 0.0..0.4 (when model.tower is mlp) now",
        "model.dropout: nothing in the study, 0.1 now",
    ]


def test_another_study_is_refused_with_the_difference_and_the_way_out() -> None:
    with pytest.raises(ConfigError) as refused:
        require_same("daily", of(), of(metric="log_loss", schedule="none"))
    text = str(refused.value)
    assert "study 'daily' is about something else" in text
    assert "\n  metric: auc in the study, log_loss now\n" in text
    assert "--from-study daily" in text


def test_many_differences_are_cut() -> None:
    recorded = {f"model.key{number}": 1 for number in range(20)}
    with pytest.raises(ConfigError, match="… and 8 more"):
        require_same("daily", recorded, {})
