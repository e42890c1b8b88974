"""The troubles of a month, and the exit codes that docs/operations.md promises for each."""

from __future__ import annotations

from collections.abc import Mapping

from features.errors import ConfigError

SERVED = (0, 3)  # promoted, or promoted with drift
JUDGED = (0, 3, 6)  # or the gate kept the champion
UNCHANGED = (0, 6)  # nothing new; where the gate refused the night before, that stands

# Of the night with the trouble: its codes, and those of the night after it where these are not the usual ones.
PROMISES: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "missing": (UNCHANGED, (4,)),  # no row of the day; then none of the day that validates
    "late": (UNCHANGED, JUDGED),
    "flipped": ((4,), JUDGED),
    "half": ((4,), JUDGED),
    "bot": (JUDGED, JUDGED),  # what is beyond the limit is put aside
    "encoder": ((6,), JUDGED),  # under the old name of its version
    "mlflow": ((75,), JUDGED),
    "disk": ((75,), JUDGED),
    "kill": (JUDGED, JUDGED),  # the next try goes on
}
MONTH = "4:bot,7:missing,11:late,14:mlflow,16:kill,18:half,20:encoder,23:disk,25:flipped"


def parse_calendar(text: str, days: int) -> dict[int, str]:
    """Troubles by number of the day, from 1, of `4:bot,7:missing`.

    Raises:
        ConfigError: no such trouble, no such day, or a first day that is bad: there is nothing to keep then.
    """
    found: dict[int, str] = {}
    for part in filter(None, text.split(",")):
        number, _, trouble = part.strip().partition(":")
        if trouble not in PROMISES or not number.isdecimal() or not 2 <= int(number) <= days:
            raise ConfigError(
                f"--calendar {part!r}: write DAY:TROUBLE with a day from 2 to {days} and one of {', '.join(PROMISES)}."
            )
        found[int(number)] = trouble
    return found


def promised(number: int, calendar: Mapping[int, str]) -> tuple[int, ...]:
    """Exit codes that a night may end with."""
    if number in calendar:
        return PROMISES[calendar[number]][0]
    return PROMISES[calendar[number - 1]][1] if number - 1 in calendar else JUDGED
