"""Checks of several rows together: duplicates, ids missing from the item or user table, bots."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import polars as pl

from features.calendar import DAY, day_of
from features.checks.row_rules import ROW, Violation, numbered
from features.chunk import ITEM, TIME, USER, Values
from features.contract.contract import Contract
from features.contract.log import CapPolicy, Policy
from features.draws import mixed
from features.sources.keys import canonical

MOST_PENDING = 1_000_000


class IdCounts:
    """How often each id occurs, a chunk at a time; memory grows with the distinct ids, not with the rows."""

    def __init__(self) -> None:
        self._total: pl.DataFrame | None = None
        self._pending: list[pl.DataFrame] = []
        self._waiting = 0

    def add(self, ids: pl.Series) -> None:
        """Count the ids of the next rows."""
        self._pending.append(ids.rename("id").to_frame().group_by("id").len())
        self._waiting += self._pending[-1].height
        if self._waiting > MOST_PENDING + (0 if self._total is None else self._total.height):
            self.counts()

    def counts(self) -> pl.DataFrame:
        """Columns `id` (without null) and `len`, sorted by id."""
        parts = [*([] if self._total is None else [self._total]), *self._pending]
        merged = pl.concat(parts).group_by("id").agg(pl.col("len").sum())
        self._total, self._pending, self._waiting = merged, [], 0
        return merged.drop_nulls("id").sort("id")


class EventKeys:
    """A 64-bit number for each (user, item, time), such that equal events alone share one.

    Ids of text are numbered as they appear. Two different events meet in one number with a chance of 1 in 20,000 for a
    log of 40 million rows.
    """

    def __init__(self) -> None:
        # A column, not its type alone: polars forgets the numbers when the last column of that type is gone.
        self._numbers = pl.Series([], dtype=pl.Categorical(pl.Categories.random()))

    def of(self, chunk: pl.DataFrame, first: int) -> dict[str, Values]:
        """`key` (uint64) and `row` (number of the row, int64) of the rows whose user, item and time are known."""
        names = [USER, ITEM, TIME]
        kept = pl.select(pl.int_range(first, first + chunk.height, dtype=pl.Int64).alias(ROW)).hstack(chunk[names])
        if any(kept[name].null_count() for name in names):
            kept = kept.drop_nulls(names)
        with np.errstate(over="ignore"):
            key_R = np.zeros(kept.height, np.uint64)
            for name in names:
                key_R = mixed(np.uint64(0), key_R + self._number(kept[name]))
        return {"key": key_R, "row": kept[ROW].to_numpy()}

    def _number(self, values: pl.Series) -> np.ndarray:
        # numpy has no numbers of 128 bits.
        if not values.dtype.is_integer() or values.dtype in (pl.Int128, pl.UInt128):
            values = values.cast(pl.String).cast(self._numbers.dtype).to_physical()
        return values.to_numpy().astype(np.uint64)


def later_copies(shard: dict[str, Values]) -> np.ndarray:
    """Numbers of the rows of a shard whose key an earlier row has, int64."""
    key_R: np.ndarray = shard["key"]
    row_R: np.ndarray = shard["row"]
    ordered = np.sort(key_R)
    if not (ordered[1:] == ordered[:-1]).any():
        return np.empty(0, np.int64)
    # Stable, so that of equal keys the earliest row comes first and is the one that stays.
    order = np.argsort(key_R, kind="stable")
    again = key_R[order][1:] == key_R[order][:-1]
    return row_R[order][1:][again]


def repeats(places: list[np.ndarray], contract: Contract) -> Iterator[Violation]:
    """The rows that `later_copies` found in each shard, as a violation."""
    log, policy = contract.interactions, contract.checks.duplicate
    places_N = np.sort(np.concatenate([np.empty(0, np.int64), *places]))
    if not len(places_N):
        return
    column = ", ".join((log.user, log.item, str(log.time)))
    yield Violation(
        "duplicate",
        policy,
        column,
        f"repeat {log.user!r}, {log.item!r} and {log.time!r} of an earlier row",
        "Keep one of each in the export.",
        "duplicates",
        len(places_N),
        int(places_N[0]),
        places_N if policy == "quarantine" else places_N[:0],
    )


def unlisted_ids(
    frame: pl.LazyFrame, contract: Contract, counts: dict[str, pl.DataFrame], known: dict[str, pl.Series | None]
) -> Iterator[Violation]:
    """Rows whose item or user its table does not list.

    Args:
        frame: the log; read again only where there are such rows.
        contract: what the columns are called, and the policies.
        counts: of `USER` and `ITEM`, as `IdCounts` gives them.
        known: ids of their tables, None without a table.

    Raises:
        DataError: ids that are none, e.g. numbers beyond 64 bits.
    """
    log, checks = contract.interactions, contract.checks
    for key, column, table, which, policy in (
        (ITEM, log.item, contract.items, "items", checks.unknown_item),
        (USER, log.user, contract.users, "users", checks.unknown_user),
    ):
        listed = known[key]
        if listed is None or table is None:
            continue
        seen, listed = canonical(counts[key]["id"].rename(column)), canonical(listed)
        if seen.dtype != listed.dtype:
            # None would be known. Joining log and table tells how the types differ.
            continue
        unknown = counts[key].filter(~seen.is_in(listed.implode()))
        if not unknown.height:
            continue
        rows, places = _numbers(_numbered(frame, pl.col(key).is_in(unknown["id"].implode())), policy)
        yield Violation(
            f"unknown_{which[:-1]}",
            policy,
            column,
            f"name one of {unknown.height} {which} that {table.path} does not list",
            f"Add them to the table; until then such {which} have no columns.",
            f"column {column!r}",
            rows,
            int(places[0]),
            places if policy == "quarantine" else places[:0],
            key,
        )


def crowds(frame: pl.LazyFrame, contract: Contract, counts: dict[str, pl.DataFrame]) -> Iterator[Violation]:
    """Rows of users, and of items, on the UTC days on which they have more than a day may have.

    All rows of such a day; of a check whose policy is `cap` those beyond the first so many of the day, in the log's
    order.

    Args:
        frame: the log; read again only for ids with more rows than that in all.
        contract: what the columns are called, policies and limits.
        counts: of `USER` and `ITEM`, as `IdCounts` gives them.
    """
    checks, log = contract.checks, contract.interactions
    yield from _crowd(
        frame,
        counts[USER],
        _Cap(USER, log.user, "bot", checks.bot, checks.max_rows_per_user, "users"),
        "They look like bots: leave such users out, or raise checks.max_rows_per_user.",
    )
    if checks.max_rows_per_item is not None:
        yield from _crowd(
            frame,
            counts[ITEM],
            _Cap(
                ITEM,
                log.item,
                "flooded_item",
                checks.flooded_item,
                checks.max_rows_per_item,
                "items",
            ),
            "Somebody may push such items: leave the rows out, or raise checks.max_rows_per_item.",
        )


class _Cap(NamedTuple):
    """How many rows a day an id may have: its column, the check, its policy, the limit, and how messages call it."""

    key: str
    column: str
    check: str
    policy: CapPolicy
    most: int
    plural: str


def _crowd(frame: pl.LazyFrame, counts: pl.DataFrame, cap: _Cap, fix: str) -> Iterator[Violation]:
    heavy = counts.filter(pl.col("len") > cap.most)
    if not heavy.height:
        return
    dated = pl.col(cap.key).is_in(heavy["id"].implode()) & pl.col(TIME).is_not_null()
    theirs = _numbered(frame, dated).with_columns(day=pl.col(TIME) // DAY)
    days = theirs.group_by(cap.key, "day").len().filter(pl.col("len") > cap.most)
    busy = days.collect(engine="streaming").sort(["len", cap.key, "day"], descending=[True, False, False])
    if not busy.height:
        return
    worst = busy.row(0, named=True)
    of_days = theirs.join(busy.lazy(), on=[cap.key, "day"], how="semi")
    many = f"of {busy[cap.key].n_unique()} {cap.plural} with more than {cap.most} rows on one UTC day"
    wrong = f"are {many}"
    if cap.policy == "cap":
        wrong = f"are beyond the first {cap.most} of the day {many}"
        of_days = of_days.filter(pl.col(ROW).rank("ordinal").over(cap.key, "day") > cap.most)
    aside = cap.policy in ("quarantine", "cap")
    rows, places = _numbers(of_days, "quarantine" if aside else "warn")
    yield Violation(
        cap.check,
        cap.policy,
        cap.column,
        wrong,
        fix,
        f"column {cap.column!r}",
        rows,
        int(places[0]),
        places if aside else places[:0],
        example=f"{worst['len']} of {cap.plural[:-1]} {worst[cap.key]!r} on {day_of(worst['day'] * DAY)}",
    )


def _numbered(frame: pl.LazyFrame, chosen: pl.Expr) -> pl.LazyFrame:
    """Number, user, item and time of the chosen rows."""
    return numbered(frame.select(USER, ITEM, TIME)).filter(chosen)


def _numbers(rows: pl.LazyFrame, policy: Policy) -> tuple[int, np.ndarray]:
    """How many rows there are, and their numbers: all where they are put aside, else the first alone."""
    if policy == "quarantine":
        places = rows.select(ROW).collect(engine="streaming")[ROW].sort().to_numpy()
        return len(places), places
    count, first = rows.select(pl.len(), pl.col(ROW).min().alias("first")).collect(engine="streaming").row(0)
    return count, np.array([first])
