"""A warning where item vectors that are learned from clicks leak the labels of training rows."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from features.build.label_leakage import FEWEST_ROWS, label_leakage
from features.chunk import ITEM, LABEL
from features.contract.contract import Contract
from features.vectors.read import learned_file


def warnings_of(folder: Path, with_vector: list[int | None], without: list[int | None]) -> list[str]:
    """Warnings for training rows with these labels, of item 7, which has a vector, and of item 8."""
    covisit = {"learn": "history", "id": "item"}
    log = {"path": "p", "user": "u", "item": "i", "time": "t", "label": "y"}
    declared = Contract.model_validate({"name": "c", "interactions": log, "embeddings": {"covisit": covisit}})
    file = learned_file(folder, "covisit")
    file.parent.mkdir(exist_ok=True)
    pl.DataFrame({"item": [7]}).write_parquet(file)
    items = [7] * len(with_vector) + [8] * len(without)
    rows = pl.DataFrame({ITEM: items, LABEL: with_vector + without}, schema={ITEM: pl.Int32, LABEL: pl.Int8})
    return [one.message for one in label_leakage(declared, folder, rows.lazy())]


def test_rows_without_a_vector_that_are_hardly_clicked_are_warned_of(tmp_path: Path):
    (message,) = warnings_of(tmp_path, [1, 0, 0, 0] * 50, [1] * 12 + [0] * 88)
    assert message.startswith(
        "embeddings.covisit: of 100 training rows whose item has no vector 12.0% are positive, of the others 25.0%. "
    )
    assert "`learn: tables`" in message


@pytest.mark.parametrize(
    ("with_vector", "without", "why"),
    [
        ([1, 0, 0, 0] * 50, [1] * 13 + [0] * 87, "half the rate"),
        ([1, 0] * 50, [0] * (FEWEST_ROWS - 1), "few rows"),
        ([1, 0] * 50, [None] * FEWEST_ROWS, "no label"),
        ([1] * 50, [1] * FEWEST_ROWS, "positives alone"),
        ([], [0] * FEWEST_ROWS, "no row with a vector"),
    ],
)
def test_nothing_is_said_where_a_missing_vector_predicts_nothing(
    tmp_path: Path, with_vector: list[int | None], without: list[int | None], why: str
):
    assert warnings_of(tmp_path, with_vector, without) == [], why


def test_without_learned_sets_nothing_is_read(tmp_path: Path):
    log = {"path": "p", "user": "u", "item": "i", "time": "t", "label": "y"}
    assert label_leakage(Contract.model_validate({"name": "c", "interactions": log}), tmp_path, pl.LazyFrame()) == ()
