"""The raw log is asked about a row, and knows its request as the build does: its user, its id, and its day or file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.build.build import build_feature_set
from features.contract.contract import Contract
from features.encoding.encoder import Encoder
from features.requests.as_logged import Asked, open_as_logged
from features.store.feature_set import FeatureSet

MIDNIGHT, MICROS = 1_772_323_200, 1_000_000  # the first second of a day in March 2026
USER, OLDER, ASKED = 7, 11, 12


def contract_of(folder: Path, path: str, split: dict[str, Any]) -> Contract:
    pl.DataFrame({"item": range(10, 20), "price": np.arange(10.0)}).write_parquet(folder / "items.parquet")
    return Contract.model_validate(
        {
            "name": "shop",
            "root": str(folder),
            "interactions": {
                "path": path, "user": "user", "item": "item", "time": "time", "label": "label", "request": "request",
                "item_min_count": 1,
            },
            "items": {
                "path": "items.parquet", "id": "item",
                "columns": {"price": {"type": "numeric", "relative": ["count"]}},
            },
            "history": {"max_len": 9, "events": "all"},
            "split": split,
            "checks": {"duplicate": "warn"},
        }
    )  # fmt: skip


def write(file: Path, rows: list[tuple[int, int, int, str | None]]) -> None:
    """Rows of user, item, time in seconds and request; labels take turns."""
    file.parent.mkdir(exist_ok=True)
    table = pl.DataFrame(rows, schema=["user", "item", "time", "request"], orient="row")
    table.with_columns(label=pl.int_range(pl.len()) % 2).write_parquet(file)


def others(day: int) -> list[tuple[int, int, int, str | None]]:
    return [(user, 10 + user, MIDNIGHT + 86_400 * day + 3_600 * user, None) for user in range(1, 5)]


def built(feature_set: FeatureSet) -> tuple[int, int]:
    """Length of the history of the user's newest test row, and its time in µs."""
    user = Encoder.load(feature_set.path).users.index(USER)
    rows = {name: np.concatenate([part[name] for part in feature_set.rows("test")]) for name in ("time", "history_len")}
    mine = np.concatenate([part["user"] for part in feature_set.rows("test")]) == user
    newest = int(rows["time"][mine].max())
    return int(rows["history_len"][mine & (rows["time"] == newest)][0]), newest


def of_days(folder: Path) -> FeatureSet:
    """A request over midnight: a row a minute before it, and the one that is asked about a minute after."""
    for day in range(4):
        own: list[tuple[int, int, int, str | None]] = []
        own += [(USER, OLDER, MIDNIGHT + 3 * 86_400 - 60, "r")] if day == 2 else []
        own += [(USER, ASKED, MIDNIGHT + 3 * 86_400 + 60, "r")] if day == 3 else []
        write(folder / f"log/{day}.parquet", others(day) + own)
    contract = contract_of(folder, "log/*.parquet", {"by": "days", "valid": 1, "test": 1})
    return build_feature_set(contract, folder / "out").feature_set


def of_files(folder: Path) -> FeatureSet:
    """Each file counts its requests anew: the one that is asked about has the number of one in each file before it."""
    for number, name in enumerate(("train", "valid", "test")):
        write(
            folder / f"log/{name}.parquet",
            [*others(number), (USER, OLDER + number // 2, MIDNIGHT + 86_400 * number, "r")],
        )
    split = {"by": "files", "valid": "log/valid.parquet", "test": "log/test.parquet"}
    return build_feature_set(contract_of(folder, "log/train.parquet", split), folder / "out").feature_set


@pytest.mark.parametrize(("build", "past"), [(of_days, 1), (of_files, 2)])
def test_a_request_ends_where_the_build_ends_it(build: Any, past: int, tmp_path: Path) -> None:
    feature_set = build(tmp_path)
    length, time = built(feature_set)
    with open_as_logged(Encoder.load(feature_set.path)) as log:
        found = log.rows([USER], [ASKED], np.array([time]))
        known = log.known([Asked(USER, int(found.instant_R[0]), (ASKED,))])
    assert length == past
    assert found.instant_R.tolist() == [time]
    assert found.lists == ((ASKED,),)
    assert len(known[0].past) == past
