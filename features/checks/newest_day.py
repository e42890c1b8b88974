"""The newest day of a log against the days before it: rows, label rate, days that are missing, and age."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from statistics import median

import numpy as np

from features.calendar import DAY, day_of, first_instant, microseconds_of, text_of
from features.contract.log import Checks
from features.errors import DataError

RECENT_DAYS = 7  # that the newest one is compared with
FEWEST_DAYS = 3  # of them with rows, before anything is compared
NOISE = 5.0  # standard deviations of a share: less is chance


@dataclass(frozen=True)
class DayFigures:
    """One UTC day of the log.

    Args:
        day: which.
        rows: how many it has.
        labelled: rows of it with a label.
        positives: rows whose label is 1.
    """

    day: date
    rows: int
    labelled: int
    positives: int


def figures_by_day(columns: Iterable[tuple[np.ndarray, np.ndarray]]) -> list[DayFigures]:
    """Figures of the days that have rows, oldest first.

    Args:
        columns: times (µs since 1970) and labels (NaN where unknown) of each part of the rows.
    """
    found: dict[int, np.ndarray] = {}
    for times_N, labels_N in columns:
        days, place_N = np.unique(times_N // DAY, return_inverse=True)
        counts = np.stack([np.ones(len(labels_N)), ~np.isnan(labels_N), np.nan_to_num(labels_N)])
        sums = np.stack([np.bincount(place_N, weights=values, minlength=len(days)) for values in counts], axis=1)
        for day, of_day in zip(days.tolist(), sums, strict=True):
            found[day] = found.get(day, 0) + of_day
    return [DayFigures(day_of(day * DAY), *map(int, found[day].tolist())) for day in sorted(found)]


def check_newest_day(path: str, days: Sequence[DayFigures], checks: Checks) -> tuple[str, ...]:
    """What is unusual of the newest day beside the seven before it, by `checks.newest_day`.

    Nothing is compared where fewer than three of these have rows. A day without rows refuses the day after it, while
    its file may still come; later it is told and refuses nothing, else one lost file would stop a job for a week. So is
    an unusual day further back, which models learn from as it is: refused when it was the newest, or never looked at.

    Args:
        path: of the log, for messages.
        days: that have rows, oldest first.
        checks: policy and limits.

    Returns:
        A sentence for what is unusual where the policy is `warn`, one for days without rows further back, and one for
        each of the seven days before that is unusual; none where the policy is `off`.

    Raises:
        DataError: something is unusual, and the policy is `error`.
    """
    recent = [] if checks.newest_day == "off" else _recent(days)
    if len(recent) < FEWEST_DAYS:
        return ()
    lost = _without_rows(recent, days[-1])
    told = (
        [f"{len(lost)} of the days before {days[-1].day} have no row, e.g. {lost[-1]}: no model learns them."]
        if lost
        else []
    )
    told += [
        f"{one.day} is unlike the {RECENT_DAYS} days before it: {'; '.join(reasons)}. Models learn it as it is: bring "
        "the right file, or see that the day is right."
        for place, one in enumerate(days)
        if one in recent and (reasons := _unlike_before(days[: place + 1], checks))
    ]
    reasons = [*_unusual(recent, days[-1], checks), *_just_lost(recent, days[-1])]
    if not reasons:
        return tuple(told)
    message = (
        f"the newest day {days[-1].day} is unlike the {RECENT_DAYS} before it: {'; '.join(reasons)}. Look at the "
        "export that wrote it. Where the day is right, build with --set data.checks.newest_day=warn, or widen "
        "checks.day_rows or checks.day_label_rate; --as-of with the day before it builds without it"
    )
    if checks.newest_day == "error":
        raise DataError(f"{path}: {message}.")
    return (f"{message}.", *told)


def _recent(days: Sequence[DayFigures]) -> list[DayFigures]:
    """Those that the newest day is compared with."""
    return [one for one in days[:-1] if days[-1].day - one.day <= timedelta(days=RECENT_DAYS)]


def _without_rows(recent: Sequence[DayFigures], newest: DayFigures) -> list[date]:
    """Days after the first recent one that have no row, but for the day before the newest."""
    known = {one.day for one in recent}
    between = (recent[0].day + timedelta(days=back) for back in range((newest.day - recent[0].day).days - 1))
    return [day for day in between if day not in known]


def _unlike_before(days: Sequence[DayFigures], checks: Checks) -> list[str]:
    """What is unusual of the last of some days beside those before it."""
    before = _recent(days)
    return list(_unusual(before, days[-1], checks)) if len(before) >= FEWEST_DAYS else []


def _just_lost(recent: Sequence[DayFigures], newest: DayFigures) -> Iterator[str]:
    before = newest.day - timedelta(days=1)
    if recent[-1].day != before:
        yield f"the day before it, {before}, has no row"


def _unusual(recent: Sequence[DayFigures], newest: DayFigures, checks: Checks) -> Iterator[str]:
    usual = median(one.rows for one in recent)
    least, most = checks.day_rows
    if not least * usual <= newest.rows <= most * usual:
        yield (
            f"{newest.rows:,} rows, {newest.rows / usual:.2f} of the median of {usual:,.0f} (checks.day_rows allows "
            f"{least:g} to {most:g})"
        )
    rates = [one.positives / one.labelled for one in recent if one.labelled]
    if not newest.labelled or not rates:
        return
    usual_rate, rate = median(rates), newest.positives / newest.labelled
    low, high = checks.day_label_rate
    noise = NOISE * (usual_rate * (1 - usual_rate) / newest.labelled) ** 0.5
    outside = not low * usual_rate <= rate <= high * usual_rate
    if outside and abs(rate - usual_rate) > noise:
        yield (
            f"a label rate of {rate:.2%}, the median is {usual_rate:.2%} (checks.day_label_rate allows {low:g} to "
            f"{high:g} of it)"
        )


def check_age(path: str, newest: int, checks: Checks, as_of: str | None, now: datetime | None = None) -> str | None:
    """What is wrong with a log whose newest row is older than `checks.max_age`, by `checks.stale`.

    Args:
        path: of the log, for messages.
        newest: time of its newest row, µs since 1970.
        checks: policy and limit.
        as_of: last day that is read: age is measured from its end, if that has passed.
        now: with its zone; default the present.

    Returns:
        A sentence where the policy is `warn`; None where the log is fresh, or `max_age` is not set.

    Raises:
        DataError: it is too old, and the policy is `error`.
    """
    if checks.max_age is None:
        return None
    until = microseconds_of(now or datetime.now(UTC))
    if as_of is not None:
        until = min(until, first_instant(date.fromisoformat(as_of)) + DAY)
    age = until - newest
    if age <= checks.max_age:
        return None
    message = (
        f"the newest row is of {text_of(newest)}, {age / DAY:.1f} days before {text_of(until)}; checks.max_age allows "
        f"{checks.max_age / DAY:.1f} days. The export is late: run it, or raise checks.max_age"
    )
    if checks.stale == "error":
        raise DataError(f"{path}: {message}.")
    return f"{message}."
