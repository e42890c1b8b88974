"""What each stage of a job takes: seconds, and the peak of memory until its end."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class StageUse:
    """What one stage took.

    Args:
        seconds: of wall time; those of all times that it ran in this process.
        peak_mib: largest resident memory of the process until the stage ended, MiB.
    """

    seconds: float
    peak_mib: float


class StageClock:
    """Measures stages by name, in their order."""

    def __init__(self) -> None:
        self.stages: dict[str, StageUse] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the block, whether it ends or raises."""
        began = time.monotonic()
        before = self.stages[name].seconds if name in self.stages else 0.0
        try:
            yield
        finally:
            self.stages[name] = StageUse(round(before + time.monotonic() - began, 3), peak_mib())

    def metrics(self) -> dict[str, float]:
        """As metrics of a tracked run: `stage.NAME.seconds`, `stage.NAME.peak_mib`."""
        return {f"stage.{name}.{key}": value for name, use in self.stages.items() for key, value in asdict(use).items()}

    def seconds(self) -> dict[str, float]:
        """Seconds by stage."""
        return {name: use.seconds for name, use in self.stages.items()}


def peak_mib() -> float:
    """Largest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 * 1024 if sys.platform == "darwin" else 1024), 1)
