"""What a contract writes of a column: its name first, else an expression of one value a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from features.build.build import build_feature_set
from features.contract.contract import Contract
from features.contract.settings import validate
from features.errors import DataError
from features.sources.tables import expression, require_columns


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("like", [1, 0]),  # alone, no expression of SQL
        ("click-through", [5, 6]),  # a column first, a difference second
        ("click - through", [90, 80]),
        ("click > 90", [True, False]),
        ('"max (kg)" > 2', [False, True]),  # a name, no aggregate
        ("`max (kg)` > 2", [False, True]),
    ],
)
def test_an_expression_is_a_column_first(text: str, values: list[object]) -> None:
    raw = pl.LazyFrame({"like": [1, 0], "click-through": [5, 6], "click": [100, 90], "through": [10, 10]})
    raw = raw.with_columns(pl.Series("max (kg)", [1, 3]))
    assert raw.select(expression(raw, "log.csv", "interactions.label", text)).collect().to_series().to_list() == values


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rating >=", "is no SQL expression"),
        ("raiting >= 4", "no column 'raiting'. Did you mean 'rating'?"),
        ("rating >= 'x' AND TRUE", "cannot be computed"),
        ("SUM(rating)", "is one value for the whole log"),
        ("rating >= AVG(rating)", '"rating").mean() is computed over all rows'),
        ("rating >= first_value(rating)", "is computed over all rows"),
        ("rating >= approx_quantile(rating, 0.5)", "is computed over all rows"),
        ("CASE WHEN rating > 3 THEN count(*) ELSE rating END", "len() is computed over all rows"),
        ("rating > lag(rating) OVER (ORDER BY rating)", "OVER is computed over all rows"),
        ("row_number() over(ORDER BY rating) > 1", "OVER is computed over all rows"),
    ],
)
def test_an_expression_that_is_none(text: str, words: str) -> None:
    raw = pl.LazyFrame({"rating": [1, 5]})
    with pytest.raises(DataError) as error:
        expression(raw, "log.csv", "interactions.label", text)
    assert str(error.value).startswith("log.csv: ") and words in str(error.value)


@pytest.mark.parametrize(
    "text",
    ["over > 3", "over IN (1, 4)", "max > over", "title = 'max('", "title = 'sum(rating) over (order by time)'",
     "max > 1 + 1", "max > -4", "max > ABS(-4)", "pi() < max", "array_sum(tags) > 1", "greatest(max, over) > 3",
     "CASE WHEN max > 1 THEN 1 ELSE 0 END", "title LIKE 'a%' OR title IS NULL", "length(title) > 3"],
)  # fmt: skip
def test_an_expression_of_one_row_is_taken(text: str) -> None:
    raw = pl.LazyFrame({"over": [4], "max": [5], "title": ["max("], "tags": [[1, 2]]})
    assert raw.select(expression(raw, "log.csv", "interactions.label", text)).collect().height == 1


def test_a_missing_column_names_the_nearest() -> None:
    with pytest.raises(DataError, match=r"log.csv: no column 'usr'. Did you mean 'user'\?"):
        require_columns(pl.LazyFrame({"user": [1], "item": [2]}), "log.csv", ["item", "usr"])


LOG = pl.DataFrame(
    {
        "user": [1, 2, 1, 2],
        "item": [1, 2, 3, 4],
        "time": [10, 20, 30, 40],
        "rating": ["5", "abc", "1", "4"],
        "done": [1, 0, 0, 1],
    }
)
CAST = "CAST(rating AS INT) >= 4"
LABEL = {"label": "done"}
FAILING = {"type": "categorical", "source": CAST}
TABLE = {"path": "log.parquet", "user": "user", "item": "item", "time": "time"}


def failed(folder: Path, interactions: dict[str, Any], **more: Any) -> str:
    LOG.write_parquet(folder / "log.parquet")
    log = {"path": "log.parquet", "user": "user", "item": "item", "time": "time", "item_min_count": 1}
    content = {"name": "cast", "root": str(folder), "interactions": log | interactions} | more
    content |= {"split": {"valid": 0.25, "test": 0.25}}
    content["checks"] = {"earliest": "1970-01-01"}
    with pytest.raises(DataError) as error:
        build_feature_set(validate(Contract, content, "cast.yaml"), folder / "out")
    return str(error.value)


@pytest.mark.parametrize(
    ("where", "interactions", "more"),
    [
        ("interactions.label", {"label": CAST}, {}),
        ("interactions.context.high", {**LABEL, "context": {"high": FAILING}}, {}),
        ("interactions.labels.high", {**LABEL, "labels": {"high": CAST}}, {}),
        ("history.events", LABEL, {"history": {"events": CAST}}),
        ("history.columns.high", LABEL, {"history": {"columns": {"high": FAILING}}}),
        ("counters.high.number", LABEL, {"counters": {"high": {"of": "item", "number": CAST, "value": "mean"}}}),
        (
            "items.columns.high",
            LABEL,
            {"items": {"path": "log.parquet", "id": "item", "columns": {"high": FAILING}}},
        ),
        (
            "history.tables.columns.high",
            LABEL,
            {
                "history": {
                    "columns": {"high": {"type": "categorical", "source": "time > 20"}},
                    "tables": [TABLE | {"columns": {"high": CAST}}],
                }
            },
        ),
    ],
)  # fmt: skip
def test_an_expression_that_fails_for_a_value_is_named(
    tmp_path: Path, where: str, interactions: dict[str, Any], more: dict[str, Any]
) -> None:
    said = failed(tmp_path, interactions, **more)
    assert said.startswith(f"{tmp_path}/log.parquet: {where} {CAST!r} cannot be computed of every row: ")
    assert """conversion from `str` to `i32` failed in column 'rating': ["abc"]""" in said
    assert "`TRY_CAST(… AS …)` gives null where a value cannot be converted" in said
