"""Request-relative columns of feature sets, held to loops over the rows of each request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.encoding.encoder import Encoder
from features.encoding.number import NumericEncoder
from features.errors import ConfigError
from features.store.feature_set import FeatureSet
from tests.listed import (
    COLUMNS,
    build_listed,
    check_rows,
    listed_contract,
    listed_items,
    listed_log,
    stored_rows,
    write_listed,
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    folder = tmp_path_factory.mktemp("listed")
    write_listed(folder)
    return build_listed(folder)


def test_every_row_is_what_it_is_among_the_rows_of_its_request(built: FeatureSet) -> None:
    rows = check_rows(built)
    assert len(rows) == listed_log().height
    assert [field.name for field in built.schema.candidate] == ["rate", "shown", *COLUMNS]
    assert {round(row["candidates"], 4) for row in rows} == set(range(1, 8))
    # Lists lie on both sides of a split's first instant too: nothing is left out there.
    assert {row["split"] for row in rows} == {"train", "valid", "test"}


def test_each_column_is_standardised_by_training_rows(built: FeatureSet) -> None:
    for rows in [{name: np.concatenate([part[name] for part in built.rows("train")]) for name in COLUMNS}]:
        for name, values in rows.items():
            known = values[~np.isnan(values)]
            assert (known.mean(), known.std()) == pytest.approx((0, 1), abs=1e-4), name
    encoder = Encoder.load(built.path).relative["candidates"]
    assert isinstance(encoder, NumericEncoder) and encoder.transform == "log1p"


def test_the_sizes_of_training_requests_are_recorded(built: FeatureSet) -> None:
    sizes = built.manifest.list_sizes
    assert sizes is not None and (sizes.least, sizes.low, sizes.high, sizes.greatest) == (1, 1, 7, 7)


def test_rows_spread_over_files_chunks_and_shards_give_the_same(
    built: FeatureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = listed_log()
    write_listed(tmp_path, log[1::3])
    for name, start in (("b", 0), ("c", 2)):
        log[start::3].write_parquet(tmp_path / "log" / f"{name}.parquet")
    monkeypatch.setattr("features.sources.log.ROWS_A_CHUNK", 50)
    monkeypatch.setattr("features.build.build.ROWS_A_SHARD", 100)
    spread = build_listed(tmp_path)
    assert spread.manifest.shards > 3

    def by_row(feature_set: FeatureSet) -> list[list[float]]:
        found = sorted(stored_rows(feature_set), key=lambda row: (row["time"], row["item"]))
        return [[row[name] for name in COLUMNS] for row in found]

    np.testing.assert_allclose(by_row(spread), by_row(built), rtol=1e-4, atol=1e-5)
    assert spread.manifest.list_sizes == built.manifest.list_sizes


def test_a_row_without_a_request_id_is_alone(tmp_path: Path) -> None:
    log = listed_log().with_columns(page=pl.when(pl.int_range(pl.len()) % 5 == 0).then(None).otherwise("page"))
    write_listed(tmp_path, log)
    rows = check_rows(build_listed(tmp_path))
    alone = [row for row in rows if row["page"] == -1]
    assert len(alone) == log["page"].null_count() and {round(row["candidates"]) for row in alone} == {1}


def test_rows_in_quarantine_are_no_candidates(tmp_path: Path) -> None:
    """What the log does not say rightly is in no list: the others are compared without it."""
    items = listed_items().filter(pl.col("item") != 104)
    write_listed(tmp_path, items=items)
    built = build_listed(tmp_path, {"checks": {"unknown_item": "quarantine", "max_quarantine": 0.1}})
    rows = check_rows(built)
    assert 104 not in {row["item"] for row in rows} and len(rows) < listed_log().height


def test_files_without_labels_have_relative_columns_and_requests_of_their_own(tmp_path: Path) -> None:
    log = listed_log()
    write_listed(tmp_path, log.filter(pl.col("page") < 10))
    log.filter(pl.col("page").is_between(10, 12)).with_columns(pl.col("page") - 10).write_parquet(
        tmp_path / "valid.parquet"
    )
    log.filter(pl.col("page") > 12).drop("clicked").with_columns(pl.col("page") - 13).write_parquet(
        tmp_path / "test.parquet"
    )
    files = {"split": {"by": "files", "valid": "valid.parquet", "test": "test.parquet"}}
    rows = check_rows(build_listed(tmp_path, files), by=("user", "page", "split"))
    assert {np.isnan(row["label"]) for row in rows if row["split"] == "test"} == {True}


def test_item_columns_are_compared_as_they_were_when_the_request_began(tmp_path: Path) -> None:
    """An item is cheap at first and the dearest later: its share says which of the two its request's first row knew."""
    log, items = listed_log(), listed_items()
    page = next(
        one for _, one in log.group_by("user", "page", maintain_order=True) if one["page"][0] == 8 and len(one) == 7
    )
    item, half = int(page["item"][6]), int(page["time"][6])  # begins between two rows of a request
    dear = items.with_columns(price=pl.when(pl.col("item") == item).then(500.0).otherwise("price"), begins=half)
    versions = pl.concat([items.with_columns(begins=0), dear])
    write_listed(tmp_path, log, versions)
    over: dict[str, Any] = {"items": {"valid_from": "begins"}}
    built = build_listed(tmp_path, over)
    began = {key: min(times) for key, times in _times(log).items()}
    shares: dict[bool, set[float]] = {False: set(), True: set()}
    for row in stored_rows(built):
        if row["item"] == item and row["candidates"] > 6.5:
            shares[began[row["user"], row["page"]] >= half].add(round(row["price_share"], 3))
    assert min(shares[True]) > 0.9 and max(shares[False]) < 0.6


def _times(log: pl.DataFrame) -> dict[tuple[str, int], list[int]]:
    found: dict[tuple[str, int], list[int]] = {}
    for row in log.iter_rows(named=True):
        found.setdefault((row["user"], row["page"]), []).append(row["time"])
    return found


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"interactions": {"request": None}}, r"interactions\.request: missing\. `relative` compares the candidates"),
        (
            {
                "interactions": {"label": None, "negatives": {"per_positive": 2}},
                "counters": {"rate": {"value": "count"}},
            },
            "no list that was ranked",
        ),
        ({"counters": {"active": {"relative": ["rank"]}}}, r"counters\.active\.relative: is one number for all"),
        (
            {"interactions": {"context": {"load": {"relative": ["share"]}}}},
            r"interactions\.context\.load\.relative: is one number for all",
        ),
        ({"counters": {"rate": {"relative": ["rank", "rank"]}}}, "'rank' is named twice"),
        ({"counters": {"rate": {"relative": ["order"]}}}, "'rank', 'difference', 'share' or 'count'"),
        (
            {"interactions": {"context": {"candidates": {"type": "numeric"}}}},
            "makes a column 'candidates', but there is another",
        ),
        (
            {"counters": {"price": {"of": "item", "value": "count"}}},
            "'price' is a counter and an item column",
        ),
        (
            {"counters": {"price_rank": {"of": "item", "value": "count"}}},
            "makes a column 'price_rank'",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, over: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        listed_contract(tmp_path, over)
