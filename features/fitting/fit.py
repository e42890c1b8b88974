"""Learns every encoder from the training window, and writes the item and user tables they encode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from features.chunk import CONTEXT, EVENT, GIVEN, HISTORY, ITEM, TIME, USER
from features.contract.columns import EventColumn, Gap, Residual, ScalarColumn
from features.contract.contract import Contract
from features.draws import drawn
from features.encoding.base import ColumnEncoder, Columns
from features.encoding.encoder import Encoder, encode_table, encode_versions, fields
from features.encoding.registry import encode_value, fit_column
from features.errors import DataError, named
from features.fitting.catalogue import build_catalogue, fit_columns, grown_catalogue, read_table
from features.fitting.table_versions import latest, visible
from features.sources.keys import canonical
from features.sources.log import Log, chunks, value_counts
from features.store.schema import UNKNOWN, Schema
from features.store.versions import ITEM_VERSIONS, USER_VERSIONS

MOST_FITTED = 2_000_000  # training rows that a number of the log is fitted on, drawn evenly over it


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
        """Read both, up to the day `as_of`. Raises DataError: missing file or column, null or duplicate ids."""
        found: dict[str, pl.DataFrame | None] = {}
        for which, declared in (("item", contract.items), ("user", contract.users)):
            table = read_table(contract, declared, which, as_of) if declared else None
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
    """Fit catalogues, vocabularies and scalers; or let those of an earlier version grow.

    With `prior`, every index keeps its meaning and new values come after the old ones; numbers keep their scale. So
    rows encoded then and now can be read together, and a model trained then goes on.

    Args:
        contract: what the columns are.
        log: whose users and items get rows of the catalogues.
        tables: raw item and user tables.
        train: rows of the training window, under the log's fixed names.
        prior: the encoder to let grow.
        fresh: the rows of `train` that `prior` was not fitted on: only what is in them can be new.

    Raises:
        DataError: ids of the log and of a table do not go together, a column is not what it was declared.
        ConfigError: a context default is of another type than its column.
    """
    interactions = contract.interactions
    sides = (
        (ITEM, interactions.item, contract.items, tables.items, contract.item_field, interactions.item_min_count),
        (USER, interactions.user, contract.users, tables.users, contract.user_field, interactions.user_min_count),
    )
    changing = {ITEM: (ITEM_VERSIONS, tables.item_versions), USER: (USER_VERSIONS, tables.user_versions)}
    vocabularies, learned, encoded, trained = {}, {}, {}, {}
    versions: dict[str, dict[str, np.ndarray]] = {}
    for key, column, declared, table, id_name, min_count in sides:
        trained[key] = value_counts(train, key)
        vocabularies[key], frame = build_catalogue(_everyone(log, key, column), table, id_name, log.path)
        path = contract.resolve(declared.path) if declared else log.path
        before = None if prior is None else (prior.items, prior.item) if key == ITEM else (prior.users, prior.user)
        if before is not None:
            vocabularies[key], frame = grown_catalogue(before[0], frame, id_name)
        file, known = changing[key]
        fitted_on = frame if known is None else _visible(known, id_name, train)
        learned[key] = fit_columns(
            fitted_on, trained[key], declared, id_name, min_count, path, before[1] if before else None
        )
        with named(path):
            encoded[key] = encode_table(frame, learned[key])
            if known is not None:
                versions[file] = encode_versions(known, id_name, vocabularies[key], learned[key])
    context: Columns = {
        name: _fit_column(train, CONTEXT + name, spec, log.path, prior.context.get(name) if prior else None, fresh)
        for name, spec in interactions.context.items()
    }
    for name, spec in interactions.context.items():
        encode_value(f"interactions.context.{name}.default", context[name], spec.default)
    past = _earlier_events(contract, log, train, trained[USER]["value"])
    events = pl.concat([train.filter(EVENT), *past], how="diagonal_relaxed")
    fresh_events = None if fresh is None else pl.concat([fresh.filter(EVENT), *past], how="diagonal_relaxed")
    event: Columns = {
        name: _fit_column(
            events, HISTORY + name, spec, log.path, prior.event.get(name) if prior else None, fresh_events
        )
        for name, spec in contract.history.columns.items()
    }
    schema = Schema(
        items=vocabularies[ITEM].size,
        users=vocabularies[USER].size,
        item=fields(learned[ITEM]),
        user=fields(learned[USER]),
        context=fields(context),
        event=fields(event),
        labels=tuple(interactions.labels),
        history_max_len=contract.history.max_len,
    )
    encoder = Encoder(
        contract,
        schema,
        vocabularies[ITEM],
        vocabularies[USER],
        learned[ITEM],
        learned[USER],
        context,
        event,
        encoded[USER],
    )
    trained_I = np.zeros(schema.items, bool)
    trained_I[vocabularies[ITEM].encode(trained[ITEM]["value"])] = True
    return Fitted(encoder, encoded[ITEM], versions, trained_I)


def _visible(versions: pl.DataFrame, id_name: str, train: pl.LazyFrame) -> pl.DataFrame:
    """The versions that a row of the training window can read: no later one may teach an encoder anything."""
    first, last = train.select(first=pl.col(TIME).min(), last=pl.col(TIME).max()).collect(engine="streaming").row(0)
    return visible(versions, id_name, first, last)


def _everyone(log: Log, key: str, column: str) -> pl.Series:
    """Distinct ids of the log as sorted keys; of items, those of given histories and earlier events too."""
    with named(log.path):
        found = [canonical(value_counts(log.frame, key)["value"].rename(column))]
        if key == ITEM:
            if GIVEN in log.frame.collect_schema():
                given = log.frame.select(pl.col(GIVEN).explode(empty_as_null=False).alias(GIVEN))
                found.append(canonical(value_counts(given, GIVEN)["value"].rename(column)))
            found += [canonical(value_counts(events, ITEM)["value"].rename(column)) for events in log.earlier]
    return pl.concat(found).unique().sort() if len(found) > 1 else found[0].sort()


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
        with named(path):
            if seen is None or (prior.encode(seen) != UNKNOWN).all():
                return prior
    if spec.form == "name":
        # A rare value of the new rows may be frequent enough in the whole window.
        counts = value_counts(train, column)
        return fit_column(counts["value"].rename(name), spec, path, prior, counts["len"])
    rows = train.select(pl.len()).collect(engine="streaming").item()
    one_in = max(-(-rows // MOST_FITTED), 1)
    sample, first = [], 0
    for chunk in chunks(train.select(column), rows):
        sample.append(chunk[column].gather(drawn(first, chunk.height, one_in)))
        first += chunk.height
    return fit_column(pl.concat(sample).rename(name), spec, path, prior)
