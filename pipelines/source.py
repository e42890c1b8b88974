"""What a command takes its rows from: a data contract, and which days of its log."""

from __future__ import annotations

from dataclasses import dataclass

from features.contract.contract import Contract
from features.errors import ConfigError


@dataclass(frozen=True)
class Source:
    """What a command takes its rows from.

    Args:
        contract: what to read and how.
        as_of: last day that is read; default the day of the newest event.
        window: days whose rows are held; default all.
    """

    contract: Contract
    as_of: str | None = None
    window: int | None = None


def parse_window(text: str | None) -> int | None:
    """Days of `14d`. Raises ConfigError for anything else."""
    if text is None:
        return None
    days = text.removesuffix("d")
    if not text.endswith("d") or not days.isdecimal() or not int(days):
        raise ConfigError(f"--window {text}: not a number of days. Write it as 14d.")
    return int(days)
