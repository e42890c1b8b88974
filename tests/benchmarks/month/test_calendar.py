"""Bad days by number, and the exit codes that they may end with."""

from __future__ import annotations

import pytest

from benchmarks.month.calendar import MONTH, PROMISES, parse_calendar, promised
from features.errors import ConfigError


def test_the_month_has_every_trouble_once() -> None:
    assert sorted(parse_calendar(MONTH, 30).values()) == sorted(PROMISES)


@pytest.mark.parametrize("text", ["1:bot", "31:bot", "4:bots", "bot", "x:bot", "4"])
def test_what_is_no_bad_day_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="a day from 2 to 30"):
        parse_calendar(f"5:late,{text}", 30)


def test_a_month_may_be_without_troubles() -> None:
    assert parse_calendar("", 3) == {}


@pytest.mark.parametrize(
    ("number", "codes"), [(1, (0, 3, 6)), (2, (0, 6)), (3, (4,)), (4, (0, 3, 6)), (5, (75,)), (6, (6,)), (7, (0, 3, 6))]
)
def test_a_night_has_the_codes_of_its_trouble_or_of_the_one_before(number: int, codes: tuple[int, ...]) -> None:
    assert promised(number, {2: "missing", 5: "disk", 6: "encoder"}) == codes
