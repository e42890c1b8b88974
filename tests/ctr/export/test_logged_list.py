"""Logged rows with the list they were ranked in: comparing it anew gives what the feature set holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ctr.export.logged_list import LoggedRow, compared_anew, logged_list
from features.encoding.encoder import Encoder
from features.store.feature_set import FeatureSet
from tests.listed import COLUMNS, build_listed, listed_log, write_listed

DAY = 86_400


def by_time(folder: Path) -> Any:
    """A page of 60 candidates that lasts over the beginning of the test window."""
    log = listed_log()
    begins = int(log["time"].quantile(0.9) or 0)
    long = log.with_columns(page=pl.when((pl.col("time") - begins).abs() < 6_000).then(900).otherwise("page"))
    write_listed(folder, long.with_columns(user=pl.when(pl.col("page") == 900).then(pl.lit("u1")).otherwise("user")))
    return None


def by_days(folder: Path) -> Any:
    """Ten days, each page of a user lasting for all of them."""
    log = listed_log().with_columns(time=pl.col("time") + (pl.col("time") - pl.col("time").min()) // 10_000 * DAY)
    write_listed(folder, log.with_columns(page=pl.lit(1)))
    return {"split": {"by": "days", "valid": 2, "test": 3}}


def by_files(folder: Path) -> Any:
    """Each file begins to count its pages anew."""
    log = listed_log()
    write_listed(folder, log.filter(pl.col("page") < 10))
    for name, first in (("valid", 10), ("test", 12)):
        part = log.filter(pl.col("page") >= first, pl.col("page") < first + 3)
        part.with_columns(page=pl.col("page") - first).write_parquet(folder / f"{name}.parquet")
    return {"split": {"by": "files", "valid": "valid.parquet", "test": "test.parquet"}}


def without_a_page(folder: Path) -> Any:
    write_listed(folder, listed_log().with_columns(page=pl.when(pl.col("page") < 12).then("page")))
    return None


@pytest.mark.parametrize("log", [by_time, by_days, by_files, without_a_page])
def test_a_list_is_whole(log: Any, tmp_path: Path) -> None:
    over = log(tmp_path)
    built = build_listed(tmp_path, over)
    encoder, sizes = Encoder.load(built.path), set()
    for part, rows in enumerate(built.rows("test")):
        for index in range(0, len(rows["user"]), 3):
            stored = logged_list(built, LoggedRow(part, index), encoder)
            anew = compared_anew(stored, encoder)
            for name in COLUMNS:
                np.testing.assert_allclose(stored.candidate[name], anew.candidate[name], atol=1e-5, err_msg=name)
            own = encoder.relative["candidates"].raw_value(rows["candidates"][index])
            assert len(stored.candidate_item) == round(own) and stored.candidate_item[0] == rows["item"][index]
            sizes.add(round(own))
    assert sizes == {1} if log is without_a_page else len(sizes) > 1


def test_a_list_longer_than_a_request_may_be_is_cut_and_compared_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_listed(tmp_path)
    built = build_listed(tmp_path)
    encoder = Encoder.load(built.path)
    row = next(_long(built))
    whole = logged_list(built, row, encoder)
    monkeypatch.setattr("ctr.export.logged_list.Limits", lambda: type("Few", (), {"max_candidates": 3}))
    cut = logged_list(built, row, encoder)
    assert len(whole.candidate_item) > 3 and cut.candidate_item.tolist() == whole.candidate_item[:3].tolist()
    assert encoder.relative["candidates"].raw_value(cut.candidate["candidates"][0]) == pytest.approx(3, abs=1e-4)


def _long(built: FeatureSet) -> Any:
    for part, rows in enumerate(built.rows("test")):
        for index in np.flatnonzero(rows["candidates"] > 0.5):
            yield LoggedRow(part, int(index))
