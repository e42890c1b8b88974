"""Item and user tables with a row for every id of log and table; unknown attributes where a table has no such id."""

from __future__ import annotations

import polars as pl

from features.contract.contract import Contract, Table
from features.encoding.base import ColumnEncoder, Columns
from features.encoding.category import CategoricalEncoder
from features.encoding.registry import fit_column
from features.encoding.vocabulary import Vocabulary
from features.errors import DataError, error_prefix
from features.fitting.table_versions import refuse_wrong_unit, valid_from, versions_of
from features.sources.files import find_files
from features.sources.keys import canonical
from features.sources.tables import expression, named, readable, require_columns, scan
from features.store.versions import VALID_FROM


def read_table(contract: Contract, table: Table, which: str, as_of: str | None = None) -> pl.DataFrame:
    """The id (as key) and the declared columns of an item or user table, each under its own name.

    Files that are read as one table may overlap: a row that another file has too, the same in all declared columns, is
    one row. With `valid_from`, the versions of all ids by id and time, `VALID_FROM` beside their columns.

    Args:
        contract: what the columns are.
        table: which of its tables.
        which: item or user.
        as_of: last day (UTC) that is read; later versions are left out.

    Raises:
        DataError: missing file or column, no row, null or duplicate ids, a `valid_from` that is none.
    """
    path = contract.resolve(table.path)
    raw = scan(path, table.format)
    require_columns(raw, path, [table.id, *([table.valid_from] if table.valid_from else [])])
    columns = {} if table.valid_from is None else {VALID_FROM: valid_from(raw, path, table, which)}
    columns |= {
        name: expression(raw, path, f"{which}s.columns.{name}", spec.source or name)
        for name, spec in table.columns.items()
    }
    texts = {name: named(f"{which}s.columns.{name}", spec.source or name) for name, spec in table.columns.items()}
    found = raw.select(pl.col(table.id), **columns)
    with readable(path, found, texts):
        content = found.collect()
    if len(find_files(path)) > 1:
        content = content.unique(maintain_order=True)
    if not content.height:
        raise DataError(
            f"{path}: the {which} table is empty (0 rows). Check the export that wrote it, or take `{which}s` out of "
            "the contract."
        )
    with error_prefix(path):
        ids = canonical(content[table.id])
    if ids.null_count():
        raise DataError(
            f"{path}: {which} id {table.id!r}: {ids.null_count()} of {len(ids)} rows are null. Remove them."
        )
    if table.valid_from is not None:
        if raw.collect_schema()[table.valid_from].is_integer():
            refuse_wrong_unit(content, path, table, which, contract.checks.earliest)
        return versions_of(content.with_columns(ids), path, table, which, as_of)
    twice = ids.filter(ids.is_duplicated())
    if len(twice):
        raise DataError(
            f"{path}: {which} id {table.id!r}: {twice.n_unique()} ids appear more than once in {len(ids)} rows, e.g. "
            f"{twice[0]!r}. Keep one row each, or say when each begins to hold: {which}s.valid_from."
        )
    return content.with_columns(ids)


def without_negative_ids(content: pl.DataFrame, table: Table, contract: Contract) -> pl.DataFrame:
    """The item table without ids below 0, where `checks.negative_id` puts them aside.

    Raises:
        DataError: there are such ids, and it is `error`, or there are no others.
    """
    ids, policy = content[table.id], contract.checks.negative_id
    if ids.dtype != pl.Int64 or policy == "warn" or not (is_below := ids < 0).any():
        return content
    if policy == "quarantine" and not is_below.all():
        return content.filter(~is_below)
    raise DataError(
        f"{contract.resolve(table.path)}: item id {ids.name!r}: {int(is_below.sum())} of {len(ids)} rows are negative "
        f"ids, e.g. {ids.filter(is_below)[0]}. No request can name such an id: leave the rows out, or number the ids "
        "from 0. `checks.negative_id: quarantine` leaves them out."
    )


def build_catalogue(
    logged: pl.Series, table: pl.DataFrame | None, id_name: str, path: str, prior: Vocabulary | None = None
) -> tuple[Vocabulary, pl.DataFrame]:
    """All ids of log and table in sorted order, and the table with one row for each of them.

    Args:
        logged: distinct ids of the log, as keys.
        table: id and columns, or None.
        id_name: the table's id column.
        path: of the log, for messages.
        prior: the catalogue of a version before: new days may name new ids alone, which the table does not list yet.

    Raises:
        DataError: the log's ids are of another type than the table's, or none is in it.
    """
    keys = logged.rename(id_name)
    if table is None:
        return Vocabulary(keys.sort()), keys.sort().to_frame()
    if table[id_name].dtype != keys.dtype:
        raise DataError(
            f"{path}: ids of the log are {keys.dtype} (e.g. {keys[0]!r}), those of the table column {id_name!r} are "
            f"{table[id_name].dtype} (e.g. {table[id_name][0]!r}). Write both with one type."
        )
    known = keys if prior is None else pl.concat([keys, prior.values.rename(id_name)])
    if not known.is_in(table[id_name].implode()).any():
        raise DataError(
            f"{path}: none of the log's ids (e.g. {keys[0]!r}) is in the table column {id_name!r} (e.g. "
            f"{table[id_name][0]!r}). They are not the same ids."
        )
    all_ids = pl.concat([keys, table[id_name]]).unique().sort()
    return Vocabulary(all_ids), all_ids.to_frame().join(table, on=id_name, how="left", maintain_order="left")


def extended_catalogue(prior: Vocabulary, frame: pl.DataFrame, id_name: str) -> tuple[Vocabulary, pl.DataFrame]:
    """The `prior` catalogue with the new ids of `frame` after it: known ids keep their rows.

    An id that is no longer in `frame` keeps its row, with unknown attributes.
    """
    new = frame[id_name].filter(~frame[id_name].is_in(prior.values.implode()))
    all_ids = pl.concat([prior.values.rename(id_name), new])
    return Vocabulary(all_ids), all_ids.to_frame().join(frame, on=id_name, how="left", maintain_order="left")


def fit_columns(
    frame: pl.DataFrame,
    trained: pl.DataFrame,
    table: Table | None,
    id_name: str,
    min_count: int,
    path: str,
    prior: Columns | None = None,
    idle: pl.Series | None = None,
) -> Columns:
    """Encoders of a catalogue's id and columns, fitted on (or, with `prior`, extended by) those seen in training.

    Args:
        frame: one row an id, as `build_catalogue` made it; or the versions of them that the training window can read.
        trained: ids of the training window and their rows.
        table: its declaration.
        id_name: the id column.
        min_count: training rows below which an id has no embedding of its own.
        path: of the table, for messages.
        prior: encoders to extend.
        idle: ids that have none because they were not seen for long, the longest ago first; one that `prior` knows
            keeps its index until a new id takes it.
    """
    often = canonical(trained.filter(pl.col("len") >= min_count)["value"]).sort().rename(id_name)
    if idle is not None:
        often = often.filter(~often.is_in(idle.implode()))
    seen = frame.filter(pl.col(id_name).is_in(canonical(trained["value"]).implode()))
    ids = Vocabulary(often)
    if prior is not None and isinstance(known := prior[id_name], CategoricalEncoder):
        unseen = known.vocabulary.values.filter(~known.vocabulary.values.is_in(canonical(trained["value"]).implode()))
        gone = None if idle is None else pl.concat([unseen, idle.cast(unseen.dtype)])
        ids = known.vocabulary.extended(often, idle=gone)
    columns: dict[str, ColumnEncoder] = {id_name: CategoricalEncoder(ids)}
    for name, spec in (table.columns if table else {}).items():
        columns[name] = fit_column(seen[name], spec, path, prior[name] if prior is not None else None)
    return columns
