"""What a contract writes of a column: its name first, else an expression of one value a row."""

from __future__ import annotations

import polars as pl
import pytest

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
