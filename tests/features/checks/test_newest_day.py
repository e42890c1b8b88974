"""The newest day beside the seven before it, and the age of a log; by hand."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.build.build import build_feature_set
from features.calendar import DAY, first_instant
from features.checks.newest_day import DayFigures, check_age, check_newest_day, figures_by_day
from features.contract.log import Checks
from features.errors import DataError
from tests.features.build.days import FIRST, build, contract, write_days

LAST = date(2026, 3, 9)


def figures(rows: list[int], clicks: list[int] | None = None) -> list[DayFigures]:
    """Days up to LAST with so many rows, a tenth of them clicked if nothing else is said; 0 rows is no day at all."""
    clicks = clicks or [count // 10 for count in rows]
    first = LAST - timedelta(days=len(rows) - 1)
    days = [DayFigures(first + timedelta(days=n), count, count, clicks[n]) for n, count in enumerate(rows)]
    return [one for one in days if one.rows]


def told(rows: list[int], clicks: list[int] | None = None, **checks: Any) -> str:
    policy = {"newest_day": "warn", **checks}
    return "".join(check_newest_day("log", figures(rows, clicks), Checks.model_validate(policy)))


@pytest.mark.parametrize(
    ("rows", "unusual"),
    [
        # The median of 800, 1000, 1200 is 1000, of which a half to three times are usual.
        ([800, 1200, 1000, 500], ""),
        ([800, 1200, 1000, 490], "490 rows, 0.49 of the median of 1,000 (checks.day_rows allows 0.5 to 3)"),
        ([800, 1200, 1000, 3000], ""),
        ([800, 1200, 1000, 3010], "3,010 rows, 3.01 of the median"),
        # Two days before it are too few to tell.
        ([1200, 1000, 10], ""),
        # A day of long ago is none to compare with: the seven before the newest have 1000 each.
        ([9000] * 4 + [1000] * 12, ""),
        ([1000, 1000, 1000, 0, 1000], "the day before it, 2026-03-08, has no row"),
    ],
)
def test_rows_of_the_newest_day_are_about_as_many_as_before(rows: list[int], unusual: str) -> None:
    found = told(rows)
    assert unusual in found and bool(unusual) == bool(found)
    assert found.startswith(f"the newest day {LAST} is unlike the 7 before it: ") == bool(unusual)


@pytest.mark.parametrize("policy", ["warn", "error"])
def test_a_day_that_never_came_is_told_and_refuses_only_the_day_after_it(policy: str) -> None:
    found = told([1000, 1000, 0, 0, 1000, 1000], newest_day=policy)
    assert found == "2 of the days before 2026-03-09 have no row, e.g. 2026-03-07: no model learns them."


def test_a_lost_day_further_back_is_told_beside_the_one_before() -> None:
    found = check_newest_day(
        "log", figures([1000, 1000, 0, 1000, 0, 1000]), Checks.model_validate({"newest_day": "warn"})
    )
    assert "the day before it, 2026-03-08, has no row" in found[0]
    assert found[1] == "1 of the days before 2026-03-09 have no row, e.g. 2026-03-06: no model learns them."


@pytest.mark.parametrize("policy", ["warn", "error"])
def test_an_unusual_day_that_is_no_more_the_newest_is_told_for_a_week_and_refuses_nothing(policy: str) -> None:
    """A night that refused it must not be followed by one that learns it without a word."""
    flipped = [100, 100, 100, 900, 100]
    assert told([1000] * 5, flipped, newest_day=policy) == (
        "2026-03-08 is unlike the 7 days before it: a label rate of 90.00%, the median is 10.00% "
        "(checks.day_label_rate allows 0.5 to 2 of it). Models learn it as it is: bring the right file, or see that "
        "the day is right."
    )
    assert "is unlike" in told([1000] * 10, [100, 100, *flipped[1:], *[100] * 4], newest_day=policy)
    assert told([1000] * 12, [*flipped, *[100] * 7], newest_day=policy) == ""
    assert told([1000] * 5, flipped, newest_day="off") == ""
    assert told([1000, 10, 1000, 1000, 1000], newest_day=policy) == "", "one day before it is too few to tell"


@pytest.mark.parametrize(
    ("rows", "clicks", "unusual"),
    [
        # The median rate is 10 %: from 5 % to 20 % is usual, and beyond it what chance does not do.
        ([1000] * 3 + [1000], [90, 110, 100, 200], ""),
        ([1000] * 3 + [1000], [90, 110, 100, 210], "a label rate of 21.00%, the median is 10.00%"),
        ([1000] * 3 + [1000], [90, 110, 100, 900], "a label rate of 90.00%"),
        ([1000] * 3 + [1000], [90, 110, 100, 49], "a label rate of 4.90%"),
        # 3 of 10 rows are three times as many, and within five deviations of 0.095 each.
        ([20] * 3 + [10], [2, 2, 2, 3], ""),
    ],
)
def test_the_label_rate_of_the_newest_day_is_about_as_before(rows: list[int], clicks: list[int], unusual: str) -> None:
    found = told(rows, clicks)
    assert unusual in found and bool(unusual) == bool(found)


def test_limits_are_those_of_the_contract() -> None:
    assert told([1000, 1000, 1000, 700], day_rows=[0.8, 1.2]) and not told([1000, 1000, 1000, 700], day_rows=[0.7, 1])
    high = [100, 100, 100, 160]
    assert told([1000] * 4, high, day_label_rate=[0.9, 1.5]) and not told([1000] * 4, high, day_label_rate=[0.9, 1.6])


def test_the_policy_decides() -> None:
    bad = [1000, 1000, 1000, 10]
    assert told(bad, newest_day="off") == "" == "".join(check_newest_day("log", [], Checks(newest_day="warn")))
    with pytest.raises(
        DataError, match=r"log: the newest day .* 10 rows.*data\.checks\.newest_day=warn.*--as-of"
    ) as error:
        told(bad, newest_day="error")
    assert error.value.exit_code == 4


def test_figures_are_counted_over_parts_by_utc_day() -> None:
    start = first_instant(LAST)
    parts = [
        (np.array([start, start + DAY - 1, start + DAY]), np.array([1.0, 0.0, 1.0])),
        (np.array([start + 5, start - 1]), np.array([np.nan, 0.0])),
    ]
    expected = [
        DayFigures(LAST - timedelta(days=1), 1, 1, 0),
        DayFigures(LAST, 3, 2, 1),
        DayFigures(LAST + timedelta(days=1), 1, 1, 1),
    ]
    assert figures_by_day(parts) == expected


NOON = first_instant(LAST) + DAY // 2


@pytest.mark.parametrize(
    ("max_age", "as_of", "hours_later", "age"),
    [
        (None, None, 10_000, None),
        ("36h", None, 36, None),
        ("36h", None, 37, "1.5 days before 2026-03-11 01:00:00; checks.max_age allows 1.5 days"),
        # Of a build of the past, age ends with the day that was asked for: twelve hours after noon of LAST.
        ("12h", LAST.isoformat(), 10_000, None),
        ("11h", LAST.isoformat(), 10_000, "0.5 days before 2026-03-10 00:00:00"),
        # That day has not ended yet.
        ("11h", LAST.isoformat(), 3, None),
    ],
)
def test_a_log_may_be_too_old(max_age: str | None, as_of: str | None, hours_later: int, age: str | None) -> None:
    now = datetime(LAST.year, LAST.month, LAST.day, 12, tzinfo=UTC) + timedelta(hours=hours_later)
    content = {"max_age": max_age} if max_age else {}
    warned = check_age("log", NOON, Checks.model_validate({**content, "stale": "warn"}), as_of, now)
    strict = Checks.model_validate(content)
    if age is None:
        assert warned is None and check_age("log", NOON, strict, as_of, now) is None
        return
    assert warned is not None and warned.startswith("the newest row is of 2026-03-09 12:00:00, ") and age in warned
    with pytest.raises(DataError, match="log: the newest row is of 2026-03-09 12:00:00"):
        check_age("log", NOON, strict, as_of, now)


def test_a_build_of_a_bad_day_publishes_nothing_and_one_that_warns_says_so(tmp_path: Path) -> None:
    """Seven days of 60 rows each: rows of the newest one are as many as ever, and here that is not enough."""
    write_days(tmp_path, range(7))
    strict = {"checks": {"newest_day": "error", "day_rows": [1.1, 3.0]}}
    with pytest.raises(DataError, match=r"60 rows, 1\.00 of the median of 60"):
        build(contract(tmp_path, strict), 6)
    assert not list((tmp_path / "out").glob("*/*/MANIFEST.json")) and not list((tmp_path / "out").glob("*/CURRENT"))
    assert build(contract(tmp_path, {"checks": {"newest_day": "error"}}), 6).manifest.findings == ()
    warned = build(contract(tmp_path, {"checks": {"newest_day": "warn", "day_rows": [1.1, 3.0]}}), 6)
    assert warned.manifest.findings[0].startswith("the newest day 2026-03-07 is un")


def test_a_log_that_stays_as_it_is_grows_old(tmp_path: Path) -> None:
    """The log ends on 7 March. Of that day it is fresh; two days later a feature set that is built already is not."""
    write_days(tmp_path, range(7))
    declared = contract(tmp_path, {"checks": {"max_age": "36h"}})
    build(declared, 6)
    later = (FIRST + timedelta(days=8)).isoformat()
    with pytest.raises(DataError, match="the newest row is of 2026-03-07 23:"):
        build_feature_set(declared, tmp_path / "out", as_of=later)
    lenient = contract(tmp_path, {"checks": {"max_age": "36h", "stale": "warn"}})
    first, again = (build_feature_set(lenient, tmp_path / "out", as_of=later) for _ in range(2))
    assert again.reused and again.stale is not None and again.stale.startswith("the newest row is of 2026-03-07 23:")
    assert first.stale is None and first.feature_set.manifest.findings[-1] == again.stale
