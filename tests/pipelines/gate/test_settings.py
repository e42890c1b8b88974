"""`conf/gate.yaml`: what it says is what the code has, and what is wrong in it is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from features.errors import ConfigError
from pipelines.gate.settings import GateRules, load_gate

FILE = Path(__file__).parents[3] / "conf/gate.yaml"


def test_the_shipped_file_names_every_bound_with_its_default() -> None:
    assert load_gate(FILE) == GateRules()

    def keys(content: dict[str, Any]) -> dict[str, Any]:
        return {name: keys(value) if isinstance(value, dict) else None for name, value in content.items()}

    import yaml

    assert keys(yaml.safe_load(FILE.read_text())) == keys(GateRules().model_dump())


def test_settings_go_before_the_file() -> None:
    found = load_gate(FILE, {"calibration": {"low": 0.7}})
    assert (found.calibration.low, found.calibration.high) == (0.7, 1.25)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"calibraton": 1}, r"gate\.yaml: unknown key 'calibraton'\. Did you mean 'calibration'\?"),
        ({"slices": {"lost_auk": 1}}, r"unknown key 'slices\.lost_auk'\. Did you mean 'lost_auc'\?"),
        ({"calibration": {"low": 2}}, r"calibration: low 2\.0 is above high 1\.25"),
        ({"drift": "loud"}, r"drift: Input should be 'warn', 'refuse' or 'ignore'"),
        ({"latency": {"candidates": 1001}}, r"latency\.candidates: Input should be less than or equal to 1000"),
    ],
)
def test_a_mistake_is_told_with_the_way_out(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_gate(FILE, overrides)
