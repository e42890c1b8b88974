"""The rules' bounds: `conf/gate.yaml`, and `--set gate.KEY=VALUE` over it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from features.contract.settings import Settings, load_yaml, merge, validate


class Range(Settings):
    """A ratio from `low` to `high`, both ends included."""

    low: PositiveFloat
    high: PositiveFloat

    @model_validator(mode="after")
    def _in_order(self) -> Range:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


class SliceRules(Range):
    """Floors a slice; `low` and `high` are of its calibration ratio."""

    rows: int = Field(300, ge=50, description="slices of fewer rows are not judged")
    clicks: PositiveInt = Field(50, description="fewest positives for a calibration ratio")
    auc: float = Field(0.5, ge=0, le=1, description="a slice must not be below, beyond noise")
    lost_auc: float = Field(0.01, ge=0, le=1, description="most that a slice may lose, beyond noise")
    low: PositiveFloat = 0.5
    high: PositiveFloat = 2.0


class LatencyRules(Settings):
    """Ceilings of the median time of a request."""

    candidates: int = Field(100, ge=1, le=1000)
    requests: PositiveInt = Field(40, description="timed of each bundle")
    ratio: PositiveFloat = Field(2.0, description="of the champion's")
    slack_ms: float = Field(1.0, ge=0, description="added to it")
    ms: PositiveFloat = Field(100.0, description="at most, with or without a champion")


class SizeRules(Settings):
    """Ceilings of the bytes of a bundle."""

    ratio: PositiveFloat = Field(3.0, description="of the champion's")
    slack_mib: float = Field(16.0, ge=0, description="added to it")
    mib: PositiveFloat = Field(16384.0, description="at most, with or without a champion")


class GateRules(Settings):
    """All bounds of the gate, as `conf/gate.yaml` explains them."""

    rows: PositiveInt = 20_000
    clicks: PositiveInt = 20
    compare: bool = True
    calibration: Range = Range(low=0.8, high=1.25)
    ece: PositiveFloat = 0.1
    slices: SliceRules = SliceRules()
    missing: float = Field(0.1, ge=0, le=1)
    drift: Literal["warn", "refuse", "ignore"] = "warn"
    latency: LatencyRules = LatencyRules()
    size: SizeRules = SizeRules()


def load_gate(path: Path, overrides: Mapping[str, Any] | None = None) -> GateRules:
    """Read the bounds from a file, `--set` values on top.

    Args:
        path: a YAML file; keys that it leaves out have their defaults.
        overrides: values of the section `gate`.

    Raises:
        ConfigError: no such file, an unknown key (with the nearest valid one), or an impossible value.
    """
    return validate(GateRules, merge(load_yaml(path), overrides or {}), str(path))
