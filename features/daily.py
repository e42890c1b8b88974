"""Windowed builds: one part a day and bucket, and days whose input is unchanged taken from the version before."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from features.buckets import Arrays
from features.contract import Contract
from features.errors import ConfigError, DataError
from features.feature_set import FORMAT, FeatureSet, FileEntry, PartEntry, SplitName, read_arrow, write_arrow
from features.files import content_hash, find_files
from features.log import DAY, EVENT, HISTORY, TIME, open_log
from features.parts import CARRIED, Part, window_of
from features.stream import ROW, SAMPLED

EPOCH = date(1970, 1, 1)
CARRY = "carry"  # folder of the newest events of every user, which the next day's histories begin with


@dataclass(frozen=True)
class Plan:
    """Which days a windowed build holds, and which of them an earlier version has already.

    Args:
        days: of the window, oldest first; whole UTC days.
        keys: for each day, a hash of all that its rows and histories depend on.
        prior: the version to take from, None to start afresh.
        kept: days taken from it: the first ones of the window.
        carries: whether the new days' histories may begin with the events that `prior` ended with.
        files: first and last day of each file of the log, by the sha256 of its content.
        valid_days, test_days: whole days at the window's end.
    """

    days: tuple[date, ...]
    keys: dict[date, str]
    prior: FeatureSet | None
    kept: tuple[date, ...]
    carries: bool
    files: dict[str, tuple[date, date]]
    valid_days: int
    test_days: int

    @property
    def newly_trained_from(self) -> date:
        """The first day that trains now and did not in `prior`; the window's first without one."""
        if self.prior is None:
            return self.days[0]
        trained = [date.fromisoformat(str(part.day)) for part in self.prior.manifest.parts if part.split == "train"]
        return max(max(trained) + timedelta(days=1), self.days[0])

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
    """Compare what each day depends on with what the current version was built from.

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
    prior = _current(folder, contract)
    files = _log_files(contract, prior)
    last = date.fromisoformat(as_of) if as_of else max(latest for _, latest in files.values())
    if min(earliest for earliest, _ in files.values()) > last:
        raise DataError(f"{contract.resolve(contract.interactions.path)}: no row on or before {last}. Correct --as-of.")
    days = tuple(last - timedelta(days=back) for back in reversed(range(window)))
    keys = {day: _key(contract, files, day) for day in days}
    kept: list[date] = []
    if prior is not None:
        for day in days:
            if prior.manifest.days.get(day.isoformat()) != keys[day]:
                break
            kept.append(day)
    if not kept:
        prior = None
    return Plan(days, keys, prior, tuple(kept), _may_carry(contract, prior, kept), files, valid_days, test_days)


def first_instant(day: date) -> int:
    """µs since 1970 of a day's beginning."""
    return (day - EPOCH).days * DAY


@dataclass(frozen=True)
class Carry:
    """The newest events of one bucket's users, as an earlier version ended with them.

    Args:
        active: columns of the events of users who have new rows.
        idle: columns of the others' events, which go on as they are.
    """

    active: dict[str, np.ndarray]
    idle: dict[str, np.ndarray]

    @classmethod
    def read(cls, plan: Plan, number: int, user_R: np.ndarray) -> Carry | None:
        """The carry of a bucket with these users (rows of the catalogue); None where the plan carries nothing."""
        if plan.prior is None or not plan.carries:
            return None
        events = read_arrow(plan.prior.path / CARRY / _file(number))
        most = max(int(events["user"].max(initial=0)), int(user_R.max(initial=0)))
        has_rows = np.zeros(most + 1, bool)
        has_rows[user_R] = True
        is_active = has_rows[events["user"]]
        return cls(
            {name: values[is_active] for name, values in events.items()},
            {name: values[~is_active] for name, values in events.items()},
        )

    def onto(self, bucket: Arrays) -> Arrays:
        """The active users' events in front of the bucket's rows."""
        count, rows = len(self.active["user"]), len(bucket["user"])
        marks = {EVENT: True, ROW: False, SAMPLED: False, CARRIED: True}
        joined: Arrays = {}
        for name in {*bucket, *self.active, CARRIED}:
            before = self.active.get(name, np.full(count, marks.get(name, 0)))
            # A column computed from the order of events has nothing yet in the new rows.
            after = np.asarray(bucket[name]) if name in bucket else np.zeros(rows, before.dtype)
            joined[name] = np.concatenate([before.astype(after.dtype), after])
        return joined


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


def write_carry(part: Part, carry: Carry | None, number: int, max_len: int, folder: Path) -> None:
    """Write the newest `max_len` events of each user for the next day to begin with."""
    user = part.event_user
    # Events stand by user and time: counted from the end of each user's.
    from_end = np.searchsorted(user, user, side="right") - np.arange(len(user))
    newest = from_end <= max_len
    columns = {name if name in ("item", "time") else HISTORY + name: values for name, values in part.events.items()}
    kept = {name: values[newest] for name, values in ({"user": user} | columns).items()}
    if carry is not None:
        kept = {name: np.concatenate([carry.idle[name].astype(values.dtype), values]) for name, values in kept.items()}
    write_arrow(folder / CARRY / _file(number), kept)


def take_kept(plan: Plan, staging: Path) -> tuple[list[PartEntry], dict[str, FileEntry]]:
    """Link the kept days' files into the new version; returns their parts, and their hashes, which need no new look."""
    parts: list[PartEntry] = []
    known: dict[str, FileEntry] = {}
    if plan.prior is None:
        return parts, known
    kept = {day.isoformat() for day in plan.kept}
    for part in plan.prior.manifest.parts:
        if part.day not in kept:
            continue
        for name in (part.rows, part.events):
            _link(plan.prior.path / name, staging / name)
            known[name] = plan.prior.manifest.files[name]
        parts.append(part.model_copy(update={"split": plan.split_of(date.fromisoformat(str(part.day)))}))
    return parts, known


def _log_files(contract: Contract, prior: FeatureSet | None) -> dict[str, tuple[date, date]]:
    """First and last day of each file of the log that has rows, by the sha256 of its content."""
    known = prior.manifest.log_files if prior else {}
    found: dict[str, tuple[date, date]] = {}
    for path in find_files(contract.resolve(contract.interactions.path)):
        sha256 = content_hash(path)
        if sha256 in known:
            found[sha256] = known[sha256]
            continue
        log = contract.interactions.model_copy(update={"path": str(path)})
        times = open_log(contract.model_copy(update={"interactions": log})).frame.select(
            pl.col(TIME).min().alias("first"), pl.col(TIME).max().alias("last")
        )
        first, last = times.collect(engine="streaming").row(0)
        if first is not None:
            found[sha256] = (_day(first), _day(last))
    if not found:
        raise DataError(f"{contract.resolve(contract.interactions.path)}: the log is empty. Check what wrote it.")
    return found


def _key(contract: Contract, files: dict[str, tuple[date, date]], day: date) -> str:
    """What the rows of a day depend on: the contract, and every file with a row up to that day.

    Histories with a greatest age depend on no file that is older; counters do, and so do negatives.
    """
    oldest = date.min
    history = contract.history
    if history.within and history.repeats != "first" and not contract.counters and not contract.interactions.negatives:
        oldest = day - timedelta(days=-(-history.within // DAY))
    digest = hashlib.sha256(f"{FORMAT} {contract.fingerprint()}".encode())
    for sha256 in sorted(sha256 for sha256, (first, last) in files.items() if first <= day and last >= oldest):
        digest.update(sha256.encode())
    for table in history.tables:
        for path in find_files(contract.resolve(table.path)):
            digest.update(content_hash(path).encode())
    return digest.hexdigest()


def _current(folder: Path, contract: Contract) -> FeatureSet | None:
    try:
        current = FeatureSet.open(folder)
    except DataError:
        return None
    manifest = current.manifest
    usable = manifest.format == FORMAT and manifest.fingerprint == contract.fingerprint() and manifest.days
    return current if usable else None


def _may_carry(contract: Contract, prior: FeatureSet | None, kept: list[date]) -> bool:
    """Whether the events that the prior version ended with are all that new days need of the past."""
    if prior is None or max(prior.manifest.days) != kept[-1].isoformat():
        return False
    needs_more = contract.counters or contract.interactions.negatives or contract.history.repeats == "first"
    return not needs_more and contract.history.given is None


def _with_own_events(
    rows: dict[str, np.ndarray], events: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The rows, pointing into the events of their histories alone; each history stays in one piece."""
    end_R, length_R = rows["history_end"], rows["history_len"]
    # Rows stand by user and time, so do their histories: what one needs beyond those before it begins at `fresh`.
    reached_R = np.maximum.accumulate(np.concatenate([[0], end_R]))[:-1] if len(end_R) else end_R
    fresh_R = np.maximum(end_R - length_R, reached_R)
    count_R = np.maximum(end_R - fresh_R, 0)
    total = int(count_R.sum())
    kept_before_R = np.cumsum(count_R)
    place_E = np.arange(total) - np.repeat(kept_before_R - count_R, count_R) + np.repeat(fresh_R, count_R)
    own = {name: values[place_E] for name, values in events.items()}
    return rows | {"history_end": kept_before_R.astype(np.int64)}, own


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
