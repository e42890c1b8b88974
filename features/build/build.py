"""Raw tables -> feature set, in bounded memory: the log passes in chunks into shards of users, one part each."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import polars as pl

from features.build.history_tail import TAILS, HistoryTail, tails_suffice, write_tail
from features.build.label_leakage import label_leakage
from features.build.list_sizes import list_sizes
from features.build.parts import sorted_part, windows_of, without_negatives, without_rows, write_part
from features.build.plan import Plan, make_plan
from features.build.publish import build_lock, bytes_of_a_build, find_version, publish, source_key, staged
from features.build.revision import code_hash, revision
from features.build.training_events import training_events
from features.build.window import take_kept, write_days
from features.calendar import DAY, LAST_TIME, first_instant, require_date
from features.checks.check_log import Checked, Finding, check_log
from features.checks.history_tables import checked_events
from features.checks.newest_day import check_age, check_newest_day, figures_by_day
from features.checks.served_log import refuse_served_ids, served_findings
from features.chunk import ITEM, LABEL, TIME, USER, Chunk
from features.contract.contract import Contract
from features.encoding.encoder import USERS, Encoder
from features.fitting.fit import Fitted, Tables, fit
from features.fitting.split import Splitter, TimeSplitter, fit_split
from features.monitor.profile.write import write_profile
from features.point_in_time.counter_pass import Counted, Scales, count_log
from features.point_in_time.encoded_log import EncodedLog
from features.point_in_time.instants import Instants
from features.point_in_time.relative_pass import Related, relate_log
from features.progress import progress
from features.sources.files import looked_at_once
from features.sources.log import Log, Unchecked, log_columns, open_log
from features.store.disk import require_space
from features.store.feature_set import (
    FORMAT,
    MANIFEST,
    Code,
    FeatureSet,
    FileEntry,
    Manifest,
    PartEntry,
    part_file,
    read_arrow,
    sha256_of,
    write_arrow,
)
from features.store.pointer import point_at
from features.store.shuffle import shuffle_by_key
from features.vectors.build import VectorResult, build_vectors, needs_clicks
from features.vectors.coclicks import Clicks
from features.vectors.covisits import learn_sets

ROWS_A_SHARD = 1_000_000
MOST_SHARDS = 64
MOST_CLICKS = 5_000_000  # that co-clicks of items are counted in
SCRATCH = ".scratch"
HASHES = ".hashes.json"  # beside the versions: what the input's files were when they were hashed


@dataclass(frozen=True)
class BuildResult:
    """A feature set, whether it had been built before, and the seconds this call took.

    `stale` is what `checks.stale: warn` says of one that was built before and has become too old.
    """

    feature_set: FeatureSet
    reused: bool
    seconds: float
    stale: str | None = None


def build_feature_set(
    contract: Contract, out: Path, as_of: str | None = None, window: int | None = None, wait: float = 0.0
) -> BuildResult:
    """Build the feature set of a contract below `out/<name>/`, or find the one built from the same input.

    Args:
        contract: what to read and how.
        out: folder of all feature sets.
        as_of: last day (UTC) that is read, and the date in the version's name; default the day of the newest row.
        window: hold the rows of so many days alone, each day in parts of its own; a day that an earlier version has,
            from the same input, is taken from there.
        wait: seconds to wait for another process that builds the same contract. One that is built already is found
            without waiting.

    Raises:
        ConfigError: `as_of` is no date, a window without a split by days, or a context default of another type than
            its column.
        DataError: the data breaks its contract, is too old for it, or changes while it is read; nothing is left behind.
        LockError: another process builds the same contract, still after `wait`.
    """
    started = time.monotonic()
    require_date(as_of)
    folder = out / contract.name
    with looked_at_once(folder / HASHES):
        found = _reused(folder, source_key(contract, as_of, window))
    if found is not None:
        return BuildResult(found, True, time.monotonic() - started, _stale(found, as_of))
    with build_lock(folder, wait), looked_at_once(folder / HASHES) as look:
        # Whoever held the lock may have built it meanwhile.
        source = source_key(contract, as_of, window)
        if (found := _reused(folder, source)) is not None:
            return BuildResult(found, True, time.monotonic() - started, _stale(found, as_of))
        require_space(folder, bytes_of_a_build(contract, folder), f"a feature set of {contract.name!r}")
        plan = make_plan(contract, folder, as_of, window) if window else None
        with staged(folder) as staging:
            name = Build(contract, staging, source, as_of, plan).run()
            look.refuse_changes()
            built = publish(staging, folder, name)
    return BuildResult(built, reused=False, seconds=time.monotonic() - started)


def _stale(found: FeatureSet, as_of: str | None) -> str | None:
    """A log that does not change grows old: what `check_age` says of one that is built already."""
    manifest = found.manifest
    newest = max(window.last_time for window in manifest.windows.values())
    path = manifest.contract.resolve(manifest.contract.interactions.path)
    return check_age(path, newest, manifest.contract.checks, as_of)


def _reused(folder: Path, source: str) -> FeatureSet | None:
    """The version built from the same source, `CURRENT` pointed at it; None where there is none."""
    found = find_version(folder, source)
    if found is not None:
        point_at(folder, found.manifest.version)
    return found


class Build:
    """One build into a staging folder.

    Args:
        contract, as_of: as of `build_feature_set`.
        staging: an empty folder.
        source: key of the input.
        plan: of a windowed build.
    """

    def __init__(self, contract: Contract, staging: Path, source: str, as_of: str | None, plan: Plan | None) -> None:
        self.contract = contract
        self.staging = staging
        self.source = source
        self.given_as_of = as_of
        self.as_of = plan.days[-1].isoformat() if plan else as_of
        self.plan = plan
        self.clock = Clock()

    def run(self) -> str:
        """Write everything, the manifest last; returns the version."""
        tables = Tables.read(self.contract, self.as_of)
        log, fitted_on, found = self._checked(tables)
        shards = self._shards(log.rows)
        self.clock.lap("check the log")
        splitter = self._splitter(log)
        train = fitted_on.filter(splitter.is_train)
        if not train.head(1).collect(engine="streaming").height:
            raise without_rows(log.path, "train")
        fitted = self._fit(log, tables, train)
        write_arrow(self.staging / USERS, dict(fitted.encoder.user_table))
        for file, versions in fitted.versions.items():
            write_arrow(self.staging / file, versions)
        self.clock.lap("fit encoders and tables")
        vectors = self._vectors(fitted, log, train)
        self.clock.lap("vectors")
        instants = Instants.find(self.contract, log, shards, self.staging / SCRATCH / "requests")
        found = (*found, *label_leakage(self.contract, self.staging, train))
        found = (*found, *instants.findings(self.contract), *served_findings(self.contract, log.path, self.as_of))
        findings = tuple(finding.message for finding in found)
        self.clock.lap("requests")
        stream = EncodedLog(self.contract, log, fitted.encoder, self._since(), instants)
        scratch = self.staging / SCRATCH
        counted = count_log(stream, fitted.items, splitter, shards, scratch, self._scales())
        self.clock.lap("counters")
        related = relate_log(stream, counted, fitted, splitter, shards, self.staging / SCRATCH, self._prior_encoder())
        self.clock.lap("relative columns")
        parts, known = self._parts(stream, counted, related, splitter, shards)
        windows = windows_of(parts, log.path)
        newest = max(window.last_time for window in windows.values())
        stale = check_age(log.path, newest, self.contract.checks, self.as_of)
        days = figures_by_day(_times_and_labels(self.staging, parts, self.contract))
        findings = (*findings, *without_negatives(self.contract, windows))
        findings = (*findings, *check_newest_day(log.path, days, self.contract.checks), *([stale] if stale else []))
        shutil.rmtree(self.staging / SCRATCH, ignore_errors=True)
        self.clock.lap("rows and histories")
        encoder = related.added_to(counted.added_to(with_vectors(fitted.encoder, vectors)))
        encoder = replace(encoder, log_columns=log_columns(self.contract))
        encoder.save(self.staging)
        write_profile(self.staging, parts, encoder)
        self.clock.lap("profile")
        files = hashes(self.staging, known)
        self.clock.lap("hashes")
        manifest = Manifest(
            format=FORMAT,
            name=self.contract.name,
            version=f"{self.as_of or datetime.fromtimestamp(newest / 1e6, UTC).date()}-{self.source[:8]}",
            fingerprint=self.contract.fingerprint(),
            contract=self.contract,
            schema_=encoder.schema,
            windows=windows,
            shards=shards,
            parts=tuple(parts),
            days={day.isoformat(): key for day, key in self.plan.keys.items()} if self.plan else {},
            log_files={file.sha256: (file.first, file.last) for file in self.plan.files} if self.plan else {},
            list_sizes=list_sizes(self.staging, parts, self.contract.split.by == "days") if encoder.relative else None,
            sampling=stream.sampling(first_instant(self.plan.days[0])) if self.plan else stream.sampling(),
            label_mean=counted.mean,
            findings=findings,
            files=files,
            code=Code(sha256=code_hash(), revision=revision()),
            versions={package: version(package) for package in ("polars", "pyarrow", "numpy")},
            seconds=self.clock.seconds,
            source=self.source,
        )
        text = json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False)
        (self.staging / MANIFEST).write_text(text, encoding="utf-8")
        return manifest.version

    def _checked(self, tables: Tables) -> tuple[Log, pl.LazyFrame, tuple[Finding, ...]]:
        """The log's rows, checked; those of new days alone where the past is carried over.

        Returns:
            The log, rows that hold the training window, and what the checks found.
        """
        earlier, found = checked_events(self.contract, self.as_of)
        log, fitted_on, findings = self._checked_log(earlier, tables)
        return log, fitted_on, (*findings, *found)

    def _checked_log(
        self, earlier: tuple[pl.LazyFrame, ...], tables: Tables
    ) -> tuple[Log, pl.LazyFrame, tuple[Finding, ...]]:
        refuse_served_ids(self.contract, self.as_of)
        # Not up to the plan's last day: a row after it is one that the checks tell, or put aside.
        whole, plan = open_log(self.contract, self.given_as_of), self.plan
        if plan is None or not (plan.has_tails and plan.new):
            checked = self._check(whole, tables)
            return Log(checked.frame, whole.path, checked.rows, earlier), checked.frame, checked.findings
        new = pl.col(TIME) >= first_instant(plan.new[0])
        if not whole.frame.filter(new).head(1).collect(engine="streaming").height:
            # New days without a row: they are built without what is carried over.
            self.plan = replace(plan, has_tails=False)
            return self._checked_log(earlier, tables)
        if not self.contract.checks.quarantines:
            checked = self._check(replace(whole, frame=whole.frame.filter(new | pl.col(TIME).is_null())), tables)
            return Log(checked.frame, whole.path, checked.rows, earlier), whole.frame, checked.findings
        # Rows of old days are fitted on again: those in quarantine must stay there.
        in_window = (pl.col(TIME) >= first_instant(plan.days[0])) | pl.col(TIME).is_null()
        checked = self._check(replace(whole, frame=whole.frame.filter(in_window)), tables)
        frame = checked.frame.filter(new)
        rows = frame.select(pl.len()).collect(engine="streaming").item()
        return Log(frame, whole.path, rows, earlier), checked.frame, checked.findings

    def _check(self, log: Unchecked, tables: Tables) -> Checked:
        return check_log(log, self.contract, *tables.ids(self.contract), self.staging)

    def _shards(self, rows: int) -> int:
        if self.plan and self.plan.prior and (self.plan.has_tails or not self.plan.new):
            return self.plan.prior.manifest.shards  # tails lie in as many pieces
        return min(MOST_SHARDS, -(-rows // ROWS_A_SHARD))

    def _since(self) -> int | None:
        if self.plan is None:
            return None
        return first_instant(self.plan.new[0]) if self.plan.new else LAST_TIME

    def _splitter(self, log: Log) -> Splitter:
        if self.plan is None:
            return fit_split(self.contract, log)
        starts = {self.plan.split_of(day): first_instant(day) for day in reversed(self.plan.days)}
        return TimeSplitter(starts["valid"], starts["test"], starts["train"])

    def _fit(self, log: Log, tables: Tables, train: pl.LazyFrame) -> Fitted:
        if self.plan is None or self.plan.prior is None:
            return fit(self.contract, log, tables, train)
        fresh = train.filter(pl.col(TIME) >= first_instant(self.plan.newly_trained_from))
        return fit(self.contract, log, tables, train, Encoder.load(self.plan.prior.path), fresh)

    def _scales(self) -> Scales | None:
        """Mean rate and encoders of the counters of the kept days."""
        prior = self.plan.prior if self.plan else None
        if prior is None or prior.manifest.label_mean is None:
            return None
        encoder = Encoder.load(prior.path)
        return Scales(prior.manifest.label_mean, encoder.snapshot.means, {**encoder.candidate, **encoder.context})

    def _prior_encoder(self) -> Encoder | None:
        return Encoder.load(self.plan.prior.path) if self.plan and self.plan.prior else None

    def _vectors(self, fitted: Fitted, log: Log, train: pl.LazyFrame) -> VectorResult:
        """Write vectors, what is derived from them, and the item table."""
        encoder, learned = fitted.encoder, {}
        if self.contract.learned_sets:
            sources = sorted({str(one.learn) for one in self.contract.learned_sets.values()})
            events = {one: training_events(self.contract, log, train, one == "tables") for one in sources}
            learned = learn_sets(self.contract, events, self.staging)
        clicks = _clicks(encoder, train) if needs_clicks(self.contract) else None
        prior = self.plan.prior.path if self.plan and self.plan.prior else None
        made = build_vectors(self.contract, encoder.items, fitted.trained_I, fitted.items, clicks, self.staging, prior)
        write_arrow(self.staging / "items.arrow", fitted.items | made.item_columns)
        report = made.report | ({"learned": learned} if learned else {})
        if report:
            (self.staging / "vectors.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
        return made

    def _parts(
        self, stream: EncodedLog, counted: Counted, related: Related, splitter: Splitter, shards: int
    ) -> tuple[list[PartEntry], dict[str, FileEntry]]:
        """Write `rows/` and `events/`; returns all parts, and the hashes of files that were taken as they are.

        A part holds the users of one shard, those whose row is `part` modulo the number of shards: memory holds the
        largest shard and one chunk, whatever the log's size.
        """
        parts, known = take_kept(self.plan, self.staging) if self.plan else ([], {})
        if self.plan and not self.plan.new:
            return parts, known
        rows = stream.most_rows()
        read, written = 0, 0
        with progress("building rows and histories", total=rows, unit="rows") as bar:

            def advance(came_in: int) -> None:
                nonlocal read
                read += came_in
                bar.advance_to(read // 2, rows)  # half of the work is to read a row, the other half to write it

            encoded = (chunk.columns() for chunk in related.onto(counted.onto(stream.full())))
            divided = shuffle_by_key(encoded, "user", shards, self.staging / SCRATCH / "users", advance)
            for number, shard in enumerate(map(Chunk.from_columns, divided)):
                written += shard.rows
                bar.advance_to((read + written) // 2, read)
                parts += self._write_shard(shard, number, splitter, stream.encoder)
        return parts, known

    def _write_shard(self, shard: Chunk, number: int, splitter: Splitter, encoder: Encoder) -> list[PartEntry]:
        """Write rows and events of one shard; of a windowed build, its new days, and the tail of its histories."""
        if self.plan is None:
            return write_part(sorted_part(shard, self.contract, splitter, encoder), number, self.staging)
        tail = None
        if self.plan.prior is not None and self.plan.has_tails:
            tail = HistoryTail.read(self.plan.prior.path, number, shard.user)
            shard = tail.onto(shard)
        part = sorted_part(shard, self.contract, splitter, encoder)
        if tails_suffice(self.contract):
            ends = first_instant(self.plan.days[-1]) + DAY
            write_tail(part, tail, ends, self.contract.history, self.staging / TAILS / part_file(number))
        return write_days(part, number, self.plan, self.staging)


def _times_and_labels(
    staging: Path, parts: list[PartEntry], contract: Contract
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Times and labels of the rows of each part; nothing where no check asks for them."""
    if contract.checks.newest_day == "off" or contract.interactions.time is None:
        return
    for part in parts:
        rows = read_arrow(staging / part.rows)
        yield rows["time"], rows["label"].astype(np.float64)


def with_vectors(encoder: Encoder, made: VectorResult) -> Encoder:
    """An encoder whose schema has the vectors and what is derived from them."""
    old = encoder.schema
    found = {"item": (*old.item, *made.item_fields), "vectors": made.sets}
    return replace(encoder, schema=old.model_copy(update=found))


def hashes(folder: Path, known: dict[str, FileEntry]) -> dict[str, FileEntry]:
    """Size and sha256 of every file below a folder; `known` ones are not read again."""
    result = dict(known)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name not in result:
            result[name] = FileEntry(bytes=path.stat().st_size, sha256=sha256_of(path))
    return result


def _clicks(encoder: Encoder, train: pl.LazyFrame) -> Clicks:
    """User and item of the newest `MOST_CLICKS` positives of the training window, whatever the order of the log."""
    positives = (
        train.filter(pl.col(LABEL).cast(pl.Float32) == 1)
        .select(TIME, USER, ITEM)
        .top_k(MOST_CLICKS, by=[TIME, USER, ITEM])
        .collect(engine="streaming")
    )
    return Clicks(encoder.users.encode(positives[USER]), encoder.items.encode(positives[ITEM]))


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
