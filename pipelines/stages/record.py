"""What each stage of a job did last: a file, written whole at each change."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from features.contract.settings import Settings
from features.store.atomic import write_text
from pipelines.stages.basis import Basis

FORMAT: Literal[1] = 1


class StageRecord(Settings):
    """The last time that a stage ran.

    Args:
        key: of the basis below.
        inputs, settings, code: the basis (`Basis`).
        status: `running` is also what a killed process leaves.
        result: what was made, or, of a stage that is not done, what it had begun.
        error: why it failed.
        started, ended: UTC, ISO 8601.
        seconds: wall time of the last process in it.
    """

    key: str
    inputs: dict[str, str]
    settings: dict[str, Any]
    code: str
    status: Literal["running", "failed", "done"]
    result: dict[str, Any] = {}
    error: str | None = None
    started: str
    ended: str | None = None
    seconds: float = 0.0

    @property
    def basis(self) -> Basis:
        """What it depended on."""
        return Basis(self.inputs, self.settings, self.code)


class _Content(Settings):
    format: Literal[1]
    closed: bool
    stages: dict[str, StageRecord]


class JobRecord:
    """The file with the stages of one job.

    Args:
        path: of the file; what cannot be read there is as if no stage ever ran.

    Attributes:
        stages: by name, those that ever ran.
        closed: whether the MLflow run of the stages was ended after the last of them.
        unreadable: whether the file is there and cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stages: dict[str, StageRecord] = {}
        self.closed, self.unreadable = True, False
        try:
            content = _Content.model_validate_json(path.read_bytes())
            self.stages, self.closed = content.stages, content.closed
        except FileNotFoundError:
            pass
        except ValidationError:
            self.unreadable = True

    def begin(self, stage: str, basis: Basis, begun: dict[str, Any]) -> None:
        """A stage runs, with what an unfinished process had begun of the same basis."""
        self.stages[stage] = StageRecord(
            key=basis.key,
            inputs=dict(basis.inputs),
            settings=dict(basis.settings),
            code=basis.code,
            status="running",
            result=begun,
            started=_now(),
        )
        self._write()

    def note(self, stage: str, begun: dict[str, Any]) -> None:
        """What a running stage has begun, for the process that may have to go on with it."""
        self._change(stage, result=begun)

    def end(self, stage: str, result: dict[str, Any], started: float) -> None:
        """A stage is done; `started` is of `time.monotonic()`."""
        self._change(stage, status="done", result=result, ended=_now(), seconds=_since(started))

    def fail(self, stage: str, error: str, started: float) -> None:
        """A stage ended with an error; what it had begun stays."""
        self._change(stage, status="failed", error=error, ended=_now(), seconds=_since(started))

    def opened(self) -> None:
        """The next stage writes into the MLflow run."""
        self.closed = False

    def close(self) -> None:
        """The MLflow run was ended: nothing of the job is left to do."""
        if not self.closed:
            self.closed = True
            self._write()

    def _change(self, stage: str, **changes: Any) -> None:
        self.stages[stage] = self.stages[stage].model_copy(update=changes)
        self._write()

    def _write(self) -> None:
        content = _Content(format=FORMAT, closed=self.closed, stages=self.stages)
        write_text(self.path, content.model_dump_json(indent=1))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _since(started: float) -> float:
    return round(time.monotonic() - started, 2)
