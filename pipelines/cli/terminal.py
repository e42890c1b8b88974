"""The output of all commands: text for people, one JSON line for programs."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from features.progress import silence
from pipelines.json_text import json_text
from pipelines.operate.log import LastingConsole, LoggedConsole

LogOption = Annotated[
    Path | None,
    typer.Option("--log", help="File to add each message to, a JSON object a line; the run's folder has its own."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON summary as the last line of stdout.")]


def console(as_json: bool) -> Console:
    """The console for messages: stdout, or stderr if stdout carries JSON."""
    return LastingConsole(**_options(as_json))


def logged_console(as_json: bool, log: Path | None) -> LoggedConsole:
    """The same for a job, whose messages also go to its run's folder and to a file, as JSON lines."""
    return LoggedConsole(log, **_options(as_json))


def _options(as_json: bool) -> dict[str, Any]:
    stream = sys.stderr if as_json else sys.stdout
    # A log file has no width, and tables need one.
    return {
        "file": stream,
        "highlight": False,
        "soft_wrap": True,
        "width": None if stream.isatty() else 120,
    }


def finish(payload: dict[str, Any], as_json: bool) -> None:
    """End a command: with --json, print its summary as the last line of stdout."""
    if as_json:
        try:
            print(json_text(payload), flush=True)
        except BrokenPipeError:
            silence(sys.stdout)


def command_line() -> str:
    """The command that runs, as a record of what made a result."""
    return shlex.join(["quadrank", *sys.argv[1:]])
