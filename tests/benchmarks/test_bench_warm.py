"""`quadrank bench warm` at a tiny size, and how its intervals come about."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.bench_warm import POLICIES, paired_by_user
from ctr.config import Preset, TrainConfig
from features.contract.settings import validate
from features.errors import ConfigError
from pipelines.cli.commands import main

SMALL = ["--rows", "9000", "--users", "60", "--items", "150", "--days", "2", "--window", "5"]


def test_every_policy_is_one_of_the_settings_of_training() -> None:
    for name, policy in POLICIES.items():
        validate(Preset, {"train": policy.train}, name)
    assert [name for name, policy in POLICIES.items() if policy.full_every] == ["full_every_7"]
    assert POLICIES["full_every_7"].warm
    default, whole = (validate(TrainConfig, POLICIES[name].train, name) for name in ("keep_rate_half", "keep"))
    assert default == TrainConfig() and whole.warm_start.rate == 1.0


@pytest.mark.slow
def test_policies_go_through_the_same_days(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "warm", *SMALL, "--policies", "keep", "--out", str(tmp_path), "--json"])
    assert ended.value.code == 0
    payload = json.loads(capsys.readouterr().out.splitlines()[-1])
    scratch, keep = payload["results"]
    assert [scratch["name"], keep["name"]] == ["scratch", "keep"]
    assert (scratch["auc_difference"], scratch["compute"]) == (0.0, 1.0)
    # Two epochs of five days against one of a new day and a quarter of the four older ones.
    assert 0.1 < keep["compute"] < 0.3 and keep["row_passes"] < scratch["row_passes"]
    assert len(keep["by_day"]) == 2 and keep["auc_low"] <= keep["auc_difference"] <= keep["auc_high"]
    assert keep["by_day"] != scratch["by_day"]
    assert payload["ratios"]["auc_keep_minus_scratch"] == keep["auc_difference"]
    assert (tmp_path / "warm.png").is_file() and "| keep |" in (tmp_path / "warm.md").read_text()


@pytest.mark.parametrize(
    ("changed", "words"),
    [(["--policies", "kep"], "--policies 'kep': choose among scratch"), (["--window", "40"], "need 44 days, the log")],
)
def test_what_cannot_be_measured_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "warm", *SMALL, *changed, "--out", str(tmp_path), "--json"])
    assert ended.value.code == ConfigError.exit_code
    assert words in json.loads(capsys.readouterr().out.splitlines()[-1])["error"]


def test_differences_are_means_over_days_of_the_same_users() -> None:
    """Day 1: one ranks all pairs right (1), the other none (0). Day 2: both alike. The mean is a half."""
    right, wrong = np.array([0.9, 0.1, 0.9, 0.1]), np.array([0.1, 0.9, 0.1, 0.9])
    labels, users = np.array([1.0, 0.0, 1.0, 0.0]), np.array([1, 1, 2, 2])
    found = paired_by_user([(labels, right, wrong, users), (labels, right, right, users)])
    assert found["auc"] == (0.5, 0.5, 0.5)
    # A row's loss is ln(1/0.9) against ln(1/0.1) on day 1: the difference is -ln 9, halved over the two days.
    assert found["log_loss"] == pytest.approx((-np.log(9) / 2,) * 3)


def test_a_user_is_drawn_for_all_days_at_once() -> None:
    """On both days the one model is right of user 1 alone and the other of user 2 alone: draws of (1, 1) give 1."""
    one, other = np.array([0.9, 0.1, 0.4, 0.5]), np.array([0.4, 0.5, 0.9, 0.1])
    labels, users = np.array([1.0, 0.0, 1.0, 0.0]), np.array([1, 1, 2, 2])
    day = (labels, one, other, users)
    difference, low, high = paired_by_user([day, day])["auc"]
    assert (difference, low, high) == (0.0, -1.0, 1.0)
