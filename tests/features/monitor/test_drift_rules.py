"""When a change is called drift: by size, by chance shared among all tests, and less what chance gives."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from features.monitor.drift import compare as compare_module
from features.monitor.drift.bins import Common, in_common
from features.monitor.drift.compare import DriftSettings, _judged, compare
from features.monitor.drift.measures import Comparison, Measured, _distribution
from features.monitor.drift.noise import Counts
from features.monitor.profile.bins import Values, grid_bin, grid_of

LIMITS = DriftSettings(psi=0.1, false_alarms=0.004)


def of_one_column(size: float, chance: float, expected: float = 0.0) -> Measured:
    return Measured("item.genre", (Comparison({"psi": size}, chance, expected=expected),))


@pytest.mark.parametrize(
    ("size", "chance", "verdict"),
    [
        (0.1, 0.0009, "drift"),
        (0.0999, 0.0009, "stable"),  # no accident, and too small to matter
        (0.1, 0.001, "stable"),  # large, and as likely as may be without drift
        (0.1, 0.002, "stable"),
    ],
)
def test_drift_is_large_and_no_accident(size: float, chance: float, verdict: str) -> None:
    found = _judged(of_one_column(size, chance), LIMITS, level=0.001)
    assert found.verdict == verdict
    (change,) = found.changes
    assert change.alarm == (verdict == "drift") and (change.size, change.chance) == (size, chance)


@pytest.mark.parametrize(("expected", "verdict"), [(0.1, "stable"), (0.1001, "too few rows")])
def test_where_chance_gives_more_than_the_threshold_there_are_too_few_rows(expected: float, verdict: str) -> None:
    assert _judged(of_one_column(0.05, 0.5, expected), LIMITS, level=0.001).verdict == verdict


def test_drift_is_said_where_rows_are_few_too() -> None:
    assert _judged(of_one_column(0.5, 0.0, expected=0.2), LIMITS, level=0.001).verdict == "drift"


@pytest.mark.parametrize(("chance", "found"), [(0.0009, True), (0.0011, False), (0.0039, False)])
def test_all_tests_share_the_false_alarms(monkeypatch: pytest.MonkeyPatch, chance: float, found: bool) -> None:
    """Four tests and 0.004 false alarms in all: each may take 0.001."""
    names = [f"item.c{number}" for number in range(4)]
    zeros = SimpleNamespace(periods=[[1, 1]], groups=[[1, 1]])
    profile: Any = SimpleNamespace(
        bins=dict.fromkeys(names, Values(names=("a",), rest=0)),
        vector_coverage={},
        splits={"train": SimpleNamespace(days={"2026-01-31": SimpleNamespace(rows=2)})},
        periods=("2026-01-31",),
        tallies={"train": dict.fromkeys(names, zeros)},
    )

    def measured(name: str, *_: Any) -> Measured:
        return of_one_column(0.5, chance)

    monkeypatch.setattr(compare_module, "measure_column", measured)
    drift = compare(profile, profile, LIMITS)
    assert len(drift.columns) == 4 and drift.found is found


def test_two_samples_of_one_world_have_no_size_as_often_as_not() -> None:
    """PSI of two such samples is a chi-square, whose median lies below its mean, which is subtracted."""
    rng = np.random.default_rng(7)
    shares, rows = np.array([0.1, 0.2, 0.3, 0.4]), 4_000
    nothing = {"psi": 0, "js": 0}
    for _ in range(200):
        base, new = (rng.multinomial(rows, shares).astype(float)[None] for _ in range(2))
        sizes = _distribution(Common(("a", "b", "c", "d"), Counts(base, base), Counts(new, new))).sizes
        for measure in nothing:
            nothing[measure] += sizes[measure] == 0
    # Chi-square of 3 lies below 3 with 0.61.
    assert nothing["psi"] / 200 == pytest.approx(0.61, abs=0.08)
    assert nothing["js"] / 200 == pytest.approx(0.61, abs=0.08)


def test_what_chance_gives_is_taken_off_a_change_once() -> None:
    """Shares of 0.5 and 0.5 against 0.25 and 0.75, a thousand rows each; chance gives (K - 1)(1/n + 1/m)."""
    base, new = (np.array([counts]) for counts in ([500.0, 500.0], [250.0, 750.0]))
    found = _distribution(Common(("a", "b"), Counts(base, base), Counts(new, new)))
    assert found.expected == pytest.approx(1 / 1000 + 1 / 1000)
    # Half a count in each bin: 500.5 of 1001, 250.5 and 750.5 of 1001.
    raw = (0.5 - 250.5 / 1001) * np.log(500.5 / 250.5) + (0.5 - 750.5 / 1001) * np.log(500.5 / 750.5)
    assert found.sizes["psi"] == pytest.approx(raw - 0.002, rel=1e-9)
    # The divergence of the shares is 0.033822 nats; an eighth of the PSI of chance is 0.00025.
    assert found.sizes["js"] == pytest.approx(np.sqrt((0.033822 - 0.00025) / np.log(2)), rel=1e-4)


def test_numbers_up_to_the_largest_have_bins_with_names() -> None:
    """1.8e308 stands for "missing" in some exports; the open bin above the largest number begins beyond it."""
    values = np.repeat([1.0, 1e308, 1.7976931348623157e308], 30)
    grid = grid_of(values)
    counts = np.bincount(grid_bin(grid, values), minlength=grid.size)[None].astype(float)
    common = in_common(grid, Counts(counts, counts), grid, Counts(counts, counts))
    assert common is not None
    assert common.base.rows == 90
    assert all(np.isfinite(float(name.removeprefix("from "))) for name in common.names)
