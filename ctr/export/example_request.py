"""The example of a bundle: a logged row as a client would send it, its events as the log has them.

Shapes: H history items of one request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

import numpy as np
import polars as pl

from ctr.export.row_request import RowRequest
from features.contract.columns import ColumnSpec, Gap, Residual
from features.encoding.encoder import Encoder
from features.encoding.past import ITEM, TIME
from features.requests.past_columns import RequestEncoder
from features.requests.raw_columns import LABEL, Given, RawColumns, log_time
from features.sources.impressions import CLICKED


def raw_events(stored: RowRequest, time_H: np.ndarray, encoder: Encoder) -> list[dict[str, Any]] | None:
    """The history of a row as the log has it; None where ready columns say as much, or do not tell what the log has.

    A client need not compute a column that depends on other events or on a counter (`gap`, `residual`): where there is
    one, the example has raw events. They can be told from a feature set if every raw column that the contract reads of
    them is a plain column there.

    Args:
        stored: the row's request.
        time_H: of its events, µs since 1970, int64 [H].
        encoder: of the feature set.
    """
    specs = encoder.contract.history.columns
    if not encoder.log_columns or not any(isinstance(spec, Gap | Residual) for spec in specs.values()):
        return None
    log, columns = encoder.contract.interactions, RequestEncoder(encoder).columns
    known: dict[str, list[Any]] = {}
    for name, reading in columns.columns.items():
        source = columns.label if reading is None else reading
        if isinstance(source, Given) and source.name not in (log.item, log.time, log.user):
            raw = [encoder.event[name].raw_value(value) for value in stored.history_events[name]]
            known.setdefault(source.name, [_as_logged(value, encoder.log_columns[source.name]) for value in raw])
    if _needed(columns, specs) - {log.item, log.time, log.user} - known.keys():
        return None
    times = as_logged(time_H, encoder)
    events = []
    for place, row in enumerate(stored.history_item):
        values = {"clicked" if name == CLICKED else name: of[place] for name, of in known.items()}
        given = {name: value for name, value in values.items() if value is not None}
        events.append({ITEM: encoder.items.value(row), TIME: times[place], **given})
    return events


def as_logged(time_H: np.ndarray, encoder: Encoder) -> Sequence[Any]:
    """Times, µs since 1970, as the log has them: whole numbers or text."""
    contract = encoder.contract
    times = log_time(time_H, encoder.log_columns[str(contract.interactions.time)], contract).to_list()
    return [time.isoformat() if isinstance(time, date) else time for time in times]


def _needed(columns: RawColumns, specs: Mapping[str, ColumnSpec]) -> frozenset[str]:
    """Raw columns that the history is made of."""
    texts = [LABEL for spec in specs.values() if isinstance(spec, Residual)]
    texts += [specs[name].source or name for name in columns.columns]
    return frozenset[str]().union(*map(columns.reads, texts)) | columns.events_read


def _as_logged(value: Any, dtype: pl.DataType) -> Any:
    """A decoded value as the log has it: a number of a column of whole numbers or booleans is no fraction."""
    if value is None:
        return None
    if dtype == pl.Boolean:
        return value == "true" if isinstance(value, str) else bool(round(value))
    return round(value) if dtype.is_integer() else value
