"""A served log with its outcomes as one row an impression: what was shown, and whether it was clicked in time.

Outcomes are joined by request and item: those of `wait` after the answer count, later ones are counted and told. When
an answer left is told by the server's clock (`logged`); the request's own time, which its client says, is the row's.
Of several answers with the same request id the last one that showed an item counts for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import polars as pl

from features.contract.contract import Contract, Table
from features.contract.labels import columns_read
from features.contract.log import Served
from features.errors import DataError
from features.sources.impressions import CLICKED
from features.sources.tables import expression, has_no_row, named, readable, require_columns, scan
from features.sources.times import end_of, microseconds
from features.store.served_schema import SHADOW

SERVED_TIME = "time"  # as the server's log calls it
READ = ("request", SERVED_TIME, "user", "candidates", "positions", "context", "user_hashed", "variant", "logged")
SAMPLE = 10_000  # answers whose context tells what type each of its columns has
TYPES: dict[type, pl.DataType] = {str: pl.String(), int: pl.Int64(), float: pl.Float64(), bool: pl.Boolean()}
# Columns that exist in between.
_AT, _LEFT, _ITEM, _REQUEST, _OUTCOME, _PLACE = "_at", "_left", "_item", "_request_id", "_outcome_at", "_place"


@dataclass(frozen=True)
class Outcomes:
    """What became of the outcomes and answers of a served log.

    Args:
        used: outcomes that made a row positive, one for each request and item.
        repeated: more of a request and item within the wait.
        late: after the wait.
        early: before the answer.
        unshown: of an answer, but of an item that it did not show.
        unknown: of a request that the log does not hold.
        undecided: answers that were younger than the wait at the end of the log, and are left out.
        twice: request ids that more than one answer has; of an item that several of them showed, the last one counts.
        anonymous: decided answers without a user, which are left out.
        hashed: answers whose user is a hash.
        answers: in the log.
    """

    used: int
    repeated: int
    late: int
    early: int
    unshown: int
    unknown: int
    undecided: int
    twice: int
    anonymous: int
    hashed: int
    answers: int


def served_rows(contract: Contract, path: str, as_of: str | None = None) -> pl.LazyFrame:
    """One row for each shown candidate of each answer that is decided, in the order of the log.

    Columns: user, item, time and request under the names of the contract, `position` from 0, `version`, the columns
    of the request's context that the contract reads, and 0 or 1 under `_clicked`. Memory holds the outcomes and ids.

    Args:
        contract: with `interactions.served`.
        path: of the served log.
        as_of: leave out what was served after this day (UTC).

    Raises:
        DataError: a file is missing or is no served log, an id is not of the type that the catalogue's are, or
            outcomes lack a column.
    """
    log, served = contract.interactions, _served(contract)
    answers = served_answers(contract, path, as_of)
    columns = _context(contract, answers, path)
    decided = (pl.col(_LEFT) <= _end(answers, path) - served.wait) & pl.col("user").is_not_null()
    rows, positives = _shown(answers, served).filter(decided), _positives(contract, answers)
    found = rows.join(positives, on=[_PLACE, "candidates"], how="left", maintain_order="left")
    names: dict[str, pl.Expr] = {
        str(log.time): pl.from_epoch(_AT, "us"),
        log.user: typed_ids("user", contract.users, contract),
        log.item: typed_ids("candidates", contract.items, contract),
        log.request or "request": pl.col(_REQUEST),
        "position": pl.col("positions"),
        "version": pl.col("version"),
    }
    if both := sorted(set(columns) & set(names)):
        raise DataError(f"{path}: context column {both[0]!r} has the name of another column of the row. Rename it.")
    return found.select(**names, **columns, **{CLICKED: pl.col(CLICKED).fill_null(0)})


def outcomes_of(contract: Contract, as_of: str | None = None) -> Outcomes:
    """Count what became of the outcomes. Raises DataError as `served_rows`."""
    served, path = _served(contract), contract.resolve(contract.interactions.path)
    answers, outcomes = served_answers(contract, path, as_of), _outcomes(contract)
    end = _end(answers, path)
    pairs = _shown(answers, served).select(_REQUEST, _LEFT, pl.col("candidates").alias(_ITEM), "user")
    asked = pairs.join(outcomes.select(_REQUEST, _ITEM).unique(), on=[_REQUEST, _ITEM], how="semi")
    known = answers.select(_REQUEST).join(outcomes.select(_REQUEST).unique(), on=_REQUEST, how="semi")
    matched = outcomes.join(known.unique().with_columns(_known=True), on=_REQUEST, how="left").join(
        asked.unique([_REQUEST, _ITEM]), on=[_REQUEST, _ITEM], how="left"
    )
    age, is_known, is_shown = (
        pl.col(_OUTCOME) - pl.col(_LEFT),
        pl.col("_known").is_not_null(),
        pl.col(_LEFT).is_not_null(),
    )
    within = (
        is_shown
        & pl.col("user").is_not_null()
        & (age >= 0)
        & (age <= served.wait)
        & (pl.col(_LEFT) <= end - served.wait)
    )
    repeated = pl.col(_REQUEST).is_duplicated()
    with readable(path):
        counts = matched.select(
            unknown=(~is_known).sum(),
            unshown=(is_known & ~is_shown).sum(),
            early=(is_shown & (age < 0)).sum(),
            late=(is_shown & (age > served.wait)).sum(),
            within=within.sum(),
            used=pl.struct(_REQUEST, _ITEM).filter(within).n_unique(),
        ).collect(engine="streaming")
        about = answers.select(
            answers=pl.len(),
            undecided=(pl.col(_LEFT) > end - served.wait).sum(),
            anonymous=(pl.col("user").is_null() & (pl.col(_LEFT) <= end - served.wait)).sum(),
            hashed=pl.col("user_hashed").sum(),
            twice=pl.col(_REQUEST).filter(repeated).n_unique(),
        ).collect(engine="streaming")
    found: dict[str, Any] = counts.row(0, named=True) | about.row(0, named=True)
    return Outcomes(repeated=found.pop("within") - found["used"], **found)


def _served(contract: Contract) -> Served:
    served = contract.interactions.served
    assert served is not None, "the contract declares no served log"
    return served


def served_answers(contract: Contract, path: str, as_of: str | None) -> pl.LazyFrame:
    """The log's rows with `_request_id`, the request's time `_at` and when its answer left, `_left`, µs; `_place`."""
    raw = scan(path, contract.interactions.format)
    lacking = [name for name in READ if name not in raw.collect_schema()]
    if lacking:
        raise DataError(
            f"{path}: no column {lacking[0]!r}, so it is no log that `quadrank serve` of this version wrote. Let "
            "interactions.path name parts called served-….parquet alone."
        )
    # The scores of a shadow were shown to nobody.
    seen = raw.filter(pl.col("variant").ne_missing(SHADOW))
    found = seen.with_row_index(_PLACE).with_columns(
        pl.col("request").alias(_REQUEST),
        pl.col(SERVED_TIME).dt.timestamp("us").alias(_AT),
        pl.col("logged").dt.timestamp("us").alias(_LEFT),
    )
    return found if as_of is None else found.filter(pl.max_horizontal(_AT, _LEFT) < end_of(as_of))


def _end(answers: pl.LazyFrame, path: str) -> int:
    """When the newest answer left, µs."""
    with readable(path):
        newest = answers.select(pl.col(_LEFT).max()).collect(engine="streaming").item()
    if newest is None:
        raise DataError(f"{path}: the served log is empty. Check interactions.path and --as-of.")
    return int(newest)


def _shown(answers: pl.LazyFrame, served: Served) -> pl.LazyFrame:
    """One row for each candidate that an answer showed; of a request and item that several answers did, the last."""
    place = pl.col("positions")
    again = answers.group_by(_REQUEST).len().filter(pl.col("len") > 1).select(_REQUEST)
    pairs = answers.explode("candidates", "positions", empty_as_null=False, keep_nulls=False).filter(
        place.is_not_null() if served.shown is None else place < served.shown
    )
    keys = [_REQUEST, "candidates"]
    last = (
        pairs.join(again, on=_REQUEST, how="semi")
        .group_by(keys)
        .agg(_last=pl.col(_PLACE).sort_by(_LEFT, _PLACE).last())
    )
    chosen = pairs.join(last, on=keys, how="left", maintain_order="left")
    return chosen.filter(pl.col("_last").is_null() | (pl.col("_last") == pl.col(_PLACE))).drop("_last")


def _outcomes(contract: Contract) -> pl.LazyFrame:
    """Positive outcomes: `_request_id`, `_item` as text, `_outcome_at` in µs."""
    served = _served(contract)
    path = contract.resolve(served.outcomes)
    raw = scan(path, served.format)
    require_columns(raw, path, [served.request, served.item, served.time])
    if served.label is not None and not has_no_row(raw):
        raw = raw.filter(_is_positive(raw, path, served.label))
    for name in (served.request, served.item):
        dtype = raw.collect_schema()[name]
        if not (dtype.is_integer() or dtype in (pl.String, pl.Categorical, pl.Enum)):
            raise DataError(
                f"{path}: column {name!r} holds {dtype}, expected text or whole numbers, as ids are. Write it again."
            )
    found = raw.select(
        pl.col(served.request).cast(pl.String).alias(_REQUEST),
        pl.col(served.item).cast(pl.String).alias(_ITEM),
        microseconds(raw, path, served.time, served.time_unit, served.time_format).alias(_OUTCOME),
    )
    with readable(path):
        nulls = found.select(pl.all().null_count()).collect(engine="streaming").row(0)
    for name, count in zip((served.request, served.item, served.time), nulls, strict=True):
        if count:
            raise DataError(f"{path}: column {name!r} is missing in {count} rows. Leave such outcomes out.")
    return found


def _is_positive(raw: pl.LazyFrame, path: str, text: str) -> pl.Expr:
    """Which outcomes are positive. Raises DataError for a label that is neither 0 nor 1 where it is not missing."""
    where = f"{path}: interactions.served.label {text!r}"
    label = expression(raw, path, "interactions.served.label", text)
    (dtype,) = raw.select(label).collect_schema().dtypes()
    if not (dtype.is_numeric() or dtype in (pl.Boolean, pl.Null)):
        raise DataError(f"{where} is {dtype}, expected 0/1 or a condition such as `amount > 0`.")
    number = label.cast(pl.Float64)
    wrong = raw.filter(~number.is_in([0.0, 1.0])).select(pl.len(), number.first().alias("example"))
    with readable(path, raw.select(label.alias("label")), {"label": named("interactions.served.label", text)}):
        count, example = wrong.collect(engine="streaming").row(0)
        rows: Any = raw.select(pl.len()).collect(engine="streaming").item()
    if count:
        raise DataError(
            f"{where}: {count} of {rows} outcomes are neither 0 nor 1, e.g. {example:g}. Write it as a condition, e.g. "
            "`amount > 0`."
        )
    return number == 1


def _positives(contract: Contract, answers: pl.LazyFrame) -> pl.LazyFrame:
    """Place of the answer and item of each outcome in time, once, with 1 under `_clicked`."""
    served = _served(contract)
    age = pl.col(_OUTCOME) - pl.col(_LEFT)
    matched = answers.select(_REQUEST, _PLACE, _LEFT).join(_outcomes(contract), on=_REQUEST, how="inner")
    in_time = matched.filter((age >= 0) & (age <= served.wait))
    found = in_time.select(_PLACE, pl.col(_ITEM).alias("candidates")).unique()
    return found.with_columns(pl.lit(1, pl.Int8).alias(CLICKED))


def typed_ids(column: str, table: Table | None, contract: Contract) -> pl.Expr:
    """Ids, which the log holds as text, in the type that the catalogue has: whole numbers, or text."""
    if table is None:
        return pl.col(column)
    path = contract.resolve(table.path)
    raw = scan(path, table.format)
    require_columns(raw, path, [table.id])
    dtype = raw.collect_schema()[table.id]
    return pl.col(column).cast(pl.Int64, strict=False) if dtype.is_integer() or dtype.is_float() else pl.col(column)


def _context(contract: Contract, answers: pl.LazyFrame, path: str) -> dict[str, pl.Expr]:
    """Columns of the request's context that the contract reads, each in the type that the log shows."""
    log = contract.interactions
    own = {log.user, log.item, str(log.time), log.request, "position", "version"}
    names = _read(spec.source or name for name, spec in log.context.items()) - own
    others = _read(_texts(contract)) - own
    defaults = {spec.source or name: spec.default for name, spec in log.context.items()}
    numbers = {spec.source or name for name, spec in log.context.items() if spec.form == "number"}
    with readable(path):
        sample = answers.select("context").head(SAMPLE).collect()["context"].drop_nulls()
    try:
        shown = sample.str.json_decode(infer_schema_length=None).dtype
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path}: column 'context' is not JSON: {str(error).splitlines()[0]}.") from None
    kinds: dict[str, Any] = dict(shown) if isinstance(shown, pl.Struct) else {}
    types: dict[str, pl.DataType] = {}
    for name in sorted(names | (others & kinds.keys())):
        found = kinds.get(name, pl.Null())
        if name in numbers:
            found = pl.Float64()
        elif found == pl.Null():
            found = TYPES.get(type(defaults.get(name)), pl.String())
        types[name] = found
    if not types:
        return {}
    decoded = pl.col("context").str.json_decode(pl.Struct(types))
    return {name: _with_default(decoded.struct.field(name), defaults.get(name), dtype) for name, dtype in types.items()}


def _with_default(column: pl.Expr, default: Any, dtype: pl.DataType) -> pl.Expr:
    """A request that does not give a column was scored with its default."""
    return column if default is None else column.fill_null(pl.lit(default, dtype))


def _texts(contract: Contract) -> list[str]:
    """What else of the contract may read a column of the context."""
    log, history = contract.interactions, contract.history
    events = [spec.source or name for name, spec in history.columns.items()]
    return [*events, history.events, *log.labels.values(), *([log.weight] if log.weight else [])]


def _read(texts: Iterable[str]) -> set[str]:
    return set().union(*map(columns_read, texts))
