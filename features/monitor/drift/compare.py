"""Distribution drift between two feature sets: what changed, by how much, and whether chance explains it.

A change is drift when it is both large and no accident. Large: by a threshold of `DriftSettings`. No accident: of a
probability below `false_alarms` divided by the number of tests (Bonferroni), by noise that `drift_noise` measures
between groups of users and between days. Size alone alarms on small samples, chance alone on any large one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
from pydantic import Field, PositiveFloat

from features.contract.settings import Settings
from features.errors import ConfigError
from features.monitor.drift.bins import Common
from features.monitor.drift.measures import Measured, measure_column, measure_items
from features.monitor.drift.noise import Counts
from features.monitor.profile.file import Profile
from features.store.feature_set import SPLITS, SplitName


class DriftSettings(Settings):
    """What counts as drift: how large a change must be, and how seldom chance may be taken for one."""

    psi: PositiveFloat = Field(0.1, description="population stability index, less what chance gives")
    js: PositiveFloat = Field(0.15, description="Jensen-Shannon distance, less what chance gives; PSI 0.12 if small")
    missing: PositiveFloat = Field(0.02, description="change of the share of missing or unknown values, absolute")
    coverage: PositiveFloat = Field(0.02, description="change of the share with a vector, absolute")
    label_rate: PositiveFloat = Field(0.1, description="change of the positive rate, relative to the base")
    false_alarms: float = Field(
        0.001,
        gt=0,
        lt=1,
        description="chance that a comparison without drift alarms at all; daily: once in three years",
    )


@dataclass(frozen=True)
class RowSelection:
    """Which rows of a feature set are compared: of one split or of all, of the newest UTC days or of all."""

    split: SplitName | None = None
    newest_days: int | None = None


@dataclass(frozen=True)
class Change:
    """One thing that was compared.

    Args:
        measure: `psi`, `js`, `missing`, `coverage` or `label_rate`.
        base, new: shares on both sides; of psi and js None.
        size: of the change, as the threshold of that name has it.
        threshold: of `DriftSettings`.
        chance: probability of so much without drift.
        alarm: large and no accident.
    """

    measure: str
    base: float | None
    new: float | None
    size: float
    threshold: float
    chance: float
    alarm: bool


@dataclass(frozen=True)
class ColumnDrift:
    """All changes of one column.

    Args:
        column: `section.name`.
        verdict: `drift`, `stable`, `too few rows`, `only in base`, `only in new` or `declared otherwise`.
        changes: what was measured.
        common: both sides' counts in common bins, where a distribution was compared.
    """

    column: str
    verdict: str
    changes: tuple[Change, ...] = ()
    common: Common | None = None

    @property
    def alarm(self) -> bool:
        """Whether it is drift: a column that only one side has, or has otherwise, always is."""
        return self.verdict not in ("stable", "too few rows")

    @property
    def severity(self) -> float:
        """The largest change in units of its threshold; of alarms, where there are any."""
        alarms = [change for change in self.changes if change.alarm] or list(self.changes)
        return max((change.size / change.threshold for change in alarms), default=float("inf"))

    def change(self, measure: str) -> Change | None:
        """The change of one measure."""
        return next((change for change in self.changes if change.measure == measure), None)


@dataclass(frozen=True)
class Drift:
    """The comparison.

    Args:
        base_rows, new_rows: that were compared.
        base_days, new_days: first and last UTC day of these rows. A profile counts more than 64 days in runs of equal
            length, of which all days are compared or none: they may be more than were selected.
        columns: from the worst to the most stable.
    """

    base_rows: int
    new_rows: int
    base_days: tuple[str, str]
    new_days: tuple[str, str]
    columns: tuple[ColumnDrift, ...]

    @property
    def found(self) -> bool:
        """Whether any column drifted."""
        return any(column.alarm for column in self.columns)


def compare(
    base: Profile,
    new: Profile,
    settings: DriftSettings = DriftSettings(),  # noqa: B008 (frozen)
    base_selection: RowSelection = RowSelection(),
    new_selection: RowSelection = RowSelection(),
) -> Drift:
    """Compare two feature sets by their profiles alone.

    Raises:
        ConfigError: a side has no rows in its selection.
    """
    before, after = _Side(base, base_selection, "base"), _Side(new, new_selection, "new")
    columns = [
        ColumnDrift(name, "only in base" if name in base.bins else "only in new")
        for name in sorted(base.bins.keys() ^ new.bins.keys())
    ]
    measured: list[Measured] = []
    for name in sorted(base.bins.keys() & new.bins.keys()):
        found = measure_column(name, base.bins[name], new.bins[name], before.counts(name), after.counts(name))
        if found is None:
            columns.append(ColumnDrift(name, "declared otherwise"))
        else:
            measured.append(found)
    for name in sorted(base.vector_coverage.keys() & new.vector_coverage.keys()):
        shares = [(profile.vector_coverage[name], profile.items) for profile in (base, new)]
        measured.append(measure_items(f"vectors.{name} (items)", *shares))
    level = settings.false_alarms / max(sum(len(column.tests) for column in measured), 1)
    columns += [_judged(column, settings, level) for column in measured]
    columns.sort(key=lambda column: (not column.alarm, -column.severity, column.column))
    return Drift(before.rows, after.rows, before.days, after.days, tuple(columns))


def _judged(measured: Measured, settings: DriftSettings, level: float) -> ColumnDrift:
    """Hold what was measured against the thresholds, and its chance against `level`."""
    changes = []
    for test in measured.tests:
        for measure, size in test.sizes.items():
            threshold = getattr(settings, measure)
            alarm = size >= threshold and test.chance < level
            changes.append(Change(measure, test.base, test.new, size, threshold, test.chance, alarm))
    if any(change.alarm for change in changes):
        verdict = "drift"
    elif any(test.expected > settings.psi for test in measured.tests):
        verdict = "too few rows"
    else:
        verdict = "stable"
    return ColumnDrift(measured.column, verdict, tuple(changes), measured.common)


class _Side:
    """One profile, cut to the rows that are compared."""

    def __init__(self, profile: Profile, selection: RowSelection, which: str) -> None:
        names = [name for name in SPLITS if name in profile.splits and selection.split in (None, name)]
        days: dict[str, int] = {}
        for name in names:
            for day, entry in profile.splits[name].days.items():
                days[day] = days.get(day, 0) + entry.rows
        if not days:
            raise ConfigError(
                f"--split {selection.split}: the {which} feature set has no rows there, only in "
                f"{', '.join(profile.splits)}."
            )
        self._profile, self._names = profile, names
        last = date.fromisoformat(max(days))
        oldest = "" if selection.newest_days is None else (last - timedelta(days=selection.newest_days - 1)).isoformat()
        # A day without rows may lie between a period and the next.
        known = sorted({day for split in profile.splits.values() for day in split.days})
        after = [bisect_left(known, start) for start in (*profile.periods[1:], "9999-12-31")]
        self._chosen = np.array([known[place - 1] >= oldest for place in after])
        start = profile.periods[int(np.argmax(self._chosen))]
        compared = {day: rows for day, rows in days.items() if day >= start}
        self.rows = sum(compared.values())
        self.days = (min(compared), max(compared))

    def counts(self, column: str) -> Counts:
        size = self._profile.bins[column].size
        tallies = [self._profile.tallies[name][column] for name in self._names]
        periods = sum(_dense(tally.periods, size) for tally in tallies)
        groups = sum(_dense(tally.groups, size) for tally in tallies)
        return Counts(np.asarray(periods)[self._chosen], np.asarray(groups))


def _dense(counts: Sequence[Sequence[int]], size: int) -> np.ndarray:
    return np.array([row or (0,) * size for row in counts], np.float64)
