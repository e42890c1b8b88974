"""Learns every encoder from the training window, and writes the item and user tables they encode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from features.chunk import CONTEXT, EVENT, GIVEN, HISTORY, ITEM, TIME, USER
from features.contract.columns import EventColumn, Gap, Residual, ScalarColumn
from features.contract.contract import Contract, Table
from features.draws import drawn, one_in
from features.encoding.base import ColumnEncoder, Columns
from features.encoding.encoder import Encoder, encode_table, encode_versions, fields
from features.encoding.registry import encode_value, fit_column
from features.encoding.vocabulary import Vocabulary
from features.errors import DataError, error_prefix
from features.fitting.catalogue import (
    build_catalogue,
    extended_catalogue,
    fit_columns,
    read_table,
    without_negative_ids,
)
from features.fitting.table_versions import latest, visible
from features.sources.keys import canonical
from features.sources.log import Log, chunks, value_counts
from features.store.schema import UNKNOWN, Schema
from features.store.versions import ITEM_VERSIONS, USER_VERSIONS


@dataclass(frozen=True)
class Tables:
    """The raw item and user tables of a contract, None where it declares none.

    Args:
        items, users: one row an id, the latest.
        item_versions, user_versions: all rows by id and `VALID_FROM`, of a table that declares `valid_from`.
    """

    items: pl.DataFrame | None
    users: pl.DataFrame | None
    item_versions: pl.DataFrame | None = None
    user_versions: pl.DataFrame | None = None

    @classmethod
    def read(cls, contract: Contract, as_of: str | None = None) -> Tables:
        """Read both, up to the day `as_of`.

        Raises:
            DataError: missing file or column, null or duplicate ids, or item ids below 0.
        """
        found: dict[str, pl.DataFrame | None] = {}
        for which, declared in (("item", contract.items), ("user", contract.users)):
            table = read_table(contract, declared, which, as_of) if declared else None
            if table is not None and declared is not None and which == "item":
                table = without_negative_ids(table, declared, contract)
            if table is not None and declared is not None and declared.valid_from is not None:
                found[f"{which}_versions"], table = table, latest(table, declared.id)
            found[f"{which}s"] = table
        return cls(**found)

    def ids(self, contract: Contract) -> tuple[pl.Series | None, pl.Series | None]:
        """Ids of the item and of the user table."""
        items = None if self.items is None else self.items[contract.item_field]
        users = None if self.users is None else self.users[contract.user_field]
        return items, users


@dataclass(frozen=True)
class Fitted:
    """What the training window taught.

    Args:
        encoder: of every column but counters and vectors.
        items: encoded item table, row i is catalogue row i.
        versions: encoded versions by the name of their file, of the tables that have some.
        trained_I: which catalogue items were seen in training, bool [items].
    """

    encoder: Encoder
    items: dict[str, np.ndarray]
    versions: dict[str, dict[str, np.ndarray]]
    trained_I: np.ndarray


def fit(
    contract: Contract,
    log: Log,
    tables: Tables,
    train: pl.LazyFrame,
    prior: Encoder | None = None,
    fresh: pl.LazyFrame | None = None,
) -> Fitted:
    """Fit catalogues, vocabularies and scalers; or extend those of an earlier version.

    With `prior`, every index keeps its meaning and new values come after the old ones; numbers keep their scale. So
    rows encoded then and now can be read together, and a model trained then goes on.

    Args:
        contract: what the columns are.
        log: whose users and items get rows of the catalogues.
        tables: raw item and user tables.
        train: rows of the training window, under the log's fixed names.
        prior: the encoder to extend.
        fresh: the rows of `train` that `prior` was not fitted on: only what is in them can be new.

    Raises:
        DataError: ids of the log and of a table do not go together, a column is not what it was declared.
        ConfigError: a context default is of another type than its column.
    """
    interactions = contract.interactions
    items = _fit_side(
        Side(
            ITEM,
            interactions.item,
            contract.item_field,
            interactions.item_min_count,
            interactions.item_max_idle,
            contract.items,
        ),
        contract,
        log,
        train,
        tables.items,
        tables.item_versions,
        None if prior is None else (prior.items, prior.item),
    )
    if items.ids.whole_numbers and bool((items.ids.values < 0).all()) and len(items.ids.values):
        raise DataError(
            f"{log.path}: column {interactions.item!r}: all {len(items.ids.values)} item ids are below 0, e.g. "
            f"{items.ids.values[0]!r}. No request can name such an id: number the items from 0."
        )
    users = _fit_side(
        Side(
            USER,
            interactions.user,
            contract.user_field,
            interactions.user_min_count,
            interactions.user_max_idle,
            contract.users,
        ),
        contract,
        log,
        train,
        tables.users,
        tables.user_versions,
        None if prior is None else (prior.users, prior.user),
    )
    context: Columns = {
        name: _fit_column(train, CONTEXT + name, spec, log.path, prior.context.get(name) if prior else None, fresh)
        for name, spec in interactions.context.items()
    }
    for name, spec in interactions.context.items():
        encode_value(f"interactions.context.{name}.default", context[name], spec.default)
    past = _earlier_events(contract, log, train, users.trained["value"])
    events = pl.concat([train.filter(EVENT), *past], how="diagonal_relaxed")
    fresh_events = None if fresh is None else pl.concat([fresh.filter(EVENT), *past], how="diagonal_relaxed")
    event: Columns = {
        name: _fit_column(
            events, HISTORY + name, spec, log.path, prior.event.get(name) if prior else None, fresh_events
        )
        for name, spec in contract.history.columns.items()
    }
    schema = Schema(
        items=items.ids.size,
        users=users.ids.size,
        item=fields(items.columns),
        user=fields(users.columns),
        context=fields(context),
        event=fields(event),
        labels=tuple(interactions.labels),
        history_max_len=contract.history.max_len,
    )
    encoder = Encoder(
        contract,
        schema,
        items=items.ids,
        users=users.ids,
        item=items.columns,
        user=users.columns,
        context=context,
        event=event,
        user_table=users.table,
    )
    files = {ITEM_VERSIONS: items.versions, USER_VERSIONS: users.versions}
    versions = {file: columns for file, columns in files.items() if columns is not None}
    trained_I = np.zeros(schema.items, bool)
    trained_I[items.ids.encode(items.trained["value"])] = True
    return Fitted(encoder, items.table, versions, trained_I)


@dataclass(frozen=True)
class Side:
    """Items or users, as a contract declares them.

    Args:
        key: their column of the log under its fixed name.
        column: what the log calls it.
        id_name: the id column of their table, and of what is learned.
        min_count: training rows below which an id has no embedding of its own.
        max_idle: µs before the newest training row; an id without a row since then has none either. None: no limit.
        table: the table's declaration, None without one.
    """

    key: str
    column: str
    id_name: str
    min_count: int
    max_idle: int | None
    table: Table | None


@dataclass(frozen=True)
class FittedSide:
    """What was learned of items or users.

    Args:
        ids: the catalogue: every id of log and table.
        columns: encoders of the id and of the table's columns.
        table: encoded, row i is catalogue row i.
        versions: encoded versions of the table's rows, None where it has one row an id.
        trained: ids of the training window (`value`) and how many of its rows each has (`len`).
    """

    ids: Vocabulary
    columns: Columns
    table: dict[str, np.ndarray]
    versions: dict[str, np.ndarray] | None
    trained: pl.DataFrame


def _fit_side(
    side: Side,
    contract: Contract,
    log: Log,
    train: pl.LazyFrame,
    table: pl.DataFrame | None,
    versions: pl.DataFrame | None,
    prior: tuple[Vocabulary, Columns] | None,
) -> FittedSide:
    """Fit the catalogue of items or users and the columns of their table.

    Args:
        side: which of the two.
        contract, log, train: as of `fit`.
        table: the raw table, one row an id, if there is one.
        versions: all rows of a table with versions.
        prior: catalogue and encoders to extend.
    """
    path = contract.resolve(side.table.path) if side.table else log.path
    trained = value_counts(train, side.key)
    known = None if prior is None else prior[0]
    ids, frame = build_catalogue(_all_ids(contract, log, side.key, side.column), table, side.id_name, log.path, known)
    if prior is not None:
        ids, frame = extended_catalogue(prior[0], frame, side.id_name)
    fitted_on = frame if versions is None else _visible(versions, side.id_name, train)
    columns = fit_columns(
        fitted_on,
        trained,
        side.table,
        side.id_name,
        side.min_count,
        path,
        None if prior is None else prior[1],
        None if side.max_idle is None else _idle(train, side.key, side.max_idle).rename(side.id_name),
    )
    with error_prefix(path):
        encoded = encode_table(frame, columns)
        changing = None if versions is None else encode_versions(versions, side.id_name, ids, columns)
    return FittedSide(ids, columns, encoded, changing, trained)


def _idle(train: pl.LazyFrame, key: str, max_idle: int) -> pl.Series:
    """Ids of the training window whose newest row is older than `max_idle` (µs) before its end, the oldest first."""
    newest = train.select(pl.col(TIME).max()).collect(engine="streaming").item()
    last = train.group_by(key).agg(pl.col(TIME).max().alias("last")).filter(pl.col("last") < newest - max_idle)
    return canonical(last.collect(engine="streaming").sort("last", key)[key])


def _visible(versions: pl.DataFrame, id_name: str, train: pl.LazyFrame) -> pl.DataFrame:
    """The versions that a row of the training window can read: no later one may teach an encoder anything."""
    first, last = train.select(first=pl.col(TIME).min(), last=pl.col(TIME).max()).collect(engine="streaming").row(0)
    return visible(versions, id_name, first, last)


def _all_ids(contract: Contract, log: Log, key: str, column: str) -> pl.Series:
    """Distinct ids of the log as sorted keys; of items, those of given histories and earlier events too.

    Raises:
        DataError: ids that are none, or of another type than those of the log, or below 0 in given histories.
    """
    own = _ids_of(log.frame, key, log.path, column)
    if key != ITEM:
        return own.sort()
    others = []
    if contract.history.given is not None:
        given = log.frame.select(pl.col(GIVEN).explode(empty_as_null=False).alias(GIVEN))
        others.append((given, GIVEN, log.path, contract.history.given.column))
    for table, events in zip(contract.history.tables, log.earlier, strict=False):
        others.append((events, ITEM, contract.resolve(table.path), table.item))
    found = [own]
    for frame, name, path, called in others:
        ids = _ids_of(frame, name, path, called)
        if len(ids) and ids.dtype != own.dtype:
            raise DataError(
                f"{path}: column {called!r} holds ids of type {ids.dtype}, e.g. {ids[0]!r}, those of {log.path} are "
                f"{own.dtype}, e.g. {own[0]!r}. Write both with one type."
            )
        if name == GIVEN and contract.checks.negative_id != "warn" and ids.dtype == pl.Int64 and (ids < 0).any():
            raise DataError(
                f"{path}: column {called!r}: holds ids below 0, e.g. {ids.min()!r}. No request can name such an id. "
                f"If it fills short lists up, declare `history.given.padding: {ids.min()!r}`; number all others from 0."
            )
        found.append(ids.rename(column).cast(own.dtype))
    return pl.concat(found).unique().sort()


def _ids_of(frame: pl.LazyFrame, key: str, path: str, column: str) -> pl.Series:
    with error_prefix(path):
        return canonical(value_counts(frame, key)["value"].rename(column))


def _earlier_events(contract: Contract, log: Log, train: pl.LazyFrame, users: pl.Series) -> list[pl.LazyFrame]:
    """The event columns of `history.tables`, of the events that a training row can have in its history.

    Args:
        contract: what the tables are called.
        log: with their events.
        train: rows of the training window.
        users: who is in them, raw ids.

    Raises:
        DataError: a table's column and the log's are of types that do not go together.
    """
    if not log.earlier:
        return []
    newest = train.select(pl.col(TIME).max()).collect(engine="streaming").item()
    known = canonical(users)
    schema = train.collect_schema()
    found = []
    for table, events in zip(contract.history.tables, log.earlier, strict=True):
        own = events.collect_schema()
        names = [name for name in own.names() if name.startswith(HISTORY)]
        for name in names:
            if pl.Null not in (own[name], schema[name]) and _kind(own[name]) != _kind(schema[name]):
                raise DataError(
                    f"{contract.resolve(table.path)}: column {name.removeprefix(HISTORY)!r} holds {own[name]}, in "
                    f"{log.path} it holds {schema[name]}. Cast one of them under `source` or `columns`."
                )
        trains = pl.col(USER).cast(known.dtype, strict=False).is_in(known.implode())
        found.append(events.filter(pl.col(TIME) < newest, trains).select(names))
    return found


def _kind(dtype: pl.DataType) -> str:
    if dtype in (pl.String, pl.Categorical, pl.Enum):
        return "text"
    return "numbers" if dtype.is_numeric() else str(dtype.base_type())


def _fit_column(
    train: pl.LazyFrame,
    column: str,
    spec: ScalarColumn | EventColumn,
    path: str,
    prior: ColumnEncoder | None,
    fresh: pl.LazyFrame | None,
) -> ColumnEncoder:
    """Fit one column of the log, in memory that does not grow with it: names by their counts, numbers by a sample."""
    name = column.partition(".")[2]
    if isinstance(spec, Gap | Residual):
        return fit_column(pl.Series(name, [], pl.Float64), spec, path)
    if prior is not None and fresh is not None:
        seen = value_counts(fresh, column)["value"].rename(name) if spec.form == "name" else None
        with error_prefix(path):
            if seen is None or (prior.encode(seen) != UNKNOWN).all():
                return prior
    if spec.form == "name":
        # A rare value of the new rows may be frequent enough in the whole window.
        counts = value_counts(train, column)
        return fit_column(counts["value"].rename(name), spec, path, prior, counts["len"])
    rows = train.select(pl.len()).collect(engine="streaming").item()
    sample, first = [], 0
    for chunk in chunks(train.select(column), rows):
        sample.append(chunk[column].gather(drawn(first, chunk.height, one_in(rows))))
        first += chunk.height
    return fit_column(pl.concat(sample).rename(name), spec, path, prior)
