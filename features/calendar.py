"""Days and instants: times are whole microseconds since 1970 began, days are of UTC."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from features.errors import ConfigError

SECOND, HOUR, DAY = 1_000_000, 3_600_000_000, 86_400_000_000  # µs
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The years 1 and 9999, which calendars stop at, in µs since 1970.
FIRST_TIME, LAST_TIME = -62_135_596_800_000_000, 253_402_300_800_000_000


def first_instant(day: date) -> int:
    """µs since 1970 at which a day begins."""
    return (day - EPOCH.date()).days * DAY


def microseconds_of(moment: datetime) -> int:
    """µs since 1970 of a time with its zone, rounded down."""
    return (moment - EPOCH) // timedelta(microseconds=1)


def day_of(time: int) -> date:
    """The day of a time, µs since 1970. Raises OverflowError beyond the years 1 to 9999."""
    return EPOCH.date() + timedelta(days=time // DAY)


def text_of(time: int) -> str:
    """A time, µs since 1970, as people write it (UTC)."""
    if not FIRST_TIME <= time < LAST_TIME:
        return "a time beyond the years 1 to 9999"
    return f"{EPOCH + timedelta(microseconds=time):%Y-%m-%d %H:%M:%S}"


def require_date(as_of: str | None) -> None:
    """Raise ConfigError for a value of `--as-of` that is no date."""
    try:
        date.fromisoformat(as_of or "1970-01-01")
    except ValueError:
        raise ConfigError(f"--as-of {as_of}: not a date. Write it as 2026-01-31.") from None
