"""Every type of column in every place it can be declared: built, then sent as requests, with equal outcome."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.build.build import build_feature_set
from features.contract.contract import Contract
from features.encoding.encoder import Encoder
from features.encoding.request import parse_request
from features.store.feature_set import SPLITS, FeatureSet
from tests.features.raw import ROWS, Tables, raw_log

SHARED = {
    "device": {"type": "hashed", "buckets": 3},
    "speed": {"type": "buckets", "edges": [1, 4]},
    "when": {"type": "date", "part": "hour"},
    "spent": {"type": "numeric", "clip": [0, 50], "transform": "log1p"},
}
OVER: dict[str, Any] = {
    "interactions": {"context": {**SHARED, "late": {"type": "categorical", "source": "hour > 12"}}},
    "items": {
        "columns": {
            "labels": {"type": "tags", "separator": "|", "max_len": 2},
            "decade": {"type": "categorical", "source": "year // 10 * 10"},
            "age": {"type": "buckets", "source": "2030 - year", "count": 3},
            "maker": {"type": "hashed", "buckets": 100},
        }
    },
    "users": {
        "columns": {
            "born": {"type": "buckets", "count": 3},
            "joined": {"type": "date", "part": "month"},
            "town": {"type": "hashed", "buckets": 7},
            "visits": {"type": "numeric", "scale": "none"},
        }
    },
    "history": {"columns": {**SHARED, "pause": {"type": "gap", "buckets": 6}}},
}
YEARS = [None if i == 4 else 1980 + 3 * i for i in range(12)]
MONTHS = [datetime(2024, 1 + i, 5, tzinfo=UTC) for i in range(8)]


def change(tables: Tables) -> None:
    rng = np.random.default_rng(7)
    speed = [None if i % 9 == 0 else float(i % 6) for i in range(ROWS)]
    tables["log"] = tables["log"].with_columns(
        # One user has one row an instant, so an impression is named by user and time.
        user_id=1 + pl.int_range(pl.len()) % 6,
        device=pl.Series(rng.choice(["phone", "téléphone", ""], ROWS)),
        speed=pl.Series(speed),
        when=pl.col("time") + rng.integers(0, 10**6, ROWS),
        spent=pl.Series(rng.normal(20, 40, ROWS)),
    )
    tables["items"] = tables["items"].with_columns(
        labels=pl.Series(["b|a", "", None, "c|a|b"] * 3), year=pl.Series(YEARS), maker=pl.int_range(pl.len()) % 5
    )
    tables["users"] = tables["users"].with_columns(
        born=1950 + 5 * pl.int_range(pl.len()),
        joined=pl.Series(MONTHS),
        town=pl.format("town {}", pl.int_range(pl.len()) % 4),
        visits=pl.Series([0.5, None, 1e9, -3, 2, 2, 2, 2]),
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Contract, FeatureSet]:
    folder = tmp_path_factory.mktemp("every-type")
    contract = raw_log(folder, change, OVER)
    return contract, build_feature_set(contract, folder / "out").feature_set


def test_sizes_are_as_declared(built: tuple[Contract, FeatureSet]) -> None:
    schema = built[1].schema
    sizes = {field.name: field.size for field in (*schema.context, *schema.item, *schema.user, *schema.event)}
    expected = {"device": 5, "speed": 5, "when": 26, "late": 4, "labels": 5, "maker": 102, "joined": 14, "town": 9}
    assert expected.items() <= sizes.items() and sizes["pause"] == 8


def test_table_columns_by_hand(built: tuple[Contract, FeatureSet]) -> None:
    """The first five items; b|a, nothing, missing, c|a cut at two, b|a; 1980, 1983, 1986, 1989 and unknown."""
    items = Encoder.load(built[1].path).items
    rows = [items.index(101 + i) for i in range(5)]
    assert built[1].items["labels"][rows].tolist() == [[3, 2], [1, 0], [1, 0], [4, 2], [3, 2]]
    assert built[1].items["decade"][rows].tolist() == [2, 2, 2, 2, 1]
    assert built[1].items["age"][rows][4] == 1 and built[1].items["age"][rows][:4].min() > 2
    users = Encoder.load(built[1].path).users
    assert built[1].users["joined"][users.index(3)] == 4
    visits = [float(built[1].users["visits"][users.index(user)]) for user in (1, 2, 3, 4)]
    np.testing.assert_array_equal(visits, [0.5, np.nan, 1e9, -3])


def test_rows_sent_as_requests_are_encoded_alike(built: tuple[Contract, FeatureSet]) -> None:
    contract, feature_set = built
    encoder = Encoder.load(feature_set.path)
    log = pl.read_parquet(contract.resolve("log.parquet")).with_columns(late=pl.col("hour") > 12)
    attributes = pl.read_parquet(contract.resolve("users.parquet"))
    replayed = 0
    for split in SPLITS:
        for rows, events in zip(feature_set.rows(split), feature_set.events(split), strict=True):
            for i in range(len(rows["user"])):
                user, at = encoder.users.value(rows["user"][i]), int(rows["time"][i]) // 1_000_000
                own = log.filter(pl.col("user_id") == user).sort("time", maintain_order=True)
                past = own.filter(pl.col("time") < at).with_columns(pause=pl.col("time").diff())
                [shown] = own.filter(pl.col("time") == at).to_dicts()
                [known] = attributes.filter(pl.col("user_id") == user).to_dicts()
                request = {
                    "user": user,
                    "user_columns": {
                        "segment": known["segment"],
                        "born": known["born"],
                        "joined": known["joined"].isoformat(),
                        "town": known["town"],
                        "visits": known["visits"],
                    },
                    "context": {name: shown[name] for name in contract.interactions.context},
                    "history": [
                        {"item": event["item_id"], **{name: event[name] for name in contract.history.columns}}
                        for event in past.to_dicts()
                    ],
                    "candidates": [shown["item_id"]],
                }
                online = encoder.encode_request(parse_request(request, contract))
                end, length = int(rows["history_end"][i]), int(rows["history_len"][i])
                for name in contract.interactions.context:
                    np.testing.assert_array_equal(online.context[name], rows[name][i : i + 1], name)
                for name in contract.history.columns:
                    stored = events[name][end - length : end]
                    np.testing.assert_array_equal(online.history_events[name], stored, name)
                for name, table in feature_set.users.items():
                    np.testing.assert_array_equal(online.user[name], table[rows["user"][i]][None], name)
                replayed += length
    assert replayed > 300
