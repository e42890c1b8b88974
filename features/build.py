"""Raw tables -> feature set, in bounded memory: the log passes in chunks into user buckets, one part each."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from datetime import UTC, date, datetime
from importlib.metadata import version
from pathlib import Path

from features.buckets import by_bucket
from features.contract import Contract
from features.counter_pass import Counted, count
from features.embeddings import build_embedding
from features.encoder import USERS
from features.errors import ConfigError
from features.feature_set import (
    FORMAT,
    MANIFEST,
    SPLITS,
    FeatureSet,
    FileEntry,
    Manifest,
    PartEntry,
    SplitName,
    Window,
    sha256_of,
    write_arrow,
)
from features.fit import Tables, fit
from features.log import Log, earlier_events, labels_taken_out, open_log
from features.parts import merged, sorted_part, write_part
from features.profile import write_profile
from features.progress import progress
from features.publish import build_lock, find_version, point_at, publish, source_key, staged
from features.split import Splitter, fit_split
from features.stream import Stream
from features.validation import Finding, check_log

ROWS_A_BUCKET = 1_000_000
MOST_BUCKETS = 64
SCRATCH = ".scratch"


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
        as_of: last day (UTC) that is read, and the date in the version's name; default the day of the newest row.

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
    tables = Tables.read(contract)
    log, findings = _checked(contract, tables, staging, as_of)
    clock.lap("check the log")
    splitter = fit_split(contract, log)
    fitted = fit(contract, log, tables, splitter)
    encoder = fitted.encoder
    write_arrow(staging / USERS, encoder.user_table)
    clock.lap("fit encoders and tables")
    vectors, coverage = {}, {}
    for name in contract.embeddings:
        vectors[name], coverage[name] = build_embedding(
            name, contract, encoder.items, fitted.trained_I, staging / "embeddings"
        )
    encoder.schema = encoder.schema.model_copy(update={"vectors": tuple(vectors.values())})
    write_arrow(staging / "items.arrow", fitted.items)
    clock.lap("vectors")
    stream = Stream(contract, log, encoder)
    counted = count(stream, splitter, _buckets(log.rows), staging / SCRATCH)
    clock.lap("counters")
    windows, parts, events = _write_parts(stream, counted, splitter, staging)
    clock.lap("rows and histories")
    shutil.rmtree(staging / SCRATCH, ignore_errors=True)
    encoder.save(staging)
    write_profile(staging, windows, _buckets(log.rows), encoder.schema, coverage)
    clock.lap("profile")
    newest = max(window.last_time for window in windows.values())
    files = _hashes(staging)
    clock.lap("hashes")
    manifest = Manifest(
        format=FORMAT,
        name=contract.name,
        version=f"{as_of or datetime.fromtimestamp(newest / 1e6, UTC).date()}-{source[:8]}",
        fingerprint=contract.fingerprint(),
        contract=contract,
        schema_=encoder.schema,
        windows=windows,
        buckets=_buckets(log.rows),
        parts=tuple(parts),
        events=events,
        sampling=stream.sampling,
        findings=tuple(finding.message for finding in findings),
        files=files,
        versions={package: version(package) for package in ("polars", "pyarrow", "numpy")},
        seconds=clock.seconds,
        source=source,
    )
    text = json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False)
    (staging / MANIFEST).write_text(text, encoding="utf-8")
    return manifest.version


def _checked(contract: Contract, tables: Tables, staging: Path, as_of: str | None) -> tuple[Log, tuple[Finding, ...]]:
    log = open_log(contract, as_of)
    checked = check_log(log.frame, log.path, contract, *tables.ids(contract), staging)
    frame = labels_taken_out(checked.frame) if log.unlabelled else checked.frame
    return Log(frame, log.path, checked.rows, earlier_events(contract, as_of)), checked.findings


def _buckets(rows: int) -> int:
    return min(MOST_BUCKETS, -(-rows // ROWS_A_BUCKET))


def _write_parts(
    stream: Stream, counted: Counted, splitter: Splitter, folder: Path
) -> tuple[dict[SplitName, Window], list[PartEntry], int]:
    """Write `rows/` and `events/`.

    A part holds the users whose row is `part` modulo the number of buckets, so memory is bounded by the
    largest part and one chunk, whatever the log's size.

    Returns:
        Window of each split, all parts, number of events.
    """
    log, contract, encoder = stream.log, stream.contract, stream.encoder
    found: dict[SplitName, list[Window]] = {name: [] for name in SPLITS}
    parts: list[PartEntry] = []
    events = 0
    with progress("building rows and histories", total=2 * log.rows, unit="rows") as bar:
        chunks = counted.onto(stream.full())
        buckets = by_bucket(chunks, "user", _buckets(log.rows), folder / SCRATCH / "users", bar.advance)
        for number, bucket in enumerate(buckets):
            part = sorted_part(bucket, contract, splitter, encoder)
            entries, windows = write_part(part, number, folder)
            parts += entries
            events += len(part.events["item"])
            for name, window in windows.items():
                found[name].append(window)
            bar.advance(len(bucket["user"]))
    return {name: merged(windows, name, log.path, log.rows) for name, windows in found.items()}, parts, events


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
