"""One searched setting: its values, how one is drawn, and when it is searched at all."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import optuna
from pydantic import model_validator

from features.contract.settings import Settings

MIDDLE = 0.381966  # of a range: no even part of it
Plain = str | int | float | bool | None


class Range(Settings):
    """One searched setting: `choices`, or a range `low`..`high` (whole numbers stay whole).

    With `when`, the setting is searched only in trials whose other settings have the named values:
    `when: {model.tower: quadratic}`, or one of several, `when: {model.tower: [quadratic, cross]}`.
    """

    choices: list[Any] | None = None
    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    step: float | int | None = None
    when: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_form(self) -> Range:
        ranged = self.low is not None and self.high is not None
        if bool(self.choices) == ranged:
            raise ValueError("give either `choices`, or both `low` and `high`")
        if self.choices:
            written = [_written(one) for one in self.choices]
            if len(set(map(repr, written))) < len(written):
                raise ValueError(f"choices: a value is named twice in {self.choices}")
            if self.log or self.step is not None:
                raise ValueError("log and step belong to a range, not to `choices`")
            return self
        low, high = self.bounds
        if low >= high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")
        if self.log and low <= 0:
            raise ValueError(f"log needs low above 0, got {self.low}")
        if self.step is not None and (self.log or self.step <= 0):
            raise ValueError("step must be above 0, and goes without log")
        if self.step is not None and _exact(self.step) > _exact(high) - _exact(low):
            raise ValueError(f"step {self.step} is wider than the range {self.low}..{self.high}, which has one value")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """Both ends of a range. Only for a range."""
        assert self.low is not None and self.high is not None
        return self.low, self.high

    @property
    def whole(self) -> bool:
        """Whether its values are whole numbers: its ends are, and its step."""
        by_whole = self.step is None or float(self.step).is_integer()
        return isinstance(self.low, int) and isinstance(self.high, int) and by_whole

    def ends(self) -> list[Any]:
        """The values that stand for all when settings are checked: every choice, or the ends of the range and a middle.

        The middle is no whole number where the range is not of these: `1.0..3.0` is no range of numbers of layers.
        """
        if self.choices:
            return list(self.choices)
        low, high = self.bounds
        return [low, high] if self.whole else [low, high, low + (self.step or MIDDLE * (high - low))]

    def values(self) -> list[Any]:
        """Every value of a grid; nothing where the range has no steps."""
        if self.choices:
            return list(self.choices)
        step = self.step or (1 if self.whole else 0)
        if not step:
            return []
        low, high = map(_exact, self.bounds)
        kind, by = int if self.whole else float, _exact(step)
        return [kind(low + place * by) for place in range(int((high - low) // by) + 1)]

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        """Draw a value for this trial."""
        if self.choices:
            # A study's storage keeps plain values: a list is drawn by its text.
            by_text = {_written(one): one for one in self.choices}
            return by_text[trial.suggest_categorical(name, list(by_text))]
        low, high = self.bounds
        if self.whole:
            return trial.suggest_int(name, int(low), int(high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(name, low, high, step=self.step, log=self.log)

    def stored(self, value: Any) -> Plain:
        """A value in the form in which the study keeps it."""
        return _written(value) if self.choices else value

    def value_of(self, stored: Plain) -> Any:
        """The opposite of `stored`; a value that no choice has is itself."""
        return next((one for one in self.choices or [] if _written(one) == stored), stored)

    def holds(self, stored: Plain) -> bool:
        """Whether a value, in the form in which a study keeps it, is one of the range; between its steps counts."""
        if self.choices:
            return any(type(one) is type(stored) and one == stored for one in map(_written, self.choices))
        if not isinstance(stored, int | float) or isinstance(stored, bool):
            return False
        low, high = self.bounds
        return low <= stored <= high and (not self.whole or float(stored).is_integer())

    def reaching(self, value: Any) -> Range:
        """The range, widened where it does not reach `value`.

        Raises:
            ValueError: no range reaches it: text, or 0 on a logarithmic scale.
        """
        if self.choices:
            known = [_written(one) for one in self.choices]
            return self if _written(value) in known else self.model_copy(update={"choices": [*self.choices, value]})
        if not isinstance(value, int | float) or isinstance(value, bool) or (self.log and value <= 0):
            raise ValueError(f"it is {value!r}, which no {'logarithmic ' if self.log else ''}range reaches")
        if self.whole and not float(value).is_integer():
            raise ValueError(f"it is {value!r}, and the range is of whole numbers")
        low, high, wanted = map(_exact, (*self.bounds, value))
        if low <= wanted <= high:
            return self
        if self.step:
            # By whole steps, so that the other values of the grid stay.
            by = _exact(self.step)
            low -= max(0, math.ceil((low - wanted) / by)) * by
            high += max(0, math.ceil((wanted - high) / by)) * by
        return self._between(min(low, wanted), max(high, wanted))

    def ending_at(self, value: float | int) -> Range:
        """The range with an end at `value`, which lies beyond it, and from which its steps now count.

        For values that a whole step would go beyond to what cannot be used: 256 of `512..2048`, by 512, would reach 0.
        """
        low, high, wanted = map(_exact, (*self.bounds, value))
        by = None if self.step is None else _exact(self.step)
        if wanted < low:
            return self._between(wanted, high if by is None else wanted + (high - wanted) // by * by)
        return self._between(low if by is None else wanted - (wanted - low) // by * by, wanted)

    def _between(self, low: Decimal, high: Decimal) -> Range:
        kind = int if self.whole else float
        return self.model_copy(update={"low": kind(low), "high": kind(high)})

    def applies(self, settings: Mapping[str, Any]) -> bool:
        """Whether `when` holds for these settings by dotted name; a name that is missing holds nothing."""
        for name, wanted in self.when.items():
            allowed = wanted if isinstance(wanted, list) else [wanted]
            if name not in settings or settings[name] not in allowed:
                return False
        return True

    def described(self) -> str:
        """`0.0..0.4`, `8, 16, 32`, `0.0003..0.003 (log)`."""
        text = ", ".join(map(str, self.choices)) if self.choices else f"{self.low}..{self.high}"
        notes = ["log"] * self.log + [f"step {self.step}"] * (self.step is not None)
        notes += [f"when {name} is {wanted}" for name, wanted in self.when.items()]
        return f"{text} ({'; '.join(notes)})" if notes else text


def _exact(value: float | int) -> Decimal:
    """As it is written: three times 0.1 is 0.3, as Optuna counts steps, too."""
    return Decimal(str(value))


def _written(value: Any) -> Plain:
    return value if value is None or isinstance(value, str | int | float) else json.dumps(value)
