"""`quadrank bench month`: its checks by hand, and four nights of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bench_month import SETTINGS, checks_of, figure_of, refused_by, worse
from ctr.config import Preset
from features.contract.contract import load_contract
from features.contract.settings import validate
from pipelines.cli.commands import main
from tests.documents import ROOT


def night(name: str, **changes: Any) -> dict[str, Any]:
    """A good night, promoted, that ties with the champion before it."""
    good = {
        "name": name,
        "trouble": "",
        "codes": [0],
        "status": "done",
        "promised": [0, 3, 6],
        "promoted": True,
        "untold": [],
        "broken": [],
        "disk_mib": 10.0,
        "beside": {"auc": [0.0, -0.01, 0.01], "log_loss": [0.0, -0.01, 0.01]},
        "auc": 0.7,
        "auc_low": 0.68,
        "auc_high": 0.72,
        "optimum": 0.8,
        "fresh": 0.71,
    }
    return {**good, **changes}


def failed(*nights: dict[str, Any]) -> list[tuple[int, str]]:
    """Places of the checks that do not hold, and the nights that they name."""
    return [(place, one["nights"]) for place, one in enumerate(checks_of(nights, 50)) if one["held"] == "no"]


def test_good_nights_pass_every_check() -> None:
    nothing = night("4", status="nothing new", promoted=False)
    assert failed(night("1"), night("2", codes=[-9, 3]), night("3", codes=[6], promoted=False), nothing) == []


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        (0, {"codes": [75, 4], "promoted": False}),
        (1, {"codes": [6]}),
        (1, {"codes": [0], "promoted": False}),
        (1, {"status": "nothing new"}),
        (2, {"untold": ["outcome.json says 4"]}),
        (3, {"broken": ["the alias names a, CURRENT names b"]}),
        (4, {"disk_mib": 50.1}),
        (5, {"beside": {"auc": [-0.02, -0.03, -0.01], "log_loss": [0.0, -0.01, 0.01]}}),
    ],
)
def test_a_night_with_one_thing_wrong_fails_that_check(place: int, wrong: dict[str, Any]) -> None:
    assert failed(night("1"), night("2", **wrong)) == [(place, "2")]


def test_worse_is_beyond_noise_in_either_metric_for_all_promotions_together() -> None:
    """A standard error of 0.0051: -0.0105 is p = 0.02 one-sided, which is below 5 % alone and above it among four."""
    tie, low = [0.0, -0.01, 0.01], [-0.0105, -0.0205, -0.0005]
    one = night("7", beside={"auc": low, "log_loss": tie})
    assert worse([one]) == ["7"]
    assert worse([one, night("8")]) == []
    # A higher log loss is worse, a lower one is not.
    assert worse([night("7", beside={"auc": tie, "log_loss": [0.03, 0.02, 0.04]})]) == ["7"]
    assert worse([night("7", beside={"auc": tie, "log_loss": [-0.03, -0.04, -0.02]})]) == []
    # The same model twice has no noise, and a first promotion nothing beside it.
    assert worse([night("7", beside={"auc": [0.0] * 3, "log_loss": [0.0] * 3}), night("8", beside=None)]) == []
    assert worse([night(name, beside={"auc": [-0.1, -0.11, -0.09], "log_loss": tie}) for name in ("10", "9")]) == [
        "9",
        "10",
    ]


def test_the_figure_has_a_mark_for_each_trouble_and_each_promotion() -> None:
    nights = [night("1"), night("2", trouble="late", codes=[4], promoted=False, fresh=None), night("3")]
    quality, disk = figure_of(nights, 50).axes
    assert [text.get_text() for text in quality.texts] == ["late (4)"]
    lines = {str(line.get_label()): list(line.get_xdata()) for line in quality.lines}
    assert lines["promoted that night"] == [1, 3] and lines["trained anew on a clean log"] == [1, 3]
    assert len(disk.patches) == 3


def test_rules_that_refuse_are_told_once_and_warnings_are_not() -> None:
    of = [("auc", False, True), ("slice loss", False, True), ("auc", False, True), ("size", True, True)]
    findings = [{"rule": rule, "passed": passed, "refuses": refuses} for rule, passed, refuses in of]
    findings.append({"rule": "drift", "passed": False, "refuses": False})
    assert refused_by({"gate": {"findings": findings}}) == ["auc", "slice loss"]
    assert refused_by({"error": "the test window has no rows"}) == []


def test_settings_of_the_job_are_valid() -> None:
    validate(Preset, {name: SETTINGS[name] for name in ("model", "train")}, "month")
    checks = load_contract(ROOT / "conf/data/simulated.yaml", SETTINGS["data"]).checks
    assert (checks.newest_day, checks.stale, checks.bot) == ("error", "error", "cap")


def ended(tmp_path: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Any, dict[str, Any]]:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "month", *arguments, "--out", str(tmp_path), "--work", str(tmp_path), "--json"])
    return stopped.value.code, json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nights_with_a_late_day_a_kill_and_a_full_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ("--rows", "80000", "--users", "800", "--items", "300", "--days", "4", "--window", "8")
    code, payload = ended(tmp_path, capsys, *size, "--calendar", "2:late,3:kill,4:disk", "--fresh-every", "4")
    assert code == 0
    first, late, killed, full = payload["results"]
    assert [one["codes"][-1] for one in (late, full)] == [0, 75]
    assert killed["codes"][0] == -9 and len(killed["codes"]) == 2  # what the second may be is one of the checks
    assert first["promoted"] and late["champion"] == first["champion"] and full["champion"] == killed["champion"]
    assert 0.55 < first["auc"] < first["optimum"] < 1 and first["fresh"] > 0.55 and late["fresh"] is None
    assert payload["ratios"]["checks_failed"] == 0
    assert (tmp_path / "month.png").is_file() and "| late |" in (tmp_path / "month.md").read_text()


def test_a_month_that_the_log_is_too_short_for_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ("--rows", "1000", "--users", "10", "--items", "30", "--days", "40", "--calendar", "")
    code, payload = ended(tmp_path, capsys, *size)
    assert code == 2 and "need 50 days, the log has 32" in payload["error"]
