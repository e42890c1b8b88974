"""Counters of a feature set are those that a server would have kept up: 2,000 logged rows replayed as requests."""

from __future__ import annotations

from collections import defaultdict
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from features import draws
from features.build.build import build_feature_set
from features.contract.contract import Contract, load_contract
from features.encoding.encoder import EncodedRequest, Encoder
from features.encoding.request import parse_request
from features.fitting.split import TimeSplitter
from features.point_in_time.counter_pass import _training_places
from features.point_in_time.live_counters import LiveCounter
from features.simulator.simulate import simulate
from features.store.feature_set import SPLITS, FeatureSet
from tests.features.chunks import chunk_of
from tests.features.counter_state import CounterState

SIMULATED = Path(__file__).parents[3] / "conf" / "data" / "simulated.yaml"
COUNTERS = {
    "item_rate": {"of": "item", "value": "rate"},
    "item_lately": {"of": "item", "value": "rate", "as_of": "hour", "prior": 2},
    "item_count": {"of": "item", "value": "count", "as_of": "day"},
    "user_rate": {"of": "user", "value": "rate"},
    "user_count": {"of": "user", "value": "count", "as_of": "hour"},
}
OVER: dict[str, Any] = {
    "counters": COUNTERS,
    "history": {"max_len": 20, "columns": {"residual": {"type": "residual", "counter": "item_rate"}}},
}


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Contract, FeatureSet]:
    folder = tmp_path_factory.mktemp("counted")
    simulate(folder, rows=2_400, users=80, items=120, seed=1)
    contract = load_contract(SIMULATED, OVER, root=str(folder))
    return contract, build_feature_set(contract, folder / "out").feature_set


class Server:
    """Keeps counters and histories up from a stream of events, and asks for scores with what it knows."""

    def __init__(self, contract: Contract, mean: float) -> None:
        self.contract = contract
        self.states = {name: CounterState(counter, mean) for name, counter in contract.counters.items()}
        self.past: dict[int, list[dict[str, Any]]] = defaultdict(list)

    def request(self, event: dict[str, Any], micros: int) -> dict[str, Any]:
        known = {name: state.value(event[f"{state.counter.of}_id"], micros) for name, state in self.states.items()}
        of_user = {name: known[name] for name in ("user_rate", "user_count")}
        of_item = {name: known[name] for name in ("item_rate", "item_lately", "item_count")}
        return {
            "user": event["user_id"],
            "context": {name: event[name] for name in ("hour", "device", "position")} | of_user,
            "history": list(self.past[event["user_id"]]),
            "candidates": [{"item": event["item_id"], **of_item}],
        }

    def take_in(self, event: dict[str, Any], micros: int, request: dict[str, Any]) -> None:
        residual = event["clicked"] - request["candidates"][0]["item_rate"]
        self.past[event["user_id"]].append(
            {"item": event["item_id"], "clicked": event["clicked"], "residual": residual}
        )
        for state in self.states.values():
            state.update(event[f"{state.counter.of}_id"], micros, event["clicked"])


def online(contract: Contract, built: FeatureSet) -> dict[tuple[int, int, int], EncodedRequest]:
    """Each row of the log, asked for when it was shown; events of one instant are told of after all of them."""
    log = pl.read_parquet(contract.resolve(contract.interactions.path))
    log = log.with_columns(micros=pl.col("timestamp").dt.epoch("us")).sort("micros", maintain_order=True)
    train = built.manifest.windows["train"]
    encoder, server = Encoder.load(built.path), Server(contract, train.positives / train.rows)
    asked = {}
    for micros, together in groupby(log.to_dicts(), key=lambda event: event["micros"]):
        events = list(together)
        requests = [server.request(event, micros) for event in events]
        for event, request in zip(events, requests, strict=True):
            encoded = encoder.encode_request(parse_request(request, contract))
            asked[event["user_id"], event["item_id"], micros] = encoded
        for event, request in zip(events, requests, strict=True):
            server.take_in(event, micros, request)
    return asked


def test_two_thousand_rows_replayed_as_requests(simulated: tuple[Contract, FeatureSet]) -> None:
    contract, built = simulated
    asked, encoder = online(contract, built), Encoder.load(built.path)
    compared = 0
    for split in SPLITS:
        for rows, events in zip(built.rows(split), built.events(split), strict=True):
            for i in range(len(rows["user"])):
                key = (encoder.users.value(rows["user"][i]), encoder.items.value(rows["item"][i]), int(rows["time"][i]))
                request = asked[key]
                past = slice(rows["history_end"][i] - rows["history_len"][i], rows["history_end"][i])
                for name in built.contract.context_columns:
                    assert rows[name][i] == request.context[name][0], (name, key)
                for name in built.contract.candidate_columns:
                    assert rows[name][i] == request.candidate[name][0], (name, key)
                assert events["item"][past].tolist() == request.history_item.tolist()
                assert events["clicked"][past].tolist() == request.history_events["clicked"].tolist()
                # Kept in float32 on disk: the label less a rate, to the last bit of either.
                np.testing.assert_allclose(events["residual"][past], request.history_events["residual"], atol=1e-7)
                compared += 1
    assert compared == 2_400


def test_what_the_request_leaves_out_is_as_the_log_ended(simulated: tuple[Contract, FeatureSet]) -> None:
    contract, built = simulated
    log = pl.read_parquet(contract.resolve(contract.interactions.path))
    encoder = Encoder.load(built.path)
    user, item = log["user_id"][0], log["item_id"][0]
    encoded = encoder.encode_request(parse_request({"user": user, "candidates": [item, 10**9]}, contract))
    counts = [log.filter(pl.col("item_id") == item).height, 0]
    wanted = encoder.candidate["item_count"].encode(pl.Series("item_count", counts, pl.Float64))
    assert encoded.candidate["item_count"].tolist() == wanted.tolist()
    mine = log.filter(pl.col("user_id") == user)
    assert encoded.context["user_count"].tolist() == encoder.context["user_count"].encode_one(mine.height).tolist()


def test_neither_buckets_nor_chunks_change_a_counter(
    simulated: tuple[Contract, FeatureSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contract, whole = simulated
    monkeypatch.setattr("features.build.build.ROWS_A_SHARD", 300)
    monkeypatch.setattr("features.sources.log.ROWS_A_CHUNK", 170)
    divided = build_feature_set(contract, tmp_path).feature_set
    assert divided.manifest.shards == 8

    def columns(built: FeatureSet) -> list[Any]:
        names = ("user", "item", "time", *COUNTERS)
        return sorted(
            values
            for part in built.rows("train")
            for values in zip(*(part[name].tolist() for name in names), strict=True)
        )

    assert columns(divided) == columns(whole)


def test_counters_go_on_from_the_state_that_a_build_ended_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log built up to some day, in eight shards, and the events after it: the whole log in plain Python."""
    monkeypatch.setattr("features.build.build.ROWS_A_SHARD", 250)
    simulate(tmp_path, rows=2_400, users=80, items=120, seed=1)
    fading = {name: {**one, "half_life": "2d"} for name, one in COUNTERS.items()}
    contract = load_contract(SIMULATED, {"counters": fading}, root=str(tmp_path))
    log = pl.read_parquet(contract.resolve(contract.interactions.path))
    log = log.with_columns(micros=pl.col("timestamp").dt.epoch("us")).sort("micros")
    day = log["timestamp"][1_900].date()
    built = build_feature_set(contract, tmp_path / "out", as_of=day.isoformat()).feature_set
    encoder, newest = Encoder.load(built.path), int(log["micros"].max())
    later = log.filter(pl.col("micros") > encoder.snapshot.newest)
    assert built.manifest.shards == 8 and later.height and encoder.snapshot.newest < newest
    for name, counter in contract.counters.items():
        ids, field = (encoder.items, "item_id") if counter.of == "item" else (encoder.users, "user_id")
        live = LiveCounter(counter, encoder.snapshot.mean, encoder.snapshot.states[name])
        row_E = ids.encode(later[field])
        known = row_E > 1  # the catalogue has no row for what came later
        live.add(
            *(one[known] for one in (row_E, later["micros"].to_numpy(), later["clicked"].to_numpy().astype(float)))
        )
        expected = CounterState(counter, built.manifest.label_mean or 0.0)
        for event in log.to_dicts():
            expected.update(event[field], event["micros"], event["clicked"])
        for instant in (newest + 1, newest + 90_000_000_000):
            found = live.values(instant)
            wanted = [expected.value(ids.value(row), instant) for row in range(2, ids.size)]
            np.testing.assert_allclose(found[2:], wanted, rtol=1e-9, atol=1e-12, err_msg=name)


def test_a_scale_is_fitted_on_rows_of_every_slot_of_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of six rows, and one training row in six is taken: not the same slot of every page."""
    monkeypatch.setattr(draws, "MOST_FITTED", 2_000)
    rows = 12_600
    # Every 21st page lies before the window.
    chunk = chunk_of(np.arange(rows), is_row=np.arange(rows) // 6 % 21 > 0)
    stream: Any = SimpleNamespace(narrow=lambda: [chunk], encoder=SimpleNamespace(users=None))
    places = _training_places(stream, TimeSplitter(rows, rows))
    assert len(places) == 2_000 and len(set(places.tolist())) == 2_000
    assert chunk.is_row[places].all()
    assert np.bincount(places % 6, minlength=6).min() > 250


def test_a_scale_is_fitted_on_all_rows_where_they_are_few() -> None:
    chunk = chunk_of(np.arange(50), is_row=np.arange(50) != 7)
    stream: Any = SimpleNamespace(narrow=lambda: [chunk], encoder=SimpleNamespace(users=None))
    places = _training_places(stream, TimeSplitter(40, 45))
    assert places.tolist() == [place for place in range(40) if place != 7]


def test_labels_of_later_windows_reach_no_training_row(tmp_path: Path) -> None:
    simulate(tmp_path, rows=2_400, users=80, items=120, seed=1)
    contract = load_contract(SIMULATED, OVER, root=str(tmp_path))
    before = build_feature_set(contract, tmp_path / "a").feature_set
    file = contract.resolve(contract.interactions.path)
    valid_from = before.manifest.windows["valid"].first_time
    late = pl.col("timestamp").dt.epoch("us") >= valid_from
    log = pl.read_parquet(file).with_columns(clicked=pl.when(late).then(1 - pl.col("clicked")).otherwise("clicked"))
    log.with_columns(pl.col("clicked").cast(pl.Int8)).write_parquet(file)
    after = build_feature_set(contract, tmp_path / "b").feature_set
    for one, other in zip(before.rows("train"), after.rows("train"), strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)
