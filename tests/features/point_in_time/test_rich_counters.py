"""Counters of every kind of key and value in a feature set and in requests, against loops over all earlier rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.build.build import build_feature_set
from features.contract.contract import Contract
from features.encoding.encoder import Encoder
from features.encoding.later_items import with_later_items
from features.encoding.request import parse_request
from features.errors import ConfigError
from features.point_in_time import counter_pass
from features.requests.as_logged import Asked, open_as_logged
from features.requests.past_columns import RequestEncoder
from features.requests.request_rows import RowEncoder
from features.store.feature_set import SPLITS, FeatureSet
from tests.features.rich_counters import (
    COUNTERS,
    DAY,
    DAYS,
    HOUR,
    START,
    Row,
    contract,
    counted,
    draw_log,
    instants,
    key_of,
    means,
    write,
)

MICROS = 1_000_000


@pytest.fixture(scope="module", params=[1, 2])
def made(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Row], Contract, FeatureSet]:
    rows, folder = draw_log(request.param), tmp_path_factory.mktemp("rich")
    write(folder, rows)
    declared = contract(folder)
    return rows, declared, build_feature_set(declared, folder / "out").feature_set


def columns(built: FeatureSet) -> dict[tuple[Any, ...], dict[str, float]]:
    """Each counter as a number, by user, item, time (s) and request."""
    encoder = Encoder.load(built.path)
    scaled = {
        name: one for name, one in {**encoder.candidate, **encoder.context}.items() if name in encoder.contract.counters
    }
    found = {}
    for split in SPLITS:
        for part in built.rows(split):
            for i in range(len(part["user"])):
                ids = encoder.users.value(part["user"][i]), encoder.items.value(part["item"][i])
                values = {name: one.raw_value(part[name][i]) for name, one in scaled.items()}
                key = (*ids, int(part["time"][i]) // MICROS, int(part["request"][i]))
                found[key] = {name: np.nan if value is None else value for name, value in values.items()}
    return found


def close(found: float, wanted: float) -> bool:
    return bool(np.isclose(found, wanted, rtol=2e-5, atol=2e-5, equal_nan=True))


def test_each_row_has_what_loops_over_earlier_rows_give(made: Any) -> None:
    rows, declared, built = made
    found, mean_of = columns(built), means(rows)
    assert len(found) == len(rows) and list(declared.counters) == ["shown_2h", "shown_1d", *list(COUNTERS)[1:]]
    for name, counter in declared.counters.items():
        state, different = counted(rows, counter, mean_of[counter.label]), set()
        for row, instant in zip(rows, instants(rows), strict=True):
            value = found[row["user"], row["item"], row["time"], row["request"]][name]
            wanted = state.value(key_of(row, counter), instant)
            assert close(value, wanted), (name, row)
            different.add(round(value, 6))
        assert len(different) > 5, name


def test_keys_with_something_of_the_item_are_of_candidates(made: Any) -> None:
    _, declared, built = made
    context = {"device_rate", "country_count", "user_since", "user_device"}
    assert set(declared.context_counters) == context
    assert {one.name for one in built.schema.context} == context | {"device", "hour"}
    assert {one.name for one in built.schema.candidate} == set(declared.counters) - context


def test_requests_and_rows_to_score_know_what_the_next_row_would(made: Any) -> None:
    """Of a request after the log's end: all rows of the log, each counter as fresh as it is declared."""
    rows, declared, built = made
    encoder = Encoder.load(built.path)
    end = START + DAYS * DAY  # a full day: everything is known whatever `as_of` says
    newest = max(row["time"] for row in rows) * MICROS + 1
    mean_of, candidates = means(rows), [100, 103, 106, 10**6]
    asked = [("a", "tv"), ("c", "phone"), ("d", None), ("nobody", "desk")]
    for user, device in asked:
        body = {"user": user, "time": end + 2 * HOUR, "context": {"device": device}, "candidates": candidates}
        encoded = RequestEncoder(encoder).encode(parse_request(body, declared))
        table = {name: [body[name]] * 4 for name in ("user", "time")} | {"item": candidates, "device": [device] * 4}
        scored = RowEncoder(encoder, pl.DataFrame(table).schema).encode(pl.DataFrame(table))
        for name, counter in declared.counters.items():
            state = counted(rows, counter, mean_of[counter.label])
            of_candidate = name in encoder.candidate
            values = encoded.candidate[name] if of_candidate else encoded.context[name]
            again = scored.candidate[name] if of_candidate else scored.shared[f"context_{name}"]
            np.testing.assert_array_equal(values, again[: len(values)], err_msg=name)
            one = {**encoder.candidate, **encoder.context}[name]
            for place, value in enumerate(values):
                item = candidates[place]
                row = {"user": user, "item": item, "device": device, "time": end + 2 * HOUR}
                wanted = state.value_from(
                    key_of(row, counter), newest if not counter.grows else (end + 2 * HOUR) * MICROS
                )
                raw = one.raw_value(value)
                assert close(np.nan if raw is None else raw, wanted), (name, user, item)


def test_a_request_may_say_that_a_counter_is_as_it_says_or_has_no_value(made: Any) -> None:
    _, declared, built = made
    encoder = Encoder.load(built.path)
    given = [{"item": 100, "age": 7.0}, {"item": 103}, 106]
    request = parse_request({"user": "a", "time": START + DAYS * DAY, "candidates": given}, declared)
    plain = parse_request({"user": "a", "time": START + DAYS * DAY, "candidates": [100, 103, 106]}, declared)
    said, known = encoder.encode_request(request).candidate["age"], encoder.encode_request(plain).candidate["age"]
    assert said[0] == encoder.candidate["age"].encode_one(7.0)[0] != known[0]
    assert said[1:].tolist() == known[1:].tolist()
    without = encoder.encode_request(
        type(request)(candidates=(100, 103), candidate_columns={"age": (float("nan"), None)}, time=request.time)
    )
    assert np.isnan(without.candidate["age"][0]) and without.candidate["age"][1] == known[1]


def test_neither_shards_nor_chunks_change_anything(made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, declared, whole = made
    monkeypatch.setattr("features.build.build.ROWS_A_SHARD", 60)
    monkeypatch.setattr("features.sources.log.ROWS_A_CHUNK", 33)
    monkeypatch.setattr("features.point_in_time.counted_rows.ROWS_A_CHUNK", 41)
    divided = build_feature_set(declared, tmp_path).feature_set
    assert divided.manifest.shards > 2
    ours, theirs = columns(divided), columns(whole)
    assert ours.keys() == theirs.keys()
    assert all(close(ours[row][name], theirs[row][name]) for row in ours for name in ours[row])
    one, other = (Encoder.load(built.path).snapshot for built in (divided, whole))
    keys, keys_of_whole = ({name: of.keys.tolist() for name, of in each.keys.items()} for each in (one, other))
    assert keys and keys == keys_of_whole
    for name in declared.counters:
        values = [
            getattr(each, side)[name]
            for each in (one, other)
            for side in ("items", "users")
            if name in getattr(each, side)
        ]
        np.testing.assert_allclose(values[0], values[1], rtol=1e-6, err_msg=name)
        for part, of_whole in vars(other.states[name]).items():
            ours_sorted, theirs_sorted = np.sort(getattr(one.states[name], part)), np.sort(of_whole)
            np.testing.assert_allclose(ours_sorted, theirs_sorted, rtol=1e-9, err_msg=f"{name} {part}")


def test_a_day_more_equals_all_days_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate is drawn towards the mean of the first build's training window: another one by design, here a constant."""
    monkeypatch.setattr(counter_pass, "label_mean", lambda stream, splitter: 0.4)
    monkeypatch.setattr(counter_pass, "_label_means", lambda stream, splitter: {"likes": 0.6})
    write(tmp_path, draw_log(3))
    declared = contract(tmp_path)
    dates = [f"2026-03-{day + 1:02d}" for day in range(DAYS)]
    before = build_feature_set(declared, tmp_path / "out", as_of=dates[-2], window=4).feature_set
    after = build_feature_set(declared, tmp_path / "out", as_of=dates[-1], window=4).feature_set
    at_once = build_feature_set(declared, tmp_path / "other", as_of=dates[-1], window=4).feature_set
    kept = {part.rows for part in before.manifest.parts} & {part.rows for part in after.manifest.parts}
    assert kept
    ours, theirs = columns(after), columns(at_once)
    assert ours.keys() == theirs.keys()
    assert all(close(ours[row][name], theirs[row][name]) for row in ours for name in ours[row])
    # Another item table gives other keys: no day is kept, and all rows are those of a build at once.
    table = pl.read_parquet(tmp_path / "items.parquet")
    table.with_columns(kind=pl.Series(["news"] * 4 + ["sport"] * 4)).write_parquet(tmp_path / "items.parquet")
    again = columns(build_feature_set(declared, tmp_path / "out", as_of=dates[-1], window=4).feature_set)
    anew = columns(build_feature_set(declared, tmp_path / "anew", as_of=dates[-1], window=4).feature_set)
    assert all(close(again[row][name], anew[row][name]) for row in anew for name in anew[row])
    assert any(not close(again[row]["kind_rate"], ours[row]["kind_rate"]) for row in ours)


def test_a_replay_counts_what_rows_had(made: Any) -> None:
    rows, declared, built = made
    encoder, mean_of = Encoder.load(built.path), means(rows)
    chosen = [(row, at) for row, at in zip(rows, instants(rows), strict=True)][::9]
    asked = [
        Asked(
            row["user"],
            at,
            (row["item"], 100),
            {
                "country": encoder.user_table["country"][[encoder.users.index(row["user"])]],
                "device": encoder.context["device"].encode_one(row["device"]),
                "hour": encoder.context["hour"].encode(pl.Series("hour", [row["time"]])),
            },
        )
        for row, at in chosen
    ]
    with open_as_logged(encoder) as log:
        found = log.known(asked)
    for name, counter in declared.counters.items():
        state = counted(rows, counter, mean_of[counter.label])
        for (row, at), known in zip(chosen, found, strict=True):
            if name in known.users:
                assert close(known.users[name], state.value(key_of(row, counter), at)), (name, row)
                continue
            for item, value in zip((row["item"], 100), known.items[name], strict=True):
                assert close(value, state.value(key_of(row | {"item": item}, counter), at)), (name, row, item)


def test_an_item_that_comes_later_has_no_past_and_a_changed_one_keeps_it(made: Any) -> None:
    _, declared, built = made
    encoder = Encoder.load(built.path)
    later = with_later_items(encoder, pl.Series([900]), pl.Series([103, 100]))
    body = {"user": "a", "time": START + DAYS * DAY, "context": {"device": "tv"}, "candidates": [100, 103, 900, 10**6]}
    request = parse_request(body, declared)
    before, after = (one.encode_request(request) for one in (encoder, later))
    assert (after.candidate_item[:3] >= encoder.schema.items).all()
    for name in declared.candidate_counters:
        np.testing.assert_array_equal(after.candidate[name], before.candidate[name], err_msg=name)


def test_more_keys_than_64_bits_tell_apart_are_refused(tmp_path: Path) -> None:
    write(tmp_path, draw_log(1))
    wide = {name: {"type": "hashed", "buckets": 2**31 - 3, "source": "device"} for name in ("one", "two", "three")}
    log = {**contract(tmp_path).model_dump()["interactions"], "context": wide}
    declared = contract(tmp_path, {"much": {"of": ["one", "two", "three"], "value": "count"}}, interactions=log)
    with pytest.raises(
        ConfigError, match=r"counters\.much\.of: a key of 3 parts.* more than 2\^62\. Take a column out"
    ):
        build_feature_set(declared, tmp_path / "out")
