"""The current settings in terms of the space: ranges that are widened to them, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from features.errors import ConfigError
from pipelines.tune.search.resolve import reaching_current, require_settings
from tests.pipelines.tune.sweeping import DROPOUT, settings, space

pytestmark = pytest.mark.usefixtures("place")
SIZE = {"train.batch_size": {"low": 512, "high": 2048, "step": 512}}


@pytest.mark.parametrize(("size", "shown"), [(700, "512..2048"), (256, "512..2048")])
def test_a_grid_refuses_current_values_between_its_steps(tmp_path: Path, size: int, shown: str) -> None:
    search = space(sampler="grid", space=SIZE)
    words = rf"train\.batch_size: it is {size} now, which is none of the grid's values.*{shown} \(step 512\).*--set"
    with pytest.raises(ConfigError, match=words):
        reaching_current(search, settings(tmp_path, f"train.batch_size={size}"))


@pytest.mark.parametrize("step", [0.1, 0.05])
def test_a_grid_has_the_current_value_where_its_steps_meet_it(tmp_path: Path, step: float) -> None:
    """Three times 0.1 is a little more than 0.3."""
    search = space(sampler="grid", space={"model.dropout": {"low": 0.0, "high": 0.2, "step": step}})
    found, values, _ = reaching_current(search, settings(tmp_path, "model.dropout=0.3"))
    assert values["model.dropout"] == 0.3 and found.space["model.dropout"].bounds == (0.0, 0.3)


@pytest.mark.parametrize(
    ("searched", "current", "ends"),
    [
        # A full step below 512 would be a batch of no rows.
        (SIZE, "train.batch_size=256", (256, 1792)),
        ({"model.embedding_dim": {"low": 8, "high": 32, "step": 8}}, "model.embedding_dim=4", (4, 28)),
        # A full step above 0.8 would leave nothing of a layer.
        ({"model.dropout": {"low": 0.0, "high": 0.8, "step": 0.4}}, "model.dropout=0.9", (0.1, 0.9)),
        (SIZE, "train.batch_size=2100", (512, 2560)),
    ],
)
def test_a_range_is_widened_to_what_can_be_used(
    tmp_path: Path, searched: dict[str, Any], current: str, ends: tuple[float, float]
) -> None:
    (name,) = searched
    given = settings(tmp_path, current)
    found, _, lines = reaching_current(space(space=searched), given)
    require_settings(given, found)
    assert found.space[name].bounds == ends
    assert len(lines) == 1 and f"is widened to {ends[0]}..{ends[1]}" in lines[0]


@pytest.mark.parametrize("wanted", ["quadratic", ["quadratic", "cross"]])
def test_a_condition_on_a_setting_that_is_not_searched_must_hold_now(tmp_path: Path, wanted: Any) -> None:
    search = space(space=DROPOUT | {"model.rows": {"low": 1, "high": 4, "when": {"model.tower": wanted}}})
    words = r"model\.rows: when: model\.tower is never 'quadratic', it is 'linear' and not searched"
    with pytest.raises(ConfigError, match=words):
        require_settings(settings(tmp_path), search)
    require_settings(settings(tmp_path, "model.tower=quadratic"), search)
