"""Limits of rows a user or an item may have on a day: bots, floods and caps."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from features.errors import DataError
from tests.features.checks.test_check_log import START, aside, check, contract_of


def test_a_bot_is_more_rows_a_day_than_allowed(tmp_path: Path) -> None:
    """User 1: 4 rows on one day (allowed 3), 3 on the next. User 2: 3 and 3. Only the four go."""
    midnight = START // 86_400 * 86_400
    times = [midnight + n for n in range(4)] + [midnight + 86_400 + n for n in range(3)]
    times += [midnight + 100 + n for n in range(3)] + [midnight + 86_500 + n for n in range(3)]
    log = pl.DataFrame({"u": [1] * 7 + [2] * 6, "i": 11, "t": times, "y": [0, 1] * 6 + [0]})
    warned = check(contract_of(tmp_path, log, {"max_rows_per_user": 3}))
    assert [(one.check, one.rows, one.example) for one in warned.findings] == [("bot", 4, "4 of user 1 on 2023-11-14")]
    contract = contract_of(tmp_path, log, {"max_rows_per_user": 3, "bot": "quarantine"})
    assert check(contract).rows == 9
    assert aside(contract)["row"].to_list() == [0, 1, 2, 3]
    assert check(contract_of(tmp_path, log, {"max_rows_per_user": 4})).findings == ()


def test_a_cap_puts_aside_what_a_user_has_beyond_it_on_a_day(tmp_path: Path) -> None:
    """User 1 has rows 0, 2, 4, 6 on one day and 8 on the next; user 2 the others. Of the first three a day the rest
    stays, and however many go they count for nothing against `max_quarantine`."""
    midnight = START // 86_400 * 86_400
    times = [midnight + n for n in range(8)] + [midnight + 86_400 + n for n in range(2)]
    log = pl.DataFrame({"u": [1, 2] * 5, "i": 11, "t": times, "y": [0, 1] * 5})
    contract = contract_of(tmp_path, log, {"max_rows_per_user": 2, "bot": "cap", "max_quarantine": 0.0})
    checked = check(contract)
    assert checked.rows == 6 and aside(contract)["row"].to_list() == [4, 5, 6, 7]
    assert set(aside(contract)["reason"]) == {"bot: u"}
    (told,) = checked.findings
    assert (told.check, told.policy, told.rows) == ("bot", "cap", 4)
    assert told.message == (
        "column 'u': 4 of 10 rows are beyond the first 2 of the day of 2 users with more than 2 rows on one UTC day, "
        "e.g. 4 of user 1 on 2023-11-14. They were put aside in quarantine.parquet."
    )
    with pytest.raises(DataError, match=r"8 of 10 rows \(80\.00%\) would be put aside"):
        check(contract_of(tmp_path, log, {"max_rows_per_user": 2, "bot": "quarantine", "max_quarantine": 0.0}))


def test_rows_that_break_a_rule_count_beside_those_beyond_a_cap(tmp_path: Path) -> None:
    """Row 3 has no label of two; it is one of the rows beyond the cap, too."""
    log = pl.DataFrame({"u": 1, "i": 11, "t": [START + n for n in range(5)], "y": [0, 1, 0, 7, 1]})
    policies = {"max_rows_per_user": 2, "bot": "cap", "label": "quarantine"}
    contract = contract_of(tmp_path, log, {**policies, "max_quarantine": 0.2})
    assert check(contract).rows == 2 and aside(contract)["row"].to_list() == [2, 3, 4]
    with pytest.raises(DataError, match=r"1 of 5 rows \(20\.00%\) would be put aside"):
        check(contract_of(tmp_path, log, {**policies, "max_quarantine": 0.1}))


@pytest.mark.parametrize(
    ("policy", "found", "gone"), [("warn", 4, []), ("quarantine", 4, [0, 1, 2, 3]), ("cap", 1, [3])]
)
def test_an_item_may_be_flooded(tmp_path: Path, policy: str, found: int, gone: list[int]) -> None:
    """Item 11 has four rows of its day (allowed 3), item 12 three; without a limit nobody counts."""
    log = pl.DataFrame({"u": range(7), "i": [11] * 4 + [12] * 3, "t": START, "y": [0, 1] * 3 + [0]})
    contract = contract_of(tmp_path, log, {"max_rows_per_item": 3, "flooded_item": policy})
    checked = check(contract)
    assert [(one.check, one.rows) for one in checked.findings] == [("flooded_item", found)]
    assert "4 of item 11 on 2023-11-14" in checked.findings[0].message
    assert checked.rows == 7 - len(gone)
    if gone:
        assert aside(contract)["row"].to_list() == gone
    assert check(contract_of(tmp_path, log, {"flooded_item": policy})).findings == ()
