"""Windowed builds: one part a day and bucket, and days whose input is unchanged taken from the version before."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from features.build.parts import Part, window_of
from features.build.revision import code_hash
from features.chunk import CARRIED, DAY, EVENT, HISTORY, INSTANT, LOGGED, ROW, TIME, Arrays
from features.contract.columns import Gap
from features.contract.contract import Contract
from features.contract.log import History
from features.errors import ConfigError, DataError
from features.fitting.fit import Tables
from features.sources.files import content_hash, find_files
from features.sources.log import open_log
from features.store.feature_set import (
    FORMAT,
    MANIFEST,
    FeatureSet,
    FileEntry,
    PartEntry,
    SplitName,
    read_arrow,
    write_arrow,
)

EPOCH = date(1970, 1, 1)
KEYS = {"user": pl.Int32, "item": pl.Int32, "time": pl.Int64}  # of an event, with how it is stored
CARRY = "carry"  # folder of the newest events of every user, which the next day's histories begin with


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
        carries: whether histories of days after the kept ones may begin with the events that `prior` ended with.
        files: of the log, in its order.
        valid_days, test_days: whole days at the window's end.
    """

    days: tuple[date, ...]
    keys: dict[date, str]
    prior: FeatureSet | None
    kept: tuple[date, ...]
    carries: bool
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

    Of the versions of the same contract the one with most days to keep is taken; of several the one whose events can be
    carried on, then the newest.

    Args:
        contract: split by days.
        folder: of the contract's versions.
        as_of: the window's last day; default the log's newest.
        window: days of the window.

    Raises:
        ConfigError: the contract does not split by days, or the window is too short for its valid and test days.
        DataError: the log has nothing on or before `as_of`.
    """
    split = contract.split
    if split.by != "days":
        raise ConfigError(f"--window: needs `split: {{by: days, …}}` in the contract, which has by: {split.by}.")
    valid_days, test_days = int(float(split.valid)), int(float(split.test))
    if window <= valid_days + test_days:
        raise ConfigError(
            f"--window {window}d: leaves no day to train on beside {valid_days} to validate and {test_days} to test."
        )
    versions = _versions(folder, contract)
    files = _log_files(contract, versions)
    last = date.fromisoformat(as_of) if as_of else max(file.last for file in files)
    if min(file.first for file in files) > last:
        raise DataError(f"{contract.resolve(contract.interactions.path)}: no row on or before {last}. Correct --as-of.")
    days = tuple(last - timedelta(days=back) for back in reversed(range(window)))
    beside = _beside_the_log(contract, last)
    keys = {day: _key(contract, files, day, beside) for day in days}
    prior, kept, carries = None, 0, False
    for version in versions:
        agrees = [version.manifest.days.get(day.isoformat()) == keys[day] for day in days]
        same = agrees.index(False) if False in agrees else len(days)
        goes_on = bool(same) and _may_carry(contract, version, days[same - 1])
        if (same, goes_on) > (kept, carries):
            prior, kept, carries = version, same, goes_on
    return Plan(days, keys, prior, days[:kept], carries, files, valid_days, test_days)


def first_instant(day: date) -> int:
    """µs since 1970 of a day's beginning."""
    return (day - EPOCH).days * DAY


@dataclass(frozen=True)
class Carry:
    """The newest events of one bucket's users, as an earlier version ended with them.

    Args:
        source: the file they were read from.
        active: columns of the events of users who have new rows.
        idle: columns of the others' events, which go on as they are.
    """

    source: Path
    active: dict[str, np.ndarray]
    idle: dict[str, np.ndarray]

    @classmethod
    def read(cls, plan: Plan, number: int, user_R: np.ndarray) -> Carry | None:
        """The carry of a bucket with these users (rows of the catalogue); None where the plan carries nothing."""
        if plan.prior is None or not plan.carries:
            return None
        source = plan.prior.path / CARRY / _file(number)
        events = read_arrow(source)
        most = max(int(events["user"].max(initial=0)), int(user_R.max(initial=0)))
        has_rows = np.zeros(most + 1, bool)
        has_rows[user_R] = True
        is_active = has_rows[events["user"]]
        return cls(
            source,
            {name: values[is_active] for name, values in events.items()},
            {name: values[~is_active] for name, values in events.items()},
        )

    def onto(self, bucket: Arrays) -> Arrays:
        """The active users' events in front of the bucket's rows. Raises DataError for an event that both hold."""
        self._refuse_twice(bucket)
        count, rows = len(self.active["user"]), len(bucket["user"])
        marks = {EVENT: True, ROW: False, LOGGED: True, CARRIED: True}
        joined: Arrays = {}
        for name in dict.fromkeys((*bucket, *self.active, CARRIED)):
            before = self.active.get("time" if name == INSTANT else name, np.full(count, marks.get(name, 0)))
            # A column computed from the order of events has nothing yet in the new rows.
            after = np.asarray(bucket[name]) if name in bucket else np.zeros(rows, before.dtype)
            joined[name] = np.concatenate([before.astype(after.dtype), after])
        return joined

    def _refuse_twice(self, bucket: Arrays) -> None:
        keys = ("user", "item", "time")
        is_event = np.asarray(bucket[EVENT])
        carried = pl.DataFrame({name: self.active[name] for name in keys}, schema=KEYS)
        logged = pl.DataFrame({name: np.asarray(bucket[name])[is_event] for name in keys}, schema=KEYS)
        twice = carried.join(logged, on=keys, how="semi")
        if twice.height:
            user, item, time = twice.row(0)
            raise DataError(
                f"{self.source}: {twice.height} events of it are read from the log again, e.g. catalogue user {user}, "
                f"item {item}, at {time} µs: histories would hold them twice. Remove that version and build again."
            )


def write_days(part: Part, number: int, plan: Plan, folder: Path) -> list[PartEntry]:
    """Write the part's new days, each with exactly the events that its histories need."""
    entries = []
    day_R = part.rows["time"] // DAY
    order = np.argsort(day_R, kind="stable")
    bounds = np.searchsorted(day_R[order], [(day - EPOCH).days for day in plan.new] + [np.iinfo(np.int64).max])
    for day, start, stop in zip(plan.new, bounds, bounds[1:], strict=False):
        chosen = {name: values[order[start:stop]] for name, values in part.rows.items()}
        name = f"{day}/{_file(number)}"
        rows, events = _with_own_events(chosen, part.events)
        write_arrow(folder / "rows" / name, rows)
        write_arrow(folder / "events" / name, events)
        entries.append(
            PartEntry(
                split=plan.split_of(day),
                rows=f"rows/{name}",
                events=f"events/{name}",
                window=window_of(rows),
                day=day.isoformat(),
            )
        )
    return entries


def write_carry(part: Part, carry: Carry | None, number: int, plan: Plan, history: History, folder: Path) -> None:
    """Write the events of each user that the next day's histories may begin with.

    These are the newest `max_len` of those that the next day's first row knows, and all that `history.delay` hides from
    it and not from a later row.
    """
    user = part.event_user
    is_hidden = part.events["time"] >= first_instant(plan.days[-1] + timedelta(days=1)) - (history.delay or 0)
    hidden_before = np.concatenate([[0], np.cumsum(is_hidden)])
    # Events stand by user and time: counted from the end of each user's, hidden ones left out.
    place, end = np.arange(len(user)), np.searchsorted(user, user, side="right")
    from_end = end - place - (hidden_before[end] - hidden_before[place])
    newest = is_hidden | (from_end <= history.max_len)
    columns = {name if name in ("item", "time") else HISTORY + name: values for name, values in part.events.items()}
    kept = {name: values[newest] for name, values in ({"user": user} | columns).items()}
    if carry is not None:
        kept = {name: np.concatenate([carry.idle[name].astype(values.dtype), values]) for name, values in kept.items()}
    write_arrow(folder / CARRY / _file(number), kept)


def take_kept(plan: Plan, staging: Path) -> tuple[list[PartEntry], dict[str, FileEntry]]:
    """Link the kept days' files into the new version, without a new day the carried events too.

    Returns:
        Their parts, and the hashes of all linked files, which need no new look.
    """
    parts: list[PartEntry] = []
    names: list[str] = []
    known: dict[str, FileEntry] = {}
    if plan.prior is None:
        return parts, known
    kept = {day.isoformat() for day in plan.kept}
    for part in plan.prior.manifest.parts:
        if part.day not in kept:
            continue
        parts.append(part.model_copy(update={"split": plan.split_of(date.fromisoformat(str(part.day)))}))
        names += [part.rows, part.events]
    if plan.carries and not plan.new:
        names += [name for name in plan.prior.manifest.files if name.startswith(f"{CARRY}/")]
    for name in names:
        _link(plan.prior.path / name, staging / name)
        known[name] = plan.prior.manifest.files[name]
    return parts, known


def _log_files(contract: Contract, versions: list[FeatureSet]) -> tuple[LogFile, ...]:
    """The files of the log that have rows, in its order; one that an earlier version read is not read again."""
    known: dict[str, tuple[date, date]] = {}
    for version in versions:
        known |= version.manifest.log_files
    found = []
    for path in find_files(contract.resolve(contract.interactions.path)):
        sha256 = content_hash(path)
        if sha256 not in known and (days := _days_of(contract, path)) is not None:
            known[sha256] = days
        if sha256 in known:
            found.append(LogFile(sha256, *known[sha256]))
    if not found:
        raise DataError(f"{contract.resolve(contract.interactions.path)}: the log is empty. Check what wrote it.")
    return tuple(found)


def _days_of(contract: Contract, path: str) -> tuple[date, date] | None:
    """First and last day of a file of the log; None without rows."""
    # The path is resolved already: a relative root must not be put in front of it again.
    log = contract.interactions.model_copy(update={"path": path})
    one_file = contract.model_copy(update={"root": ".", "interactions": log})
    times = open_log(one_file).frame.select(pl.col(TIME).min().alias("first"), pl.col(TIME).max().alias("last"))
    first, last = times.collect(engine="streaming").row(0)
    return None if first is None else (_day(first), _day(last))


def _beside_the_log(contract: Contract, as_of: date) -> str:
    """What the rows of every day depend on beside the log: the contract, history tables, ids that keep a row in."""
    digest = hashlib.sha256(f"{FORMAT} {contract.fingerprint()}".encode())
    for table in contract.history.tables:
        for path in find_files(contract.resolve(table.path)):
            digest.update(content_hash(path).encode())
    policies = contract.checks.unknown_item, contract.checks.unknown_user
    if "quarantine" in policies:
        known = Tables.read(contract, as_of.isoformat()).ids(contract)
        for ids, policy in zip(known, policies, strict=True):
            if ids is not None and policy == "quarantine":
                digest.update(repr(ids.sort().to_list()).encode())
    return digest.hexdigest()


def _key(contract: Contract, files: tuple[LogFile, ...], day: date, beside: str) -> str:
    """What the rows of a day depend on: every file of the log with a row up to that day, and what lies `beside` it.

    Histories with a greatest age depend on no file that is older; counters and negatives do, and so do events of which
    the one before them decides something: what is kept (`repeats`) or the pause between the two.
    """
    oldest = date.min
    history = contract.history
    looks_back = history.repeats != "keep" or any(isinstance(column, Gap) for column in history.columns.values())
    if history.within and not (looks_back or contract.counters or contract.interactions.negatives):
        oldest = day - timedelta(days=-(-history.within // DAY))
    digest = hashlib.sha256(beside.encode())
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


def carries_on(contract: Contract) -> bool:
    """Whether the newest events of each user are all that later days need of the past.

    Not so with counters, negatives and `repeats: first`, which look back without end; nor with history tables, where an
    event may become known later, with its user's first row in the log.
    """
    log, history = contract.interactions, contract.history
    looks_further = contract.counters or log.negatives or history.tables or history.repeats == "first"
    return not looks_further and history.given is None


def _may_carry(contract: Contract, prior: FeatureSet, last_kept: date) -> bool:
    """Whether a version holds the events that the day after `last_kept` begins with."""
    ends_there = max(prior.manifest.days) == last_kept.isoformat()
    return carries_on(contract) and ends_there and (prior.path / CARRY).is_dir()


def _with_own_events(
    rows: dict[str, np.ndarray], events: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The rows, pointing into the events of their histories alone; each history stays in one piece."""
    end_R, length_R = rows["history_end"], rows["history_len"]
    size = len(events["item"]) + 1
    # Histories that cover each event: those that have begun less those that have ended.
    covered = np.cumsum(np.bincount(end_R - length_R, minlength=size) - np.bincount(end_R, minlength=size))
    is_needed = covered[:-1] > 0
    needed_before = np.concatenate([[0], np.cumsum(is_needed)])
    own = {name: values[is_needed] for name, values in events.items()}
    return rows | {"history_end": needed_before[end_R]}, own


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _day(microseconds: int) -> date:
    return EPOCH + timedelta(days=microseconds // DAY)


def _file(number: int) -> str:
    return f"part-{number:05d}.arrow"
