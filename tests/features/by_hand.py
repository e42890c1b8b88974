"""A feature set written by hand from a log in memory: what `write_profile` reads, without the rest of a build."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl

from features.build.parts import window_of
from features.contract.columns import Categorical, Column, Numeric, Tags
from features.encoding.encoder import encode_table
from features.encoding.registry import fit_column
from features.encoding.vocabulary import Vocabulary
from features.monitor.profile.file import Profile
from features.monitor.profile.write import write_profile
from features.store.feature_set import SPLITS, PartEntry, write_arrow
from features.store.schema import Schema, VectorSet

Columns = Mapping[str, Column]
CATEGORY, NUMBER, TAGS = Categorical(type="categorical"), Numeric(type="numeric"), Tags(type="tags")
LOG_COST = Numeric(type="numeric", transform="log1p")


def profiled(
    folder: Path,
    log: pl.DataFrame,
    items: pl.DataFrame,
    users: pl.DataFrame,
    columns: Mapping[str, Columns],
    vectors: Mapping[str, set[Any]] | None = None,
    parts: int = 1,
) -> Profile:
    """Encode a log and write its profile.

    Args:
        folder: for the files.
        log: `user item time label split`, context, candidate and event columns; times in µs, split 0, 1 or 2.
        items, users: their id (`item`, `user`) and columns.
        columns: by section: item, user, context, candidate, event. Fitted on all rows.
        vectors: ids of the items that have one, by set.
        parts: user buckets.
    """
    log = log.sort("user", "time", maintain_order=True)
    catalogue = {"item": Vocabulary(items["item"].sort()), "user": Vocabulary(users["user"].sort())}
    encoders: dict[str, dict[str, Any]] = {}
    for section, table in (("item", items.sort("item")), ("user", users.sort("user"))):
        specs = {section: CATEGORY, **columns.get(section, {})}
        encoders[section] = {name: fit_column(table[name], spec, "table") for name, spec in specs.items()}
        write_arrow(folder / f"{section}s.arrow", encode_table(table, encoders[section]))
    for section in ("context", "candidate", "event"):
        specs = dict(columns.get(section, {}))
        encoders[section] = {name: fit_column(log[name], spec, "log") for name, spec in specs.items()}
    schema = Schema(
        items=catalogue["item"].size,
        users=catalogue["user"].size,
        history_max_len=50,
        vectors=tuple(VectorSet(name=name, width=1) for name in vectors or {}),
        **{section: tuple(one.field(name) for name, one in found.items()) for section, found in encoders.items()},
    )
    for name, ids in (vectors or {}).items():
        there = np.zeros(schema.items, bool)
        there[catalogue["item"].encode(pl.Series(sorted(ids)))] = True
        (folder / "embeddings").mkdir(exist_ok=True)
        np.save(folder / "embeddings" / f"{name}.present.npy", there)
    entries = _write_parts(folder, log, catalogue, encoders, parts)
    return write_profile(folder, entries, SimpleNamespace(schema=schema, relative={}, **encoders))  # type: ignore[arg-type]


def _write_parts(
    folder: Path, log: pl.DataFrame, catalogue: Mapping[str, Vocabulary], encoders: Mapping[str, Any], parts: int
) -> list[PartEntry]:
    user = catalogue["user"].encode(log["user"])
    rows = {
        "user": user,
        "item": catalogue["item"].encode(log["item"]),
        "time": log["time"].to_numpy(),
        "label": log["label"].cast(pl.Float32).fill_null(float("nan")).to_numpy(),
    }
    for section in ("context", "candidate"):
        rows |= {name: one.encode(log[name]) for name, one in encoders[section].items()}
    events = {"item": rows["item"], "time": rows["time"]}
    events |= {name: one.encode(log[name]) for name, one in encoders["event"].items()}
    split = log["split"].to_numpy()
    entries = []
    for part in range(parts):
        mine = user % parts == part
        write_arrow(folder / "events" / f"{part}.arrow", {name: values[mine] for name, values in events.items()})
        place = np.arange(mine.sum())
        first = np.searchsorted(user[mine], user[mine])
        ends = {"history_end": place, "history_len": np.minimum(place - first, 50).astype(np.int32)}
        for number, name in enumerate(SPLITS):
            kept = split[mine] == number
            part_rows = {name: values[mine][kept] for name, values in rows.items()}
            part_rows |= {name: values[kept] for name, values in ends.items()}
            file = f"rows/{name}/{part}.arrow"
            write_arrow(folder / file, part_rows)
            entries.append(PartEntry(split=name, rows=file, events=f"events/{part}.arrow", window=window_of(part_rows)))
    return entries
