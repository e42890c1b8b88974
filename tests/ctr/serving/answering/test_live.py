"""Counters fresher than the bundle's: those of a log that holds the reported events too."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest

from ctr.serving.answering.events import Events
from ctr.serving.answering.live import LiveCounters, _Version
from features.contract.log import Counter
from features.encoding.past import PastEvent
from features.encoding.request import parse_request
from tests.ctr.serving.answering.stars import COUNTERS, MICROS, START, as_ranker, built, stars_log, values
from tests.features.counter_state import CounterState

MINUTE = 60_000_000


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Built from the first 100 minutes of the log."""
    return built(tmp_path_factory.mktemp("early") / "log", stars_log().head(100))


@pytest.fixture(scope="module")
def later(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Built from the first 110 minutes."""
    return built(tmp_path_factory.mktemp("late") / "log", stars_log().head(110))


def micros_of(moment: datetime) -> int:
    return MICROS + (moment - START) // timedelta(microseconds=1)


def events(rows: pl.DataFrame) -> Events:
    found = [
        PastEvent(row["what"], int((row["at"] - START) / timedelta(microseconds=1)) + MICROS) for row in rows.to_dicts()
    ]
    label_E = (rows["stars"].cast(pl.Float64) >= 4).cast(pl.Float64).to_numpy()
    return Events(tuple(rows["who"]), tuple(found), label_E, np.ones(len(found), bool))


def at(minute: float) -> float:
    """Seconds since 1970, as a clock says them."""
    return (MICROS + minute * MINUTE) / 1e6


def expected(rows: pl.DataFrame, ranker: Any, minute: float) -> dict[str, list[float]]:
    """Each counter of each known key, in plain Python, of these rows."""
    found = {}
    for name, spec in COUNTERS.items():
        counter = Counter.model_validate(spec)
        state = CounterState(counter, ranker.counters.mean)
        for row in rows.to_dicts():
            key = row["what"] if counter.of == "item" else row["who"]
            state.update(key, micros_of(row["at"]), float(row["stars"] >= 4))
        ids = ranker.encoder.items if counter.of == "item" else ranker.encoder.users
        found[name] = [state.value(ids.value(row), int(at(minute) * 1e6)) for row in range(2, ids.size)]
    return found


def check(ranker: Any, rows: pl.DataFrame, minute: float) -> None:
    for name, wanted in expected(rows, ranker, minute).items():
        found = values(ranker)[name]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found[2:], wanted, rtol=1e-6, err_msg=name)


def test_before_the_first_event_rankings_read_the_end_of_the_log(earlier: Any) -> None:
    ranker = as_ranker(earlier)
    before = ranker.encoder
    live = LiveCounters(1.0, 100, clock=lambda: at(500))
    live.fold()
    live.follow(ranker)
    live.fold()
    live.add(events(stars_log().head(100)))  # all of them are in the log
    live.fold()
    assert ranker.encoder is before


def test_after_events_they_are_those_of_the_whole_log(earlier: Any) -> None:
    ranker, now = as_ranker(earlier), [at(130)]
    live = LiveCounters(1.0, 100, clock=lambda: now[0])
    live.follow(ranker)
    assert live.add(events(stars_log()[100:112])) == 0
    assert live.add(events(stars_log()[110:])) == 2  # sent twice
    live.fold()
    check(ranker, stars_log(), 130)
    now[0] = at(200)
    live.fold()
    check(ranker, stars_log(), 200)
    assert live.add(events(stars_log()[105:])) == 15  # also after they were counted
    live.fold()
    check(ranker, stars_log(), 200)
    assert values(ranker)["shown"][1] == 0  # of an unknown item nothing is known


@pytest.mark.parametrize("looks", [0, 1, 2, 3])
@pytest.mark.parametrize("labels", [(None, 5), (None, 0), (0, 5), (5, 0), (0, 5, 0), (None, 5, 5), (5, None)])
def test_a_label_that_becomes_known_later_counts_as_if_the_event_had_come_with_it(
    earlier: Any, later: Any, labels: tuple[int | None, ...], looks: int
) -> None:
    ranker = as_ranker(earlier)
    live = LiveCounters(1.0, 100, clock=lambda: at(200))
    live.follow(ranker)
    again = 0
    for place, stars in enumerate(labels):
        again += live.add(events(stars_log()[110:113].with_columns(stars=pl.lit(stars, pl.Int64))))
        if place < looks:
            live.fold()
    live.fold()
    known = [stars for stars in labels if stars is not None][-1]
    rows = stars_log()[110:113].with_columns(stars=pl.lit(known, pl.Int64))
    check(ranker, pl.concat([stars_log().head(100), rows]), 200)
    assert again == (3 if labels in ((None, 5, 5), (5, None)) else 0)
    second = as_ranker(later)
    live.follow(second)
    live.fold()
    check(second, pl.concat([stars_log().head(110), rows]), 200)


def test_events_out_of_order_and_later_than_a_look_count_all_the_same(earlier: Any) -> None:
    ranker = as_ranker(earlier)
    live = LiveCounters(1.0, 100, clock=lambda: at(200))
    live.follow(ranker)
    for place in (115, 104, 119, 100):
        live.add(events(stars_log()[place : place + 1]))
        live.fold()
    check(ranker, pl.concat([stars_log().head(101), stars_log()[[104, 115, 119]]]), 200)


def test_users_and_items_without_a_row_are_not_counted_and_do_no_harm(earlier: Any) -> None:
    ranker = as_ranker(earlier)
    live = LiveCounters(1.0, 100, clock=lambda: at(200))
    live.follow(ranker)
    strange = stars_log()[100:102].with_columns(who=pl.lit("nobody"), what=pl.Series([999, 101]))
    live.add(events(strange))
    live.fold()
    wanted = expected(pl.concat([stars_log().head(100), strange]), ranker, 200)
    np.testing.assert_allclose(values(ranker)["shown"][2:], wanted["shown"], rtol=1e-6)
    np.testing.assert_allclose(values(ranker)["active"][2:], wanted["active"], rtol=1e-6)
    assert values(ranker)["active"][1] == 0


def test_a_request_reads_the_fresher_values(earlier: Any) -> None:
    ranker = as_ranker(earlier)
    live = LiveCounters(1.0, 100, clock=lambda: at(200))
    request = parse_request({"user": "a", "candidates": [100, 101]}, ranker.encoder.contract)
    before = ranker.encoder.encode_request(request, snapshot=ranker.counters)
    live.follow(ranker)
    live.add(events(stars_log()[100:]))
    live.fold()
    after = ranker.encoder.encode_request(request, snapshot=ranker.counters)
    wanted = expected(stars_log(), ranker, 200)
    rows = [ranker.encoder.items.index(item) - 2 for item in (100, 101)]
    of_items = ranker.encoder.candidate["shown"].encode_many(np.array(wanted["shown"])[rows])
    np.testing.assert_allclose(after.candidate["shown"], of_items, rtol=1e-5)
    assert before.candidate["shown"].tolist() != after.candidate["shown"].tolist()
    assert before.context["active"].tolist() != after.context["active"].tolist()


def test_the_next_version_gets_what_its_log_does_not_hold_and_the_one_before_begins_again(
    earlier: Any, later: Any
) -> None:
    first, second = as_ranker(earlier), as_ranker(later)
    live = LiveCounters(1.0, 100, clock=lambda: at(200))
    live.follow(first)
    live.add(events(stars_log()[105:]))
    live.fold()
    live.follow(second)
    live.fold()
    check(second, stars_log(), 200)
    live.add(events(stars_log()[100:105]))
    live.fold()
    check(second, stars_log(), 200)  # they are in its log
    live.follow(first)
    live.fold()
    check(first, stars_log(), 200)


def with_new_events(ranker: Any, of: Events) -> LiveCounters:
    """Live counters of a version, with events that are not in its counts yet."""
    live = LiveCounters(3600.0, 100, clock=lambda: at(200))
    live.follow(ranker)
    live.add(of)
    return live


def test_a_version_knows_the_events_of_before_with_its_first_answer(earlier: Any, later: Any) -> None:
    first, second = as_ranker(earlier), as_ranker(later)
    live = with_new_events(first, events(stars_log()[100:]))
    live.follow(second)
    check(second, stars_log(), 200)
    live.follow(first)
    check(first, stars_log(), 200)
    live.fold()
    check(first, stars_log(), 200)


def test_events_and_labels_that_come_while_a_version_begins_count_once(
    earlier: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranker, before = as_ranker(earlier), events(stars_log()[100:110])
    live = with_new_events(ranker, replace(before, label_E=1 - before.label_E))
    fold = _Version.fold
    meanwhile = [events(stars_log()[110:]), before]

    def slow(self: Any, *of: Any) -> None:
        while meanwhile:
            live.add(meanwhile.pop())
        fold(self, *of)

    monkeypatch.setattr(_Version, "fold", slow)
    live.follow(ranker)
    live.fold()
    check(ranker, stars_log(), 200)


def test_a_fault_while_a_version_begins_is_made_good_at_the_next_look(
    earlier: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranker = as_ranker(earlier)
    live = with_new_events(ranker, events(stars_log()[100:]))
    with monkeypatch.context() as broken:
        broken.setattr(_Version, "_count", lambda self, events: 1 / 0)
        live.follow(ranker)
    live.fold()
    check(ranker, stars_log(), 200)


def test_the_newest_events_alone_are_remembered(earlier: Any, later: Any) -> None:
    live = LiveCounters(1.0, 3, clock=lambda: at(200))
    first, second = as_ranker(earlier), as_ranker(later)
    live.follow(first)
    live.add(events(stars_log()[110:]))
    live.fold()
    check(first, pl.concat([stars_log().head(100), stars_log()[110:]]), 200)
    assert live.add(events(stars_log()[117:])) == 3
    live.follow(second)
    live.fold()
    check(second, pl.concat([stars_log().head(110), stars_log()[117:]]), 200)


def test_the_newest_event_that_counts_is_with_new_events(earlier: Any) -> None:
    live = LiveCounters(1.0, 100, clock=lambda: at(130))
    assert live.newest == 0
    live.follow(as_ranker(earlier))
    assert live.newest == at(99)
    live.add(events(stars_log()[119:]))
    assert live.newest == at(99)
    live.fold()
    assert live.newest == at(119)
    live.add(events(stars_log()[110:111]))
    live.fold()
    assert live.newest == at(119), "an older one that comes later"


def test_the_thread_folds_and_a_fault_does_not_end_it(earlier: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ranker = as_ranker(earlier)
    live = LiveCounters(0.01, 100, clock=lambda: at(200))
    fold, faults = live.fold, threading.Event()

    def sometimes() -> None:
        if not faults.is_set():
            faults.set()
            raise MemoryError
        fold()

    monkeypatch.setattr(live, "fold", sometimes)
    live.follow(ranker)
    before = ranker.counters
    live.start()
    live.add(events(stars_log()[100:]))
    until = time.monotonic() + 30
    while ranker.counters is before and time.monotonic() < until:
        time.sleep(0.01)
    live.close()
    assert faults.is_set() and ranker.counters is not before
    check(ranker, stars_log(), 200)


def test_readers_see_one_array_or_the_next_while_events_come(earlier: Any) -> None:
    """Each look adds one event to every item: what a reader finds is the same for all items."""
    ranker, now = as_ranker(earlier), [at(180)]
    live = LiveCounters(1.0, 10_000, clock=lambda: now[0])
    live.follow(ranker)
    items = [100 + item for item in range(12)]
    rows = ranker.encoder.items.indices(items)
    start = np.array(expected(stars_log().head(100), ranker, 180)["shown"])[rows - 2]
    torn: list[Any] = []
    end = threading.Event()

    def look() -> None:
        while not end.is_set():
            added = ranker.counters.items["shown"][rows] - start
            if len(np.unique(added)) != 1:
                torn.append(added)

    live.fold()
    reader = threading.Thread(target=look, daemon=True)
    reader.start()
    for turn in range(60):
        together = [PastEvent(item, MICROS + 101 * MINUTE + turn) for item in items]
        live.add(Events(("a",) * 12, tuple(together), np.ones(12), np.ones(12, bool)))
        live.fold()
    end.set()
    reader.join()
    assert torn == []
    assert (ranker.counters.items["shown"][rows] - start).tolist() == [60] * 12
