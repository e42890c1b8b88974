"""Settings of model and training that do not go together."""

from __future__ import annotations

import pytest

from ctr.config import Preset
from features.contract.settings import validate
from features.errors import ConfigError


def test_trees_alone_have_no_loss_of_lists():
    content = {"model": {"tower": "none", "base": "boosting"}, "train": {"list_loss": 0.1}}
    with pytest.raises(ConfigError, match=r"train\.list_loss: trees alone .* set it to 0"):
        validate(Preset, content, "p.yaml")


def test_a_loss_of_lists_is_not_below_zero():
    with pytest.raises(ConfigError, match=r"train\.list_loss: Input should be greater than or equal to 0"):
        validate(Preset, {"train": {"list_loss": -0.1}}, "p.yaml")


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1])
def test_a_seed_that_torch_cannot_take_is_refused(seed: int):
    with pytest.raises(ConfigError, match=r"train\.seed: Input should be"):
        validate(Preset, {"train": {"seed": seed}}, "p.yaml")
