"""`quadrank score` with a model that compares candidates: rows get the scores of their lists, ranked whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from ctr.config import ModelConfig
from ctr.serving.agreement import TOLERANCE, logit_difference
from ctr.serving.ranker import Ranker
from features.errors import DataError
from pipelines.serving.score import score_file
from tests.ctr.serving.shop import export
from tests.listed import START, build_listed, write_listed
from tests.trained import random_model


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scored")
    write_listed(folder)
    listed = build_listed(folder)
    model = random_model(listed, ModelConfig(embedding_dim=4, attention_dim=4), seed=2)
    return export(model, listed, folder / "bundle", scorer=True).path


def rows() -> pl.DataFrame:
    """Lists of 1 to 9, two users with one page number after each other, and rows without a page."""
    draw = np.random.default_rng(3)
    found: list[dict[str, Any]] = []
    for number in range(12):
        page = None if number == 5 else number // 2
        found += [
            {"user": f"u{number % 2}", "item": int(item), "page": page, "time": START + 10**6, "load": 0.25}
            for item in draw.choice(np.arange(98, 125), 1 + number % 9, replace=False)
        ]
    return pl.DataFrame(found)


def scored(bundle: Path, folder: Path, table: pl.DataFrame, batch: int) -> np.ndarray:
    table.write_parquet(folder / "input.parquet")
    console = Console(quiet=True)
    score_file(bundle, folder / "input.parquet", folder / "output.parquet", None, batch, 1, console)
    output = pl.read_parquet(folder / "output.parquet")
    assert output.drop("score").equals(table)
    return output["score"].to_numpy()


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_rows_get_the_scores_of_their_list(bundle: Path, tmp_path: Path, batch: int) -> None:
    table, ranker = rows(), Ranker.load(bundle)
    got = scored(bundle, tmp_path, table, batch)
    numbered = table.with_row_index("place")
    pages = [part for _, part in numbered.drop_nulls("page").group_by("user", "page")]
    alone = numbered.filter(pl.col("page").is_null())
    assert alone.height == 6 and max(part.height for part in pages) == 9
    for part in [*pages, *alone.iter_slices(1)]:
        request = {"user": part["user"][0], "time": START + 10**6, "context": {"load": 0.25}}
        ranked = {one.item: one.score for one in ranker.rank(request | {"candidates": part["item"].to_list()}).ranked}
        wanted = np.array([ranked[item] for item in part["item"]])
        assert logit_difference(got[part["place"].to_numpy()], wanted) <= TOLERANCE


@pytest.mark.parametrize("batch", [4, 1000])
def test_a_list_that_is_torn_apart_is_refused(bundle: Path, tmp_path: Path, batch: int) -> None:
    table = rows()
    torn = pl.concat([table, table[3:4]])
    with pytest.raises(DataError, match=r"column 'page': rows of request 1 \(user 'u0'\) do not follow each other"):
        scored(bundle, tmp_path, torn, batch)


def test_rows_without_the_request_are_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'page'\. The model compares the candidates of a request"):
        scored(bundle, tmp_path, rows().drop("page"), 1000)
