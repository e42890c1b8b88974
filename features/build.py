"""Raw tables -> feature set, in bounded memory: the log passes in chunks into user buckets, one part each."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import UTC, date, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import polars as pl

from features.catalogue import build_catalogue, fit_columns, read_table
from features.columns import ColumnEncoder, fit_column
from features.contract import Contract, ScalarColumn
from features.embeddings import build_embedding
from features.encoder import USERS, Columns, Encoder, encode_table, encode_value, fields
from features.errors import ConfigError, named
from features.feature_set import (
    FORMAT,
    MANIFEST,
    FeatureSet,
    FileEntry,
    Manifest,
    sha256_of,
    write_arrow,
)
from features.log import CONTEXT, HISTORY, ITEM, USER, Log, distinct, open_log, value_counts
from features.parts import write_parts
from features.profile import write_profile
from features.publish import build_lock, find_version, point_at, publish, source_key, staged
from features.schema import Schema
from features.split import Splitter, fit_split


@dataclass(frozen=True)
class BuildResult:
    """A feature set, whether it had been built before, and the seconds this call took."""

    feature_set: FeatureSet
    reused: bool
    seconds: float


def build_feature_set(contract: Contract, out: Path, as_of: str | None = None) -> BuildResult:
    """Build the feature set of a contract below `out/<name>/`, or find the one built from the same input.

    Args:
        contract: what to read and how.
        out: folder of all feature sets.
        as_of: date in the version's name; default the day of the newest event.

    Raises:
        ConfigError: `as_of` is no date, or a context default is of another type than its column.
        DataError: the data breaks its contract; nothing is left behind.
        LockError: another process builds the same contract.
    """
    started = time.monotonic()
    _check_date(as_of)
    folder = out / contract.name
    with build_lock(folder):
        source = source_key(contract, as_of)
        found = find_version(folder, source)
        if found is not None:
            point_at(folder, found.manifest.version)
            return BuildResult(found, reused=True, seconds=time.monotonic() - started)
        with staged(folder) as staging:
            name = _build(contract, staging, source, as_of)
            built = publish(staging, folder, name)
    return BuildResult(built, reused=False, seconds=time.monotonic() - started)


def _build(contract: Contract, staging: Path, source: str, as_of: str | None) -> str:
    """Write a whole feature set into `staging`; returns its version."""
    clock = Clock()
    log = open_log(contract)
    splitter = fit_split(contract, log)
    clock.lap("check the log")
    encoder, trained_items = _fit(contract, log, splitter, staging)
    clock.lap("fit encoders and tables")
    vectors, coverage = {}, {}
    for name in contract.embeddings:
        vectors[name], coverage[name] = build_embedding(
            name, contract, encoder.items, trained_items, staging / "embeddings"
        )
    encoder.schema = encoder.schema.model_copy(update={"vectors": tuple(vectors.values())})
    clock.lap("vectors")
    windows, parts, events = write_parts(contract, log, splitter, encoder, staging)
    clock.lap("rows and histories")
    encoder.save(staging)
    write_profile(staging, windows, parts, encoder.schema, coverage)
    newest = max(window.last_time for window in windows.values())
    manifest = Manifest(
        format=FORMAT,
        name=contract.name,
        version=f"{as_of or datetime.fromtimestamp(newest / 1e6, UTC).date()}-{source[:8]}",
        fingerprint=contract.fingerprint(),
        contract=contract,
        schema_=encoder.schema,
        windows=windows,
        parts=parts,
        events=events,
        files=_hashes(staging),
        versions={package: version(package) for package in ("polars", "pyarrow", "numpy")},
        seconds=clock.seconds,
        source=source,
    )
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False)
    (staging / MANIFEST).write_text(text, encoding="utf-8")
    return manifest.version


def _fit(contract: Contract, log: Log, splitter: Splitter, staging: Path) -> tuple[Encoder, np.ndarray]:
    """Learn every encoder from the training window; write the item and user tables.

    Returns:
        The encoder, and which catalogue items were seen in training, bool [items].
    """
    train = log.frame.filter(splitter.is_train)
    trained = {key: value_counts(train, key) for key in (ITEM, USER)}
    vocabularies, tables = {}, {}
    named_as = contract.interactions
    sides = (
        (ITEM, "item", named_as.item, contract.items, contract.item_field, named_as.item_min_count, "items.arrow"),
        (USER, "user", named_as.user, contract.users, contract.user_field, named_as.user_min_count, USERS),
    )
    learned: dict[str, Columns] = {}
    for key, which, column, declared, id_name, min_count, file in sides:
        table = read_table(contract, declared, which) if declared else None
        vocabularies[key], frame = build_catalogue(distinct(log, key, column), table, id_name, log.path)
        path = contract.resolve(declared.path) if declared else log.path
        learned[key] = fit_columns(frame, trained[key], declared, id_name, min_count, path)
        with named(path):
            tables[key] = encode_table(frame, learned[key])
        write_arrow(staging / file, tables[key])
    context: Columns = {
        name: _fit_log_column(train, CONTEXT + name, spec, log.path)
        for name, spec in contract.interactions.context.items()
    }
    event: Columns = {
        name: _fit_log_column(train, HISTORY + name, spec, log.path) for name, spec in contract.history.columns.items()
    }
    for name, spec in contract.interactions.context.items():
        encode_value(f"interactions.context.{name}.default", context[name], spec.default)
    schema = Schema(
        items=vocabularies[ITEM].size,
        users=vocabularies[USER].size,
        item=fields(learned[ITEM]),
        user=fields(learned[USER]),
        context=fields(context),
        event=fields(event),
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
        tables[USER],
    )
    seen = np.zeros(schema.items, bool)
    seen[vocabularies[ITEM].encode(trained[ITEM]["value"])] = True
    return encoder, seen


def _fit_log_column(train: pl.LazyFrame, column: str, spec: ScalarColumn, path: str) -> ColumnEncoder:
    values = train.select(column).collect(engine="streaming")[column]
    name = column.partition(".")[2]
    return fit_column(values.rename(name), spec, path)


def _hashes(folder: Path) -> dict[str, FileEntry]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): FileEntry(bytes=path.stat().st_size, sha256=sha256_of(path))
        for path in files
    }


def _check_date(as_of: str | None) -> None:
    try:
        date.fromisoformat(as_of or "1970-01-01")
    except ValueError:
        raise ConfigError(f"--as-of {as_of}: not a date. Write it as 2026-01-31.") from None


class Clock:
    """Seconds of each stage, for the manifest."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, stage: str) -> None:
        """End the stage that runs."""
        now = time.monotonic()
        self.seconds[stage] = round(now - self._last, 3)
        self._last = now
