"""Logged rows sent as requests of raw events, through JSON, are encoded to what the feature set holds for them."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.build.build import build_feature_set
from features.contract.contract import Contract
from features.encoding.encoder import Encoder
from features.encoding.request import parse_request
from features.requests.past_columns import RequestEncoder
from features.store.feature_set import SPLITS, FeatureSet
from tests.features.counter_state import CounterState

START, STEP, MICROS = 1_772_323_200, 1_700, 1_000_000  # the first second of the log, and between two of its instants
FORMAT = "%d/%m/%Y %H:%M:%S"
EVERY: dict[str, Any] = {
    "rating": {"type": "categorical"},
    "label": {"type": "categorical"},
    "device": {"type": "hashed", "buckets": 50},
    "load": {"type": "numeric", "transform": "log1p"},
    "load_bin": {"type": "buckets", "source": "load", "edges": [1, 3]},
    "seen": {"type": "categorical"},
    "seen_number": {"type": "numeric", "source": "seen"},
    "stars": {"type": "categorical", "source": "CAST(rating * 2 AS INT)"},
    "good": {"type": "categorical", "source": "rating > 2.5"},
    "loved": {"type": "numeric", "source": "CASE WHEN label = 1 THEN load ELSE 0 END", "scale": "none"},
    "hour": {"type": "date", "part": "hour", "source": "time"},
    "weekday": {"type": "date", "part": "weekday", "source": "time"},
    "pause": {"type": "gap"},
}
HISTORIES: dict[str, dict[str, Any]] = {
    "the newest": {"max_len": 3},
    "every column": {"max_len": 6, "columns": EVERY},
    "positives": {"events": "label == 1", "columns": {"pause": {"type": "gap"}}},
    "a comparison": {"events": "load < 2.5"},
    "32 bits": {"events": "weight <= 0.3"},
    "an expression": {"events": "device <> 'tv' AND (load > 1 OR seen)"},
    "a boolean": {"events": "seen"},
    "within": {"within": "3h"},
    "a session": {"session_gap": "1h"},
    "delay": {"delay": "30m"},
    "all limits": {"within": "6h", "session_gap": "2h", "delay": "20m", "max_len": 4},
    "consecutive": {"repeats": "consecutive", "columns": {"pause": {"type": "gap"}}},
    "first": {"repeats": "first", "columns": {"pause": {"type": "gap"}}},
    "first of the positives": {"repeats": "first", "events": "label = 1", "within": "12h", "max_len": 5},
}
RATES: dict[str, dict[str, Any]] = {
    "event": {},
    "hour": {"as_of": "hour", "prior": 2},
    "day": {"as_of": "day"},
    "fading": {"half_life": "6h", "prior": 3},
}


def contract_of(folder: Path, history: dict[str, Any], log: dict[str, Any] | None = None, **more: Any) -> Contract:
    interactions = {
        "path": "log.parquet",
        "user": "user",
        "item": "item",
        "time": "time",
        "label": "rating >= 4",
        "item_min_count": 1,
        "context": {"row": {"type": "numeric", "scale": "none"}},
    }
    content = {"name": "shop", "root": str(folder), "interactions": interactions | (log or {})}
    history = {"max_len": 50} | history
    return Contract.model_validate(content | {"history": history, "checks": {"duplicate": "warn"}} | more)


def write_log(
    folder: Path, rows: int = 200, users: int = 6, items: int = 7, seed: int = 0, time: str = "seconds"
) -> pl.DataFrame:
    """Few users, items and instants: many ties, some of one user and item; missing values in every column."""
    draw = np.random.default_rng(seed)
    seconds = START + STEP * draw.integers(rows // 4, size=rows)
    load = draw.exponential(2, rows)
    table = pl.DataFrame(
        {
            "row": np.arange(rows, dtype=np.float64),
            "user": [f"u{user}" for user in draw.integers(users, size=rows)],
            "item": 100 + draw.integers(items, size=rows),
            "time": seconds,
            "rating": draw.integers(1, 6, rows).astype(np.int8),
            "device": [None if one == "none" else one for one in draw.choice(["phone", "tv", "desk", "none"], rows)],
            "load": [None if i % 9 == 0 else one for i, one in enumerate(load)],
            "seen": [None if i % 7 == 0 else bool(one) for i, one in enumerate(draw.integers(2, size=rows))],
            "weight": draw.choice([0.1, 0.3, 0.5], rows).astype(np.float32),
            "request": [f"r{one}" for one in seconds // (5 * STEP)],
        }
    )
    if time == "text":
        table = table.with_columns(pl.from_epoch("time", "s").dt.strftime(FORMAT))
    elif time == "moments":
        table = table.with_columns(
            pl.from_epoch("time", "s").dt.replace_time_zone(
                "Europe/Copenhagen", non_existent="null", ambiguous="earliest"
            )
        )
    table.write_parquet(folder / "log.parquet")
    return table


def as_sent(events: pl.DataFrame) -> list[dict[str, Any]]:
    """The log's rows as JSON has them, newest first, those of one instant in their order."""
    times = events["time"]
    if times.dtype not in (pl.Int64, pl.String):
        events = events.with_columns(time=pl.Series([one.isoformat() for one in times.to_list()]))
    place = np.lexsort((np.arange(events.height), -instants(times)))
    rows = events[place.tolist()].drop("user", "row").to_dicts()
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def instants(times: pl.Series) -> np.ndarray:
    if times.dtype == pl.String:
        times = times.str.to_datetime(FORMAT)
    if times.dtype == pl.Int64:
        return times.to_numpy() * MICROS
    return times.dt.epoch("us").to_numpy()


def with_counters(log: pl.DataFrame, contract: Contract, mean: float) -> pl.DataFrame:
    """The log with what a server's item counters said when each row was shown; they learn of it at its time."""
    time, first = instants(log["time"]), known_at(log, contract)
    label = (log["rating"] >= 4).to_list()
    for name, counter in contract.counters.items():
        state, said = CounterState(counter, mean), np.zeros(log.height)
        for now in sorted({*time.tolist(), *first.tolist()}):
            for i in np.flatnonzero(first == now):
                said[i] = state.value(log["item"][int(i)], now)
            for i in np.flatnonzero(time == now):
                state.update(log["item"][int(i)], now, label[i])
        log = log.with_columns(pl.Series(name, said))
    return log


def known_at(log: pl.DataFrame, contract: Contract) -> np.ndarray:
    """As of when each row knows the past: its own time, or that of its request's earliest row."""
    time = pl.Series("micros", instants(log["time"]))
    if contract.interactions.request is None:
        return time.to_numpy()
    return log.with_columns(time).select(pl.col("micros").min().over("user", "request")).to_series().to_numpy()


def replayed(contract: Contract, log: pl.DataFrame, folder: Path) -> int:
    """Build, and compare every row of the feature set with its request; how many events were compared."""
    built = build_feature_set(contract, folder / "out").feature_set
    return compare(built, log, contract)


def compare(built: FeatureSet, log: pl.DataFrame, contract: Contract) -> int:
    encoder = Encoder.load(built.path)
    requests = RequestEncoder(encoder)
    train = built.manifest.windows["train"]
    log = with_counters(log, contract, train.positives / train.rows)
    pasts = {user[0]: as_sent(events) for user, events in log.group_by("user", maintain_order=True)}
    moments, compared = known_at(log, contract), 0
    for split in SPLITS:
        for rows, events in zip(built.rows(split), built.events(split), strict=True):
            for i in range(len(rows["user"])):
                row = int(rows["row"][i])
                user = log["user"][row]
                sent = {
                    "user": user,
                    "time": f"{np.datetime64(int(moments[row]), 'us')}Z",
                    "context": {"row": row},
                    "history": pasts[user],
                    "candidates": [log["item"][row]],
                }
                request = parse_request(json.loads(json.dumps(sent)), contract)
                encoded = requests.encode(request)
                past = slice(rows["history_end"][i] - rows["history_len"][i], rows["history_end"][i])
                assert encoded.history_item.tolist() == events["item"][past].tolist(), (row, split)
                for name in contract.history.columns:
                    if events[name].dtype == np.float32:
                        np.testing.assert_allclose(encoded.history_events[name], events[name][past], rtol=0, atol=1e-6)
                    else:
                        assert encoded.history_events[name].tolist() == events[name][past].tolist(), (row, name)
                compared += len(encoded.history_item)
    assert sum(len(rows["user"]) for split in SPLITS for rows in built.rows(split)) == log.height
    return compared


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
def test_each_option_of_histories(history: dict[str, Any], tmp_path: Path) -> None:
    log = write_log(tmp_path)
    assert replayed(contract_of(tmp_path, history), log, tmp_path) > 300


@pytest.mark.parametrize("counter", RATES.values(), ids=RATES)
def test_each_kind_of_counter(counter: dict[str, Any], tmp_path: Path) -> None:
    log = write_log(tmp_path)
    history = {"max_len": 8, "columns": {"residual": {"type": "residual", "counter": "rate"}}}
    contract = contract_of(tmp_path, history, counters={"rate": {"of": "item", "value": "rate"} | counter})
    assert replayed(contract, log, tmp_path) > 300


@pytest.mark.parametrize("time", ["text", "moments"])
def test_times_that_are_no_whole_numbers(time: str, tmp_path: Path) -> None:
    log = write_log(tmp_path, time=time)
    text = "STRPTIME(time, '%d/%m/%Y %H:%M:%S')" if time == "text" else "time"
    columns = {"hour": {"type": "date", "part": "hour", "source": text}, "pause": {"type": "gap"}}
    declared = {"time_format": FORMAT if time == "text" else None}
    contract = contract_of(tmp_path, {"columns": columns, "within": "6h"}, declared)
    assert replayed(contract, log, tmp_path) > 300


def test_rows_of_a_request_know_what_its_earliest_knew(tmp_path: Path) -> None:
    log = write_log(tmp_path)
    history = {"columns": EVERY | {"residual": {"type": "residual", "counter": "rate"}}}
    contract = contract_of(
        tmp_path, history, {"request": "request"}, counters={"rate": {"of": "item", "value": "rate", "as_of": "hour"}}
    )
    assert (known_at(log, contract) < instants(log["time"])).any()
    assert replayed(contract, log, tmp_path) > 300


def test_candidates_of_impressions(tmp_path: Path) -> None:
    """Each is an event of its own, `clicked` or not."""
    log = write_log(tmp_path)
    lists = log.with_columns(shown=pl.concat_list("item", pl.lit(200, pl.Int64)), taken=pl.concat_list("item"))
    lists = lists.with_columns(
        pl.when(pl.col("rating") >= 4).then("taken").otherwise(pl.lit([], pl.List(pl.Int64))).alias("taken")
    )
    lists.drop("item", "rating").write_parquet(tmp_path / "log.parquet")
    declared = {"label": None, "candidates": {"column": "shown", "clicked": "taken"}}
    history = {
        "events": "label = 1",
        "repeats": "consecutive",
        "columns": {"label": {"type": "categorical"}, "load": {"type": "numeric"}},
    }
    contract = contract_of(tmp_path, history, declared)
    built = build_feature_set(contract, tmp_path / "out").feature_set
    requests = RequestEncoder(Encoder.load(built.path))
    events_of = defaultdict(list)
    for row in log.to_dicts():
        events_of[row["user"]] += [
            {"item": row["item"], "time": row["time"], "clicked": int(row["rating"] >= 4), "load": row["load"]},
            {"item": 200, "time": row["time"], "clicked": 0, "load": row["load"]},
        ]
    compared = 0
    for split in SPLITS:
        for rows, events in zip(built.rows(split), built.events(split), strict=True):
            for i in range(len(rows["user"])):
                logged = log.row(int(rows["row"][i]), named=True)
                sent = {"time": logged["time"], "history": events_of[logged["user"]], "candidates": [200]}
                encoded = requests.encode(parse_request(json.loads(json.dumps(sent)), contract))
                past = slice(rows["history_end"][i] - rows["history_len"][i], rows["history_end"][i])
                assert encoded.history_item.tolist() == events["item"][past].tolist()
                assert encoded.history_events["label"].tolist() == events["label"][past].tolist()
                np.testing.assert_allclose(encoded.history_events["load"], events["load"][past], atol=1e-6)
                compared += len(encoded.history_item)
    assert compared > 300


@pytest.mark.slow
@pytest.mark.parametrize("repeats", ["keep", "consecutive", "first"])
def test_five_thousand_rows(repeats: str, tmp_path: Path) -> None:
    log = write_log(tmp_path, rows=5_000, users=20, items=400, seed=1)
    residuals = {f"residual_{name}": {"type": "residual", "counter": name} for name in RATES}
    history = {
        "max_len": 30,
        "columns": EVERY | residuals,
        "within": "20d",
        "session_gap": "9h",
        "delay": "10m",
        "events": "load < 6",
        "repeats": repeats,
    }
    counters = {name: {"of": "item", "value": "rate"} | counter for name, counter in RATES.items()}
    contract = contract_of(tmp_path, history, {"request": "request"}, counters=counters)
    assert replayed(contract, log, tmp_path) > 50_000
