"""The events that pasts of the training window are made of, for what is learned from them."""

from __future__ import annotations

import numpy as np
import polars as pl

from features.chunk import EVENT, ITEM, TIME, USER
from features.contract.contract import Contract
from features.point_in_time.history import without_repeats
from features.sources.keys import canonical
from features.sources.log import Log
from features.vectors.covisits import PastEvents

MOST_EVENTS = 20_000_000  # the newest ones: what is learned from changes little with more of them


def training_events(contract: Contract, log: Log, train: pl.LazyFrame, tables_alone: bool = False) -> PastEvents:
    """The events of the training window, those of `history.tables` up to its newest row included.

    They are the events of histories: as `history.events` and `history.repeats` say, of users with a training row. What
    the log has too counts once. Events of one instant stand in the order of their items' ids, whatever the log's.

    Args:
        contract: what an event is.
        log: with the events of tables.
        train: rows of the training window, under the log's fixed names.
        tables_alone: take those of tables before its oldest row instead: no row that trains is among them.
    """
    logged = _newest(train.filter(EVENT))
    logged = logged.clear() if tables_alone else logged
    if log.earlier:
        users = canonical(train.select(pl.col(USER).unique()).collect(engine="streaming")[USER])
        first, last = train.select(first=pl.col(TIME).min(), last=pl.col(TIME).max()).collect(engine="streaming").row(0)
        in_time = pl.col(TIME) < first if tables_alone else pl.col(TIME) <= last
        trains = pl.col(USER).cast(users.dtype, strict=False).is_in(users.implode())
        tables = [
            # Of another type than the log's, which the encoder refuses by name, they become null.
            _newest(events.filter(in_time, trains)).cast(logged.schema, strict=False)
            for events in log.earlier
        ]
        earlier = pl.concat(tables).drop_nulls().unique().join(logged, on=logged.columns, how="anti")
        logged = pl.concat([logged, earlier]).top_k(MOST_EVENTS, by=logged.columns)
    events = logged.sort(USER, TIME, ITEM)
    user_E = (events[USER].rank("dense").cast(pl.Int64) if len(events) else events[USER].cast(pl.Int64)).to_numpy()
    item_E = events[ITEM].rank("dense").to_numpy()
    kept_E = without_repeats(user_E, item_E, np.ones(len(events), bool), contract.history.repeats)
    return PastEvents(user_E[kept_E], events[ITEM].filter(pl.Series(kept_E)))


def _newest(events: pl.LazyFrame) -> pl.DataFrame:
    """Time, user and item of the newest `MOST_EVENTS`, as keys, whatever the order of the log."""
    found = events.select(TIME, USER, ITEM).top_k(MOST_EVENTS, by=[TIME, USER, ITEM]).collect(engine="streaming")
    return found.with_columns(canonical(found[USER]), canonical(found[ITEM]))
