"""A log of lists: which candidates each user was shown at once; and what each of them is among the others, by loops."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features.build.build import build_feature_set
from features.contract.contract import Contract
from features.contract.settings import merge, validate
from features.encoding.encoder import Encoder
from features.store.feature_set import SPLITS, FeatureSet

ALL = ["rank", "difference", "share", "count"]
START, LISTS, USERS, ITEMS = 1_772_323_200, 120, 8, 25
LISTED: dict[str, Any] = {
    "name": "listed",
    "interactions": {
        "path": "log/*.parquet",
        "user": "user",
        "item": "item",
        "time": "time",
        "label": "clicked",
        "request": "page",
        "item_min_count": 1,
        "context": {"load": {"type": "numeric"}},
    },
    "items": {
        "path": "items.parquet",
        "id": "item",
        "columns": {
            "genre": {"type": "categorical"},
            "price": {"type": "numeric", "transform": "log1p", "relative": ALL},
        },
    },
    "counters": {
        "rate": {"of": "item", "value": "rate", "prior": 3, "relative": ALL},
        "shown": {"of": "item", "value": "count", "as_of": "hour", "half_life": "3h", "relative": ["share", "rank"]},
        "active": {"of": "user", "value": "count"},
    },
    "history": {"max_len": 4, "columns": {"label": {"type": "categorical"}}},
}
COLUMNS = ("rate_rank", "rate_difference", "rate_share", "shown_share", "shown_rank", "price_rank", "price_difference")
COLUMNS = (*COLUMNS, "price_share", "candidates")


def listed_log() -> pl.DataFrame:
    """Lists of 1 to 7 candidates, rows of a list some seconds apart; a page's number is a user's own."""
    draw = np.random.default_rng(4)
    rows = []
    for number in range(LISTS):
        size = 1 + number % 7
        for place, item in enumerate(draw.choice(ITEMS, size, replace=False)):
            rows.append(
                {
                    "user": f"u{number % USERS}",
                    "item": 100 + int(item),
                    "time": START + number * 800 + place,
                    "clicked": int(draw.random() < 0.1 + 0.03 * (item % 10)),
                    "page": number // USERS,
                    "load": float(draw.random()),
                }
            )
    return pl.DataFrame(rows)


def listed_items() -> pl.DataFrame:
    """Prices with ties, and one missing in six."""
    item = np.arange(ITEMS)
    price = [None if one % 6 == 5 else float(one % 4 + 1) for one in item]
    return pl.DataFrame({"item": 100 + item, "genre": [f"g{one % 3}" for one in item], "price": price})


def listed_contract(folder: Path, over: Any = None) -> Contract:
    return validate(Contract, merge(LISTED, over or {}) | {"root": str(folder)}, "listed.yaml")


def write_listed(folder: Path, log: pl.DataFrame | None = None, items: pl.DataFrame | None = None) -> None:
    (folder / "log").mkdir(parents=True, exist_ok=True)
    (listed_log() if log is None else log).write_parquet(folder / "log" / "a.parquet")
    (listed_items() if items is None else items).write_parquet(folder / "items.parquet")


def build_listed(folder: Path, over: Any = None, out: str = "out") -> FeatureSet:
    return build_feature_set(listed_contract(folder, over), folder / out).feature_set


def built_lists(folder: Path) -> FeatureSet:
    """The feature set of the log of lists, raw files below the same folder."""
    write_listed(folder)
    return build_listed(folder)


def among(values: list[float], of: float, kind: str, raws: list[float], raw: float) -> float:
    """One relative number by definition: values of the list that are there, the candidate's among them."""
    if kind == "rank":
        others = list(values)
        others.remove(of)
        points = [1.0 if one < of else 0.5 if one == of else 0.0 for one in others]
        return sum(points) / len(points) if points else 0.5
    if kind == "difference":
        return of - math.fsum(values) / len(values)
    total = math.fsum(raws)
    return raw / total if abs(total) > 1e-3 else math.nan


def expected(encoder: Encoder, listed: list[dict[str, float]]) -> list[dict[str, float]]:
    """The relative numbers of one list, unscaled, of its encoded ones: `rate`, `shown` and `price` by candidate."""
    readers = {**encoder.candidate, "price": encoder.item["price"]}
    found: list[dict[str, float]] = []
    for own in listed:
        row: dict[str, float] = {"candidates": float(len(listed))}
        for name in COLUMNS[:-1]:
            of, kind = name.rsplit("_", 1)
            values = [one[of] for one in listed if not math.isnan(one[of])]
            raws = [readers[of].raw_value(np.float32(value)) for value in values]
            raw = readers[of].raw_value(np.float32(own[of]))
            row[name] = math.nan if raw is None else among(values, own[of], kind, raws, raw)
        found.append(row)
    return found


def stored_rows(built: FeatureSet) -> list[dict[str, Any]]:
    """Every row: raw ids, the encoded numbers that are compared, and the relative columns unscaled."""
    encoder, prices = Encoder.load(built.path), built.items["price"]
    found = []
    for split in SPLITS:
        for rows in built.rows(split):
            for i in range(len(rows["user"])):
                row = {name: float(rows[name][i]) for name in ("rate", "shown")}
                row |= {"price": float(prices[rows["item"][i]]), "split": split, "page": int(rows["request"][i])}
                row |= {"user": encoder.users.value(rows["user"][i]), "item": encoder.items.value(rows["item"][i])}
                row |= {"time": int(rows["time"][i]), "label": float(rows["label"][i])}
                of = {name: one.raw_value(rows[name][i]) for name, one in encoder.relative.items()}
                found.append(row | {name: math.nan if value is None else value for name, value in of.items()})
    return found


def check_rows(built: FeatureSet, by: tuple[str, ...] = ("user", "page")) -> list[dict[str, Any]]:
    """Hold every stored row to the definition, its list being the rows that agree in `by`; a page -1 is alone."""
    encoder, rows = Encoder.load(built.path), stored_rows(built)
    lists: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for place, row in enumerate(rows):
        lists[(place,) if row["page"] == -1 else tuple(row[name] for name in by)].append(row)
    for listed in lists.values():
        for row, wanted in zip(listed, expected(encoder, listed), strict=True):
            got = [row[name] for name in COLUMNS]
            np.testing.assert_allclose(got, [wanted[name] for name in COLUMNS], rtol=2e-4, atol=2e-5, err_msg=str(row))
    return rows
