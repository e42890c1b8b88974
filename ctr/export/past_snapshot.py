"""Users' pasts at the end of the log, written into the bundle: `pasts/offsets.npy` and `pasts/events.bin`.

Shapes: U users of the catalogue.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ctr.serving.pasts.packing import header_of, pack_columns
from ctr.serving.pasts.snapshot import EVENTS, FOLDER, OFFSETS
from ctr.serving.pasts.source import kept_events
from features.chunk import ITEM, RAW, TIME, USER
from features.encoding.encoder import Encoder
from features.point_in_time.newest_events import newest_events
from features.progress import progress
from features.sources.keys import canonical
from features.store.feature_set import FeatureSet
from features.store.schema import FIRST_VALUE

USERS_A_BLOCK = 10_000


def write_pasts(feature_set: FeatureSet, encoder: Encoder, bundle: Path) -> None:
    """Read the raw log of a feature set again, and write the newest events of each of its users.

    Raises:
        ConfigError: a log without events in time.
        DataError: the raw log cannot be read.
    """
    contract = feature_set.contract
    until = max(window.last_time for window in feature_set.manifest.windows.values())
    events = newest_events(contract, kept_events(contract.history), until)
    header = header_of(contract.fingerprint())
    # Users who came after the build share one row, and nobody may read another one's past.
    rows = pl.Series(USER, encoder.users.encode(events[USER]))
    events = events.with_columns(rows).filter(pl.col(USER) >= FIRST_VALUE).sort(USER, maintain_order=True)
    user_E = events[USER].to_numpy()
    first_U = np.searchsorted(user_E, np.arange(encoder.users.size + 1))
    size_U = np.zeros(encoder.users.size + 1, np.int64)
    (bundle / FOLDER).mkdir()
    with (bundle / FOLDER / EVENTS).open("wb") as file, progress("writing pasts", len(size_U), "users") as bar:
        for start in range(0, encoder.users.size, USERS_A_BLOCK):
            stop = min(start + USERS_A_BLOCK, encoder.users.size)
            block = events[int(first_U[start]) : int(first_U[stop])]
            items, times = canonical(block[ITEM]).to_list(), block[TIME].to_list()
            columns = {name.removeprefix(RAW): _values(block[name]) for name in block.columns if name.startswith(RAW)}
            place_U = first_U[start : stop + 1] - first_U[start]
            for user, (begin, end) in enumerate(zip(place_U.tolist(), place_U[1:].tolist(), strict=False), start):
                if end > begin:
                    of_user = {name: values[begin:end] for name, values in columns.items()}
                    size_U[user + 1] = file.write(pack_columns(items[begin:end], times[begin:end], of_user, header))
            bar.advance(stop - start)
    np.save(bundle / FOLDER / OFFSETS, np.cumsum(size_U))


def _values(column: pl.Series) -> list[Any]:
    """Values as JSON has them: times as ISO 8601 text (UTC), missing numbers as None."""
    dtype = column.dtype
    if dtype == pl.Date:
        column = column.dt.to_string("iso")
    elif isinstance(dtype, pl.Datetime):
        zoned = column if dtype.time_zone is None else column.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
        column = zoned.dt.strftime("%Y-%m-%dT%H:%M:%S%.6f")
    elif dtype.is_float():
        column = column.fill_nan(None)
    elif isinstance(dtype, pl.Decimal):
        column = column.cast(pl.Float64)
    elif not (dtype.is_integer() or dtype in (pl.Boolean, pl.Null) or isinstance(dtype, pl.List)):
        column = column.cast(pl.String, strict=False)
    return column.to_list()
