"""How a command ends: its message, its exit code, and one JSON object under `--json`, whatever ended it."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from features.errors import ConfigError
from features.progress import say
from features.stopping import TRY_AGAIN, Stopped, listening
from pipelines.cli.terminal import finish
from pipelines.extras import missing_extra
from pipelines.operate.codes import INTERRUPTED, UNEXPLAINED, explained, say_code
from pipelines.operate.log import LastingConsole
from pipelines.operate.outcome import ended_at_once

# Commands that go on where a signal stopped them, and how.
RESUMED_BY = {
    "train": "The same command with `--resume latest` goes on from the last checkpoint",
    "run": "The same command goes on where it stood",
    "tune": "The same command goes on: trials that ended are kept",
    "compare": "The same command goes on: trainings that ended are kept",
    "ablate": "The same command goes on: trainings that ended are kept",
}


def ended(command: Callable[[], Any], arguments: list[str]) -> int:
    """Run a command to its end; returns its exit code, which stderr names too unless it is 0.

    Args:
        command: the call.
        arguments: its words, the command's name first.
    """
    name = arguments[0] if arguments else ""
    as_json = "--json" in arguments
    code = _guarded(lambda: _listening(command, name, as_json), name, as_json, _work_of(arguments))
    say_code(code)
    return code


def _listening(command: Callable[[], Any], name: str, as_json: bool) -> Any:
    """Run the command; SIGTERM ends it within ten seconds, and `serve` as its server does."""
    if name == "serve":
        return command()
    with listening(lambda: _too_late(name, as_json)):
        return command()


def _too_late(name: str, as_json: bool) -> None:
    ended_at_once(_stopped(name), TRY_AGAIN)
    say_code(_failed(_stopped(name), TRY_AGAIN, as_json))


def _stopped(name: str) -> str:
    return f"stopped. {RESUMED_BY.get(name, '')}".strip()


def _work_of(arguments: list[str]) -> Path:
    """The workspace that a command line names: for the message of a disk that cannot be written to."""
    place = arguments.index("--work") + 1 if "--work" in arguments else len(arguments)
    return Path(arguments[place]) if place < len(arguments) else Path()


def _guarded(command: Callable[[], Any], name: str, as_json: bool, work: Path) -> int:
    try:
        code = command()
    except ModuleNotFoundError as error:
        message = missing_extra(error, name)
        if message is None:
            return _unexplained(error, as_json)
        return _failed(message, ConfigError.exit_code, as_json)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Stopped:
        return _failed(_stopped(name), TRY_AGAIN, as_json)
    except Exception as error:
        if (told := explained(error, work)) is not None:
            return _failed(str(told), told.exit_code, as_json)
        # Usage errors of typer print themselves, with the command's usage line, and have exit code 2.
        show, message = getattr(error, "show", None), getattr(error, "format_message", None)
        if show is None or message is None:
            return _unexplained(error, as_json)
        show()
        code = int(getattr(error, "exit_code", ConfigError.exit_code))
        finish(_failure(message(), code), as_json)
        return code
    if code == INTERRUPTED:
        return _failed(_stopped(name), INTERRUPTED, as_json)
    return code if isinstance(code, int) else 0


def _failed(message: str, code: int, as_json: bool) -> int:
    LastingConsole(stderr=True, highlight=False, soft_wrap=True).print(f"error: {message}", style="bold red")
    finish(_failure(message, code), as_json)
    return code


def _unexplained(error: Exception, as_json: bool) -> int:
    say("".join(traceback.format_exception(error)).rstrip())
    finish(_failure(f"{type(error).__name__}: {error}", UNEXPLAINED), as_json)
    return UNEXPLAINED


def _failure(message: str, code: int) -> dict[str, Any]:
    return {"status": "error", "exit_code": code, "error": message}
