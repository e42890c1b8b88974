"""Raw events of a request: their times, what is refused, and their merge with what a source knows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from features.contract.contract import Contract
from features.encoding.past import Past, PastEvent
from features.encoding.request import Request, parse_request
from features.errors import ConfigError

LOG = {"path": "log.parquet", "user": "user", "item": "item", "time": "time", "label": "clicked"}
NOON = 1_767_268_800  # 2026-01-01T12:00:00Z, in seconds


def contract(**log: Any) -> Contract:
    return Contract.model_validate({"name": "shop", "interactions": LOG | log})


def parsed(history: list[Any], given: Contract | None = None, **more: Any) -> Request:
    return parse_request({"candidates": [1], "history": history, **more}, given or contract())


def times(*values: Any, **log: Any) -> list[int]:
    past = parsed([{"item": 3, "time": value} for value in values], contract(**log)).past
    assert past is not None
    return past.time_H.tolist()


@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 1_000), ("us", 1_000_000)])
def test_whole_numbers_count_in_the_unit_of_the_log(unit: str, factor: int) -> None:
    assert times(NOON * factor, float(NOON * factor), time_unit=unit) == [NOON * 1_000_000] * 2
    request = parse_request({"candidates": [1], "time": NOON * factor}, contract(time_unit=unit))
    assert request.time == NOON * 1_000_000


def test_text_is_iso_8601_and_utc_where_it_names_no_zone() -> None:
    texts = ("2026-01-01T12:00:00Z", "2026-01-01 12:00:00.000001", "2026-01-01T13:00+01:00", "2026-01-01")
    assert times(*texts, NOON) == [1_000_000 * NOON + add for add in (0, 1, 0, -12 * 3_600_000_000, 0)]


@pytest.mark.parametrize("zone", ["", "Z", "+00:00"])
@pytest.mark.parametrize(("fraction", "micros"), [("", 0), (".000001", 1), (".250000", 250_000)])
def test_texts_of_one_form_are_the_times_that_they_name(zone: str, fraction: str, micros: int) -> None:
    texts = [f"{day}{fraction}{zone}" for day in ("2026-01-01T12:00:00", "1969-12-31T23:59:59", "2024-02-29T00:00:00")]
    # From `date -u -d ... +%s`.
    assert times(*texts) == [second * 1_000_000 + micros for second in (NOON, -1, 1_709_164_800)]
    assert times(*texts, "2026-01-01T14:00:00+02:00")[-1] == NOON * 1_000_000


@pytest.mark.parametrize("bad", ["2026-02-29T00:00:00Z", "2026-01-01T25:00:00Z", "0000-01-01T00:00:00Z"])
def test_no_such_time_among_texts_of_one_form_is_named(bad: str) -> None:
    with pytest.raises(ConfigError, match=rf"history\[1\]\.time: '{bad}' is no time"):
        times("2026-01-01T12:00:00Z", bad)


def test_texts_that_make_one_form_only_when_put_together_are_read_one_by_one() -> None:
    # Two whose lengths add up to those of two plain ones.
    assert times("2026-01-01T12:00:00.000", "2026-01-01T12:00") == [NOON * 1_000_000] * 2


def test_text_in_the_form_of_the_log_comes_first() -> None:
    assert times("01/02/2026", "2026-02-01", time_format="%d/%m/%Y") == [1_769_904_000_000_000] * 2
    assert times("20260102", time_format="%Y%d%m") == [1_769_904_000_000_000]


@pytest.mark.parametrize("bad", [True, None, 1.5, "noon", 10**18, -(10**18), [3], {}, "2026-13-01", float("inf")])
def test_what_is_no_time_is_refused(bad: Any) -> None:
    with pytest.raises(ConfigError, match=r"history\[1\]\.time: .* is no time\. Write it as the log has it"):
        times(NOON, bad)
    if bad is not None:
        with pytest.raises(ConfigError, match=r"^time: .* is no time"):
            parse_request({"candidates": [1], "time": bad}, contract())


def test_events_with_and_without_times_do_not_mix() -> None:
    for other in (4, {"item": 4}):
        with pytest.raises(ConfigError, match=r"history\[1\]: has no `time`, but history\[0\] has one\. Give each"):
            parsed([{"item": 3, "time": NOON}, other])


def test_events_of_a_log_without_times_are_refused() -> None:
    given = {"name": "shop", "interactions": LOG | {"time": None}, "history": {"given": {"column": "past"}}}
    files = {"by": "files", "valid": "valid.parquet", "test": "test.parquet"}
    with pytest.raises(ConfigError, match="this log has no times"):
        parsed([{"item": 3, "time": NOON}], Contract.model_validate(given | {"split": files}))


def test_an_event_needs_an_item_that_can_be_one() -> None:
    with pytest.raises(ConfigError, match=r"history\[1\]: needs `item`"):
        parsed([{"item": 3, "time": NOON}, {"time": NOON}])
    with pytest.raises(ConfigError, match=r"history\[1\]\.item: -3 cannot be an id"):
        parsed([{"item": 3, "time": NOON}, {"item": -3, "time": NOON}])


def test_without_times_nothing_changes() -> None:
    request = parsed([3, {"item": 4}])
    assert (request.past, request.history, request.time) == (None, (3, 4), None)


def test_events_of_a_source_are_added_where_the_request_has_them_not() -> None:
    sent = parsed([{"item": 3, "time": 5, "clicked": 1}, {"item": 3, "time": 5}, {"item": 4, "time": 6}]).past
    assert sent is not None
    source = [
        PastEvent(3, 5_000_000, {"clicked": 0}),  # sent twice already
        PastEvent(3, 6_000_000, {"clicked": 0}),
        PastEvent(4, 5_000_000),
        PastEvent(4, 5_000_000, {"clicked": 1}),
    ]
    whole = sent.with_source(source)
    assert list(zip(whole.items, whole.time_H.tolist(), strict=True)) == [
        (3, 5_000_000), (3, 5_000_000), (4, 6_000_000), (3, 6_000_000), (4, 5_000_000)
    ]  # fmt: skip
    assert (whole.columns[0]["clicked"], whole.columns[3:], whole.sent) == (1, ({"clicked": 0}, {}), 3)
    assert sent.with_source(source[:1]) is sent


def test_the_past_of_a_source_alone() -> None:
    past = Past.of([PastEvent("a", 7, {"clicked": 1}), PastEvent("b", 3)])
    assert (past.items, past.time_H.tolist(), past.sent) == (("a", "b"), [7, 3], 0)
    assert past.time_H.dtype == np.int64 and Past.of([]).time_H.dtype == np.int64
