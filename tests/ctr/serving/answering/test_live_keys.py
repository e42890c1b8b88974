"""Live counters by several columns: those of a log that holds the reported events too, also for keys it never saw."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ctr.serving.answering.events import Events
from ctr.serving.answering.live import LiveCounters
from features.build.build import build_feature_set
from features.encoding.encoder import Encoder
from features.encoding.past import PastEvent
from features.encoding.request import parse_request
from tests.features.rich_counters import DAY, DAYS, START, Row, contract, counted, draw_log, key_of, means, write

MICROS = 1_000_000
CUT = START + (DAYS - 1) * DAY  # the log's end, and the first reported event's day


@pytest.fixture(scope="module")
def ranker(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Built from all days but the last, which users then report."""
    folder = tmp_path_factory.mktemp("live")
    write(folder, draw_log(5))
    built = build_feature_set(contract(folder), folder / "out", as_of="2026-03-05").feature_set
    encoder, manifest = Encoder.load(built.path), SimpleNamespace(windows=built.manifest.windows)
    return SimpleNamespace(encoder=encoder, counters=encoder.snapshot, bundle=SimpleNamespace(manifest=manifest))


def events(rows: list[Row]) -> Events:
    found = tuple(PastEvent(row["item"], row["time"] * MICROS) for row in rows)
    clicked = np.array([float(row["clicked"]) for row in rows])
    return Events(tuple(row["user"] for row in rows), found, clicked, np.ones(len(rows), bool))


def test_reported_events_count_in_keys_of_several_columns(ranker: Any) -> None:
    every, encoder = draw_log(5), ranker.encoder
    early, late = ([row for row in every if (row["time"] >= CUT) == is_late] for is_late in (False, True))
    # The same user, item and time twice is one event, sent again.
    late = list({(row["user"], row["item"], row["time"]): row for row in reversed(late)}.values())
    now = START + (DAYS + 1) * DAY
    live = LiveCounters(1.0, 10_000, clock=lambda: now)
    live.follow(ranker)
    live.add(events(late[::2]))
    live.fold()
    live.add(events(late[1::2]))
    live.fold()
    declared = encoder.contract
    assert set(declared.live_counters) == {
        "shown_2h", "shown_1d", "age", "kind_rate", "country_count", "user_since", "user_item"
    }  # fmt: skip
    assert len(ranker.counters.keys["user_item"].keys) > len(encoder.snapshot.keys["user_item"].keys)
    # The log that the bundle was built from had four training days less one to validate and one to test.
    mean = encoder.snapshot.mean
    assert mean == pytest.approx(np.mean([row["clicked"] for row in early if row["time"] < CUT - 2 * DAY]))
    assert means(every)[None] != mean
    for user in "abcdef":
        body: dict[str, Any] = {
            "user": user,
            "time": now,
            "context": {"device": "tv"},
            "candidates": [100, 101, 102, 103, 104],
        }
        encoded = encoder.encode_request(parse_request(body, declared), snapshot=ranker.counters)
        for name, counter in declared.live_counters.items():
            state = counted([*early, *late], counter, mean)
            values = encoded.candidate[name] if name in encoder.candidate else encoded.context[name]
            for item, value in zip(body["candidates"], values, strict=False):
                raw = {**encoder.candidate, **encoder.context}[name].raw_value(value)
                wanted = state.value(key_of({"user": user, "item": item}, counter), now * MICROS)
                assert np.isclose(np.nan if raw is None else raw, wanted, rtol=3e-5, atol=2e-5, equal_nan=True), name


def test_the_other_counters_stay_as_the_log_ended(ranker: Any) -> None:
    encoder = ranker.encoder
    live = LiveCounters(1.0, 10_000, clock=lambda: CUT + 2 * DAY)
    live.follow(ranker)
    live.add(events([{"user": "a", "item": 100, "time": CUT + 60, "clicked": 1}]))
    live.fold()
    snapshot, ended = ranker.counters, encoder.snapshot
    others = encoder.contract.counters.keys() - encoder.contract.live_counters.keys()
    assert others == {"liked", "device_rate", "user_kind", "item_hour", "user_device", "where", "clicks"}
    for name in others:
        side = "items" if name in ended.items else "users"
        np.testing.assert_array_equal(getattr(snapshot, side)[name], getattr(ended, side)[name])
    # Hours of these go on from the log's end, and those of live ones from the last look.
    counter, nobody = encoder.contract.counters["where"], np.zeros(1, np.int64)
    parts = {"country": np.array([2]), "device": np.array([2]), "user": np.array([2])}
    moments = [(CUT + days * DAY) * MICROS for days in (1, 3)]
    first, last = (snapshot.values("where", counter, nobody + 2, parts, moment) for moment in moments)
    assert last - first == pytest.approx(48)
