"""The log of a job as JSON lines, beside what people read: one object a message, with time and run id."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from features.progress import silence

LOG = "log.jsonl"  # in a run's folder
WIDTH = 120  # of tables in messages


class LastingConsole(Console):
    """A console of plain text, which goes silent where nobody reads it any more: rich would end the process there.

    Brackets and colons are text: folders, columns and error messages have them. A part with a look of its own is a
    `rich.text.Text`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def on_broken_pipe(self) -> None:
        """As rich calls it when its pipe is closed."""
        self.quiet = True
        silence(self.file)


class LoggedConsole(LastingConsole):
    """A console that also writes each message to JSON lines; what comes before a run has a folder is kept until then.

    Args:
        log: file of further lines, from the first message on; None for the run's folder alone.
        options: of the console.
    """

    def __init__(self, log: Path | None, **options: Any) -> None:
        super().__init__(**options)
        self._log = log
        self._run: Path | None = None
        self._kept: list[str] = []

    def belongs_to(self, run_dir: Path) -> None:
        """From now on messages are of this run, and go to its folder too, with those printed so far."""
        self._run = run_dir
        kept, self._kept = self._kept, []
        _append(run_dir / LOG, "".join(kept))

    def print(self, *objects: Any, **options: Any) -> None:
        """As the console prints, and logged without its colours."""
        super().print(*objects, **options)
        plain = LastingConsole(file=io.StringIO(), width=WIDTH, soft_wrap=True, highlight=False)
        plain.print(*objects, **options)
        style = str(options.get("style") or "")
        level = "error" if "red" in style else "warning" if "yellow" in style else "info"
        self.write_log(plain.file.getvalue().rstrip("\n"), level)  # type: ignore[attr-defined]

    def write_log(self, message: str, level: str) -> None:
        """Log a message that people read elsewhere.

        Args:
            message: its text.
            level: `info`, `warning` or `error`.
        """
        record = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "run": self._run.name if self._run else None,
            "level": level,
            "message": message,
        }
        line = json.dumps(record, ensure_ascii=False) + "\n"
        if self._log is not None:
            _append(self._log, line)
        if self._run is None:
            self._kept.append(line)
        else:
            _append(self._run / LOG, line)


def _append(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
