"""The search space: what may be searched, what is better, what samplers and schedules take, what draws a trial."""

from __future__ import annotations

from collections.abc import Mapping

import optuna
import pytest

from ctr.config import Preset
from features.contract.settings import load_yaml, validate
from features.errors import ConfigError
from pipelines.tune.search.samplers import grid_size, pruner, sampler, suggest
from pipelines.tune.search.space import SearchSpace, by_section, flat
from tests.pipelines.cli.test_commands import ROOT

RATE = {"train.learning_rate": {"low": 0.0003, "high": 0.003, "log": True}}
DROPOUT = {"model.dropout": {"low": 0.0, "high": 0.4}}
SPACE = RATE | DROPOUT


def of(**content: object) -> SearchSpace:
    return validate(SearchSpace, {"space": SPACE} | content, "tune.yaml")


@pytest.mark.parametrize(
    ("metric", "better"),
    [("auc", "maximize"), ("gauc_by_samples", "maximize"), ("group_auc", "maximize"), ("log_loss", "minimize")],
)
def test_what_is_better_follows_from_the_metric(metric: str, better: str) -> None:
    assert of(metric=metric).better == better
    assert of(metric=metric, direction=better).better == better
    worse = {"maximize": "minimize", "minimize": "maximize"}[better]
    with pytest.raises(
        ConfigError, match=f"tune.yaml: .*{worse} would choose the worst model by {metric}.*it is {better}"
    ):
        of(metric=metric, direction=worse)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"model.layerz": {"low": 1, "high": 2}}, "'model.layerz' is no setting. Did you mean 'layers'"),
        ({"tarin.epochs": {"low": 1, "high": 2}}, "'tarin.epochs' must be model.KEY, train.KEY or data.KEY"),
        ({"epochs": {"low": 1, "high": 2}}, "'epochs' must be model.KEY"),
        ({"data.split.valid": {"low": 0.1, "high": 0.2}}, "would give trials other rows"),
        ({"data.interactions.label": {"choices": ["a", "b"]}}, "would give trials other rows"),
        ({"model.rows": {"low": 1, "high": 2, "when": {"model.towr": "mlp"}}}, "Did you mean 'tower'"),
        (
            {
                "model.rows": {"low": 1, "high": 2, "when": {"model.layers": 1}},
                "model.layers": {"low": 1, "high": 2, "when": {"model.rows": 1}},
            },
            "model.rows, model.layers depend on each other in a circle",
        ),
        ({}, "space: "),
    ],
)
def test_what_is_no_setting_is_refused(space: Mapping[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        of(space=space)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"sampler": "grid"}, "grid needs a `step` or `choices` for train.learning_rate"),
        (
            {"sampler": "gp", "space": {"model.tower": {"choices": ["mlp", "cross"]}}},
            "gp searches numbers alone, and model.tower has choices",
        ),
        ({"against": "latency", "schedule": "median"}, "set schedule: none"),
        ({"against": "latency", "schedule": "none", "sampler": "cmaes"}, "cmaes has one objective"),
        ({"against": "latency", "schedule": "none", "stop": "noise"}, "noise weighs one objective"),
        ({"schedule": "sreen"}, "schedule"),
        ({"screen": {"share": 1.0}}, "screen.share"),
        ({"screen": {"shar": 0.5}}, "Did you mean 'share'"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
    ],
)
def test_parts_that_do_not_fit_are_refused(content: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        of(**content)


def test_two_objectives_have_a_direction_each() -> None:
    assert of(against="latency", schedule="none").directions == ["maximize", "minimize"]


def test_only_the_screen_trains_on_a_share() -> None:
    assert of().share == 0.25
    assert [of(schedule=name).share for name in ("median", "hyperband", "none")] == [1.0, 1.0, 1.0]


def test_the_shipped_space_can_be_searched_by_every_sampler_of_numbers() -> None:
    content = load_yaml(ROOT / "conf" / "tune.yaml")
    for name in ("tpe", "gp", "cmaes", "qmc", "random"):
        assert validate(SearchSpace, content | {"sampler": name}, "tune.yaml").sampler == name


def draws(search: SearchSpace, trials: int) -> list[dict[str, float]]:
    """What a study of one worker draws, none of its trials trained."""

    def objective(trial: optuna.Trial) -> float:
        suggest(search, trial, {})
        return float(trial.number % 3)

    study = optuna.create_study()
    for number in range(trials):
        study.sampler = sampler(search, number, {})
        study.optimize(objective, n_trials=1)
    return [trial.params for trial in study.trials]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["tpe", "gp", "qmc", "random"])
def test_each_trial_has_draws_of_its_own_and_a_seed_repeats_them(name: str) -> None:
    search = of(sampler=name, startup_trials=3)
    found = draws(search, 6)
    assert len({trial["train.learning_rate"] for trial in found}) == 6
    assert draws(search, 6) == found
    assert draws(search.model_copy(update={"seed": 2}), 6) != found


def test_a_grid_draws_each_of_its_settings_once() -> None:
    search = of(sampler="grid", space={"model.layers": {"low": 1, "high": 3}, "model.rows": {"choices": [1, 4]}})
    found = draws(search, 6)
    assert grid_size(search, {}) == 6
    assert len({tuple(sorted(trial.items())) for trial in found}) == 6


def test_a_grid_has_what_its_conditions_leave() -> None:
    """Two towers; only one of them has rows, of which there are four."""
    space = {
        "model.rows": {"low": 1, "high": 4, "when": {"model.tower": "quadratic"}},
        "model.tower": {"choices": ["quadratic", "mlp"]},
    }
    assert grid_size(of(sampler="grid", space=space), {}) == 5
    assert grid_size(of(space=space), {}) == float("inf")


@pytest.mark.parametrize("architecture", ["qin", "other"])
def test_a_grid_draws_what_its_conditions_leave_once(architecture: str) -> None:
    """Layers are searched with one architecture alone, which is not searched; a choice may be a list."""
    space = {
        "model.rows": {"low": 1, "high": 3, "when": {"model.hidden": [[16, 8]]}},
        "model.hidden": {"choices": [[8], [16, 8]]},
        "model.layers": {"low": 1, "high": 2, "when": {"model.architecture": "qin"}},
        "model.dropout": {"low": 0.1, "high": 0.3, "step": 0.1},
    }
    search, current = of(sampler="grid", space=space), {"model.architecture": architecture}
    size = int(grid_size(search, current))
    assert size == (4 * 2 * 3 if architecture == "qin" else 4 * 3)
    study = optuna.create_study()
    study.enqueue_trial({"model.hidden": "[8]", "model.dropout": 0.2, "model.layers": 1})
    for number in range(size):
        study.sampler = sampler(search, number, current)
        study.optimize(lambda trial: float(len(suggest(search, trial, current))), n_trials=1)
    assert len({tuple(sorted(one.params.items())) for one in study.trials}) == size


def test_a_seed_repeats_the_order_of_a_grid() -> None:
    search = of(sampler="grid", space={"model.layers": {"low": 1, "high": 3}, "model.rows": {"choices": [1, 4]}})
    assert draws(search, 6) == draws(search, 6)
    assert draws(search, 6) != draws(search.model_copy(update={"seed": 2}), 6)


@pytest.mark.parametrize("drawn", [{}, {"model.layers": 2}])
def test_a_grid_goes_on_after_a_trial_that_ended_before_it_was_drawn(drawn: dict[str, int]) -> None:
    """Its worker was stopped while it drew: without a part of its settings it stands for no point of the grid."""
    search = of(sampler="grid", space={"model.layers": {"low": 1, "high": 3}, "model.rows": {"choices": [1, 4]}})
    study = optuna.create_study()
    scales = {name: optuna.distributions.IntDistribution(1, 3) for name in drawn}
    failed = optuna.create_trial(state=optuna.trial.TrialState.FAIL, params=drawn, distributions=scales)
    for number in range(7):
        study.sampler = sampler(search, number, {})
        if number == 2:
            study.add_trial(failed)
        else:
            study.optimize(lambda trial: float(len(suggest(search, trial, {}))), n_trials=1)
    found = [tuple(sorted(one.params.items())) for one in study.trials if one.values]
    assert len(found) == len(set(found)) == 6


def test_cmaes_without_its_package_says_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"cmaes needs the package cmaes.*quadrank\[tune\]"):
        sampler(of(sampler="cmaes"), 0, {})


def test_cmaes_draws_within_the_space() -> None:
    pytest.importorskip("cmaes", reason="the package cmaes is not installed")
    found = draws(of(sampler="cmaes", startup_trials=2), 6)
    assert all(0.0003 <= trial["train.learning_rate"] <= 0.003 for trial in found)


def test_a_setting_is_drawn_only_where_its_condition_holds() -> None:
    """`rows` stands before the `tower` that it asks for, and is drawn after it all the same."""
    space = {
        "model.rows": {"low": 1, "high": 4, "when": {"model.tower": "quadratic"}},
        "model.tower": {"choices": ["quadratic", "mlp"]},
        "model.layers": {"low": 1, "high": 3, "when": {"model.attention": "sparse"}},
    }
    search = of(space=space)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    drawn = [suggest(search, study.ask(), {"model.attention": "din", "model.tower": "quadratic"}) for _ in range(20)]
    assert {("model.rows" in one, one["model.tower"]) for one in drawn} == {(True, "quadratic"), (False, "mlp")}
    assert not any("model.layers" in one for one in drawn)


@pytest.mark.parametrize(
    ("schedule", "kind"),
    [("screen", "NopPruner"), ("none", "NopPruner"), ("median", "MedianPruner"), ("hyperband", "HyperbandPruner")],
)
def test_a_schedule_has_its_pruner(schedule: str, kind: str) -> None:
    assert type(pruner(of(schedule=schedule), 12)).__name__ == kind


def test_dotted_names_and_nested_sections_are_the_same() -> None:
    names = {"train.epochs": 2, "data.history.max_len": 50, "data.history.events": "all"}
    nested = {"train": {"epochs": 2}, "data": {"history": {"max_len": 50, "events": "all"}}}
    assert by_section(names) == nested and flat(nested) == names
    assert flat(Preset().model_dump(mode="json"))["train.task_weights"] == {}
