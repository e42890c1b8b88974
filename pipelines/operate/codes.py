"""The exit code and the message of an error."""

from __future__ import annotations

import sys
from pathlib import Path

from features.errors import QuadRankError, TryAgainError
from features.stopping import TRY_AGAIN, Stopped
from features.store.disk import disk_error, disk_trouble

UNEXPLAINED = 1  # a defect of QuadRank, with its traceback
INTERRUPTED = 130  # what a shell gives a command ended by Ctrl-C; typer returns it, too
DRIFTED = 3
SUCCESSES = (0, DRIFTED)


def explained(error: BaseException, folder: Path) -> QuadRankError | None:
    """The error with a message for its user; None for one that only its traceback explains.

    A full disk is the reason of any error that it causes, whoever raised it.

    Args:
        error: that ended a command.
        folder: what the command wrote to, for an error that names no file.
    """
    if isinstance(error, TryAgainError):
        return error
    if trouble := disk_trouble(error):
        reason, path = trouble
        return disk_error(reason, path or folder.absolute())
    return error if isinstance(error, QuadRankError) else None


def message_of(error: BaseException, folder: Path) -> str:
    """What ended a command, in words; `folder` as of `explained`."""
    if isinstance(error, (KeyboardInterrupt, Stopped)):
        return "stopped"
    found = explained(error, folder)
    return f"{type(error).__name__}: {error}" if found is None else str(found)


def exit_code_of(error: BaseException, folder: Path) -> int:
    """The exit code of a command that an error ends; `folder` as of `explained`."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, Stopped):
        return TRY_AGAIN
    found = explained(error, folder)
    return UNEXPLAINED if found is None else found.exit_code


def say_code(code: int) -> None:
    """The last line of stderr of a command that did not simply succeed; make, which hides the code, lets it through."""
    if code:
        print(f"quadrank: exit {code}", file=sys.stderr, flush=True)
