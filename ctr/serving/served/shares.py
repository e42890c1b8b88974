"""How much of each column is equal, with examples of what is not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

FLOATS = 1e-6  # by which two computations of a number may differ
EXAMPLES = 3  # of what differs, a column


@dataclass
class Share:
    """Of one column: how many values were compared, how many were equal, and some that were not."""

    compared: int = 0
    equal: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)

    @property
    def share(self) -> float | None:
        """Equal of compared; None where nothing was compared."""
        return self.equal / self.compared if self.compared else None


class Shares:
    """Shares by column, in the order in which columns were first compared."""

    def __init__(self) -> None:
        self.of: dict[str, Share] = {}

    def add(self, column: str, request: str, served: np.ndarray, offline: np.ndarray) -> None:
        """Compare a column of one answer.

        Of unequal lengths the newest entries stand side by side, and what one side lacks is unequal. Text and whole
        numbers are equal exactly, numbers within `FLOATS`; two missing numbers are equal.

        Args:
            column: its name.
            request: of the answer.
            served, offline: one value an entry, oldest first.
        """
        common = min(len(served), len(offline))
        first, second = served[len(served) - common :], offline[len(offline) - common :]
        if first.dtype.kind == "f" and second.dtype.kind == "f":
            equal = (np.abs(first - second) <= FLOATS) | (np.isnan(first) & np.isnan(second))
        else:
            equal = first == second
        self.add_equal(column, request, equal, served, offline)

    def add_equal(self, column: str, request: str, equal: np.ndarray, served: np.ndarray, offline: np.ndarray) -> None:
        """As `add`, where it is known which of the newest entries are equal, bool."""
        found, most = self.of.setdefault(column, Share()), max(len(served), len(offline))
        found.compared += most
        found.equal += int(equal.sum())
        room = EXAMPLES - len(found.examples)
        ahead = most - len(equal)
        different = [*range(ahead), *(ahead + np.flatnonzero(~equal)).tolist()]
        for place in different[:room] if room > 0 else []:
            pair = {name: _at(values, place - most) for name, values in (("served", served), ("offline", offline))}
            found.examples.append({"request": request, "place": place, **pair})


def _at(values: np.ndarray, from_end: int) -> Any:
    """The value so many places before the end; None before the beginning, and for a missing number."""
    if -from_end > len(values):
        return None
    value = values.tolist()[from_end]
    return None if value != value else value
