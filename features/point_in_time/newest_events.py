"""The newest events of every user up to an instant, as the log has them: raw ids and raw columns."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl

from features.checks.check_log import check_log
from features.checks.history_tables import checked_events
from features.chunk import EVENT, HISTORY, ITEM, RAW, TIME, USER
from features.contract.contract import Contract
from features.contract.event_columns import event_columns
from features.contract.labels import LABEL_NAMES, columns_read
from features.errors import ConfigError
from features.fitting.fit import Tables
from features.sources.log import chunks, open_log

KEYS = (USER, ITEM, TIME)


def newest_events(contract: Contract, keep: int, until: int) -> pl.DataFrame:
    """The newest `keep` events of each user, by user and time: `_user _item _time` and `_raw.<column>`.

    They are those that a build makes of the log: rows of a quarantine and those that `history.events` leaves out are
    none, and events of `history.tables` are some, with the raw columns that their event columns stand for. Events of
    one user and time stay in the order of the log. Memory holds one chunk, and twice the events that are kept.

    Args:
        contract: of the log.
        keep: events of a user.
        until: newest time, µs since 1970.

    Raises:
        ConfigError: the log has no times, or its histories are given.
        DataError: as the build; the log cannot be read.
    """
    require_events_in_time(contract)
    held: list[pl.DataFrame] = []
    newest = pl.DataFrame(schema=dict.fromkeys(KEYS, pl.Null))
    with tempfile.TemporaryDirectory(prefix="quadrank-pasts-") as scratch:
        for chunk in _events(contract, Path(scratch)):
            held.append(chunk.drop_nulls(KEYS).filter(pl.col(TIME) <= until))
            # As many new ones as are kept already: each event is sorted a few times, however long the log is.
            if sum(part.height for part in held) >= newest.height:
                newest, held = _newest([newest, *held], keep), []
    return _newest([newest, *held], keep)


def require_events_in_time(contract: Contract) -> None:
    """Raise ConfigError for a log of which no pasts can be kept."""
    if contract.interactions.time is None or contract.history.given is not None:
        raise ConfigError(
            "pasts: this log has no events in time that could be kept: its rows bring their histories. Leave out "
            "--pasts, and send the history with each request."
        )


def _newest(parts: list[pl.DataFrame], keep: int) -> pl.DataFrame:
    every = pl.concat(parts, how="diagonal_relaxed")
    return every.sort(USER, TIME, maintain_order=True).group_by(USER, maintain_order=True).tail(keep)


def _events(contract: Contract, scratch: Path) -> Iterator[pl.DataFrame]:
    log = open_log(contract, raw_columns=event_columns(contract))
    if contract.checks.quarantines:
        frame = check_log(log, contract, *Tables.read(contract).ids(contract), scratch).frame
        log = replace(log, frame=frame)
    raw = [name for name in log.frame.collect_schema().names() if name.startswith(RAW)]
    yield from chunks(log.frame.filter(pl.col(EVENT)).select(*KEYS, *raw))
    for table in checked_events(contract)[0]:
        standing_for = {RAW + name: pl.col(HISTORY + column) for column, name in plain_columns(contract).items()}
        yield from chunks(table.select(*KEYS, **standing_for))


def plain_columns(contract: Contract) -> dict[str, str]:
    """Event columns that are a raw column as it is, and its name; a column that is the label stands for its column."""
    found = {}
    for name, spec in contract.history.columns.items():
        text = spec.source or name
        if text in LABEL_NAMES:
            text = contract.interactions.label or ""
        if spec.type not in ("gap", "residual") and columns_read(text) == {text} and text:
            found[name] = text
    return found
