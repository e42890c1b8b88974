"""Which days a windowed build holds, and which of them an earlier version has already."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from features.build.history_tail import TAILS, tails_suffice
from features.build.revision import code_hash
from features.calendar import DAY, FIRST_TIME, LAST_TIME, day_of, first_instant
from features.checks.row_rules import plausible
from features.chunk import TIME
from features.contract.columns import Gap
from features.contract.contract import Contract
from features.encoding.encoder import Encoder
from features.errors import ConfigError, DataError
from features.fitting.fit import Tables
from features.sources.files import content_hash, find_files
from features.sources.log import open_log, time_span
from features.store.feature_set import FORMAT, MANIFEST, FeatureSet, SplitName
from features.store.schema import FIRST_VALUE
from features.store.vector_files import EMBEDDINGS
from features.store.versions import VALID_FROM

LINKED = ("rows", "events", EMBEDDINGS)  # folders of a version whose files are not read: they are kept or made anew


class LogFile(NamedTuple):
    """A file of the log: sha256 of its content, first and last day of its rows."""

    sha256: str
    first: date
    last: date


@dataclass(frozen=True)
class Plan:
    """Which days a windowed build holds, and which of them an earlier version has already.

    Args:
        days: of the window, oldest first; whole UTC days.
        keys: for each day, a hash of all that its rows and histories depend on.
        prior: the version to take from, None to start afresh.
        kept: days taken from it: the first ones of the window.
        has_tails: whether histories of days after the kept ones may begin with the events that `prior` ended with.
        files: of the log, in its order.
        valid_days, test_days: whole days at the window's end.
    """

    days: tuple[date, ...]
    keys: dict[date, str]
    prior: FeatureSet | None
    kept: tuple[date, ...]
    has_tails: bool
    files: tuple[LogFile, ...]
    valid_days: int
    test_days: int

    @property
    def newly_trained_from(self) -> date:
        """The first day that trains now and did not in `prior`; the window's first without one."""
        if self.prior is None:
            return self.days[0]
        trained = [date.fromisoformat(str(part.day)) for part in self.prior.manifest.parts if part.split == "train"]
        # A day that is built again may hold values that it did not have when it was trained on.
        first = min([max(trained) + timedelta(days=1), *self.new[:1]])
        return max(first, self.days[0])

    @property
    def new(self) -> tuple[date, ...]:
        """Days to build."""
        return self.days[len(self.kept) :]

    def split_of(self, day: date) -> SplitName:
        """The split that a day's rows belong to."""
        from_end = (self.days[-1] - day).days
        if from_end < self.test_days:
            return "test"
        return "valid" if from_end < self.test_days + self.valid_days else "train"


def make_plan(contract: Contract, folder: Path, as_of: str | None, window: int) -> Plan:
    """Compare what each day depends on with what the published versions were built from.

    Of the versions of the same contract the one with most days to keep is taken; of several the one whose history tails
    can be used, then the newest. One that lacks a file is passed over, or has another content in one that is read here.
    So is one whose training window had no value of some number: it has rows that are encoded without a scale, which
    would have to stay so.

    Args:
        contract: split by days.
        folder: of the contract's versions.
        as_of: the window's last day; default the log's newest.
        window: days of the window.

    Raises:
        ConfigError: the contract does not split by days, the window is too short for its valid and test days, or
            begins before the year 1.
        DataError: the log has nothing on or before `as_of`.
    """
    split = contract.split
    if split.by != "days":
        raise ConfigError(f"--window: needs `split: {{by: days, …}}` in the contract, which has by: {split.by}.")
    valid_days, test_days = int(float(split.valid)), int(float(split.test))
    if contract.interactions.served is not None:
        raise ConfigError(
            "--window: outcomes of a day may come after its build, so no day of a served log can be kept. Build "
            "without --window; let interactions.path name the days that are wanted."
        )
    if window <= valid_days + test_days:
        raise ConfigError(
            f"--window {window}d: leaves no day to train on beside {valid_days} to validate and {test_days} to test."
        )
    versions = _versions(folder, contract)
    files = _log_files(contract, versions)
    last = date.fromisoformat(as_of) if as_of else _newest_day(contract, files)
    if window > last.toordinal():
        raise ConfigError(f"--window {window}d: begins before the year 1. Write a window that the log has days for.")
    if min(file.first for file in files) > last:
        raise DataError(f"{contract.resolve(contract.interactions.path)}: no row on or before {last}. Correct --as-of.")
    days = tuple(last - timedelta(days=back) for back in reversed(range(window)))
    beside = _beside_the_log(contract, last)
    compared = _compared_columns(contract, last)
    keys = {day: _key(contract, files, day, beside, compared) for day in days}
    prior, kept, has_tails = None, 0, False
    for version in versions:
        agrees = [version.manifest.days.get(day.isoformat()) == keys[day] for day in days]
        same = agrees.index(False) if False in agrees else len(days)
        usable = bool(same) and _has_tails(contract, version, days[same - 1])
        if (same, usable) <= (kept, has_tails) or not version.is_whole() or not version.is_as_built(but=LINKED):
            continue
        if _same_numbers(version, compared) and not Encoder.load(version.path).blank_columns:
            prior, kept, has_tails = version, same, usable
    return Plan(days, keys, prior, days[:kept], has_tails, files, valid_days, test_days)


def _log_files(contract: Contract, versions: list[FeatureSet]) -> tuple[LogFile, ...]:
    """The files of the log that have rows, in its order; one that an earlier version read is not read again."""
    known: dict[str, tuple[date, date]] = {}
    for version in versions:
        known |= version.manifest.log_files
    found = []
    for path in find_files(contract.resolve(contract.interactions.path)):
        sha256 = content_hash(path)
        if sha256 not in known and (span := time_span(contract, path)) is not None:
            known[sha256] = _day_in_calendar(span[0]), _day_in_calendar(span[1])
        if sha256 in known:
            found.append(LogFile(sha256, *known[sha256]))
    if not found:
        raise DataError(f"{contract.resolve(contract.interactions.path)}: the log is empty. Check what wrote it.")
    return tuple(found)


def _day_in_calendar(time: int) -> date:
    """The day of a time, the nearest one of the calendar where it has none: the check of the log tells such rows."""
    return day_of(min(max(time, FIRST_TIME), LAST_TIME - 1))


def _newest_day(contract: Contract, files: tuple[LogFile, ...]) -> date:
    """The day of the newest row; one that is put aside for its time is none."""
    newest = max(file.last for file in files)
    if contract.checks.time_range != "quarantine":
        return newest
    _, last = plausible(contract, datetime.now(UTC))
    if newest <= day_of(last):
        return newest
    sound = open_log(contract).frame.filter(pl.col(TIME) <= last).select(pl.col(TIME).max())
    found = sound.collect(engine="streaming").item()
    return newest if found is None else day_of(found)


def _beside_the_log(contract: Contract, as_of: date) -> str:
    """What the rows of every day depend on beside the log: contract, history tables, keys of counters, ids kept in."""
    digest = hashlib.sha256(f"{FORMAT} {contract.fingerprint()}".encode())
    for table in contract.history.tables:
        for path in find_files(contract.resolve(table.path)):
            digest.update(content_hash(path).encode())
    for declared, side in ((contract.items, "item"), (contract.users, "user")):
        # A column of the table is part of a counter's key.
        if declared is not None and any(of == side != key for key, of in contract.counter_sides.items()):
            for path in find_files(contract.resolve(declared.path)):
                digest.update(content_hash(path).encode())
    policies = contract.checks.unknown_item, contract.checks.unknown_user
    if "quarantine" in policies:
        known = Tables.read(contract, as_of.isoformat()).ids(contract)
        for ids, policy in zip(known, policies, strict=True):
            if ids is not None and policy == "quarantine":
                digest.update(repr(ids.sort().to_list()).encode())
    return digest.hexdigest()


def _compared_columns(contract: Contract, as_of: date) -> pl.DataFrame | None:
    """The item columns that are compared within requests: rows hold what they were among each other."""
    names = [column.of for column in contract.relative_columns if column.of not in (None, *contract.counters)]
    if not names:
        return None
    tables = Tables.read(contract, as_of.isoformat())
    table = tables.items if tables.item_versions is None else tables.item_versions
    assert table is not None, "a column of a table that is not declared"
    moments = [] if tables.item_versions is None else [VALID_FROM]
    return table.select(contract.item_field, *moments, *dict.fromkeys(names)).sort(contract.item_field, *moments)


def _same_numbers(version: FeatureSet, compared: pl.DataFrame | None) -> bool:
    """Whether each item that a version knows has the numbers that its rows were compared by; new ones are in no row."""
    if compared is None or VALID_FROM in compared.columns:
        return True
    encoder = Encoder.load(version.path)
    name_of_id, *names = compared.columns
    known = pl.DataFrame({name_of_id: encoder.items.values})
    if known.schema[name_of_id] != compared.schema[name_of_id]:
        return False
    now = known.join(compared, on=name_of_id, how="left", maintain_order="left")
    return all(
        np.array_equal(encoder.item[name].encode(now[name]), encoder.item_numbers[name][FIRST_VALUE:], equal_nan=True)
        for name in names
    )


def _key(contract: Contract, files: tuple[LogFile, ...], day: date, beside: str, compared: pl.DataFrame | None) -> str:
    """What the rows of a day depend on: every file of the log with a row up to that day, and what lies `beside` it.

    So they do on the item columns that are `compared` within requests, as these were known on that day; of a table of
    one row an id, `_same_numbers` says.

    Histories with a greatest age depend on no file that is older; counters and negatives do, and so do events of which
    the one before them decides something: what is kept (`repeats`) or the pause between the two.
    """
    oldest = date.min
    history = contract.history
    looks_back = history.repeats != "keep" or any(isinstance(column, Gap) for column in history.columns.values())
    if history.within and not (looks_back or contract.counters or contract.interactions.negatives):
        oldest = date.fromordinal(max(day.toordinal() + -history.within // DAY, 1))
    digest = hashlib.sha256(beside.encode())
    if compared is not None and VALID_FROM in compared.columns:
        begun = pl.col(VALID_FROM) < first_instant(day) + DAY
        digest.update(repr(compared.filter(begun).rows()).encode())
    # In the log's order, which decides among rows of one instant; a file that is there twice counts twice.
    for file in files:
        if file.first <= day and file.last >= oldest:
            digest.update(file.sha256.encode())
    return digest.hexdigest()


def _versions(folder: Path, contract: Contract) -> list[FeatureSet]:
    """Windowed builds of the same contract by the same code, newest first.

    `CURRENT` alone may name one of another window or of an older day.
    """
    found = []
    for path in sorted(folder.glob(f"*/{MANIFEST}"), key=lambda path: path.stat().st_mtime_ns, reverse=True):
        try:
            version = FeatureSet.open(path.parent)
        except DataError:
            continue
        manifest = version.manifest
        built_alike = manifest.code.sha256 == code_hash() and manifest.fingerprint == contract.fingerprint()
        if built_alike and manifest.days:
            found.append(version)
    return found


def _has_tails(contract: Contract, prior: FeatureSet, last_kept: date) -> bool:
    """Whether a version holds the events that histories of the day after `last_kept` begin with."""
    ends_there = max(prior.manifest.days) == last_kept.isoformat()
    return tails_suffice(contract) and ends_there and (prior.path / TAILS).is_dir()
