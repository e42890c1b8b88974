"""The output of all commands: text for people, one JSON line for programs."""

from __future__ import annotations

import json
import shlex
import sys
from typing import Annotated, Any

import typer
from rich.console import Console

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON summary as the last line of stdout.")]


def console(as_json: bool) -> Console:
    """The console for messages: stdout, or stderr if stdout carries JSON."""
    stream = sys.stderr if as_json else sys.stdout
    # A log file has no width, and tables need one.
    return Console(file=stream, highlight=False, soft_wrap=True, width=None if stream.isatty() else 120)


def finish(payload: dict[str, Any], as_json: bool) -> None:
    """End a command: with --json, print its summary as the last line of stdout."""
    if as_json:
        print(json.dumps(payload), flush=True)


def command_line() -> str:
    """The command that runs, as a record of what made a result."""
    return shlex.join(["quadrank", *sys.argv[1:]])
