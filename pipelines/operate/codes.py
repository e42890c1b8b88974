"""The exit code and the message of an error."""

from __future__ import annotations

import errno
from pathlib import Path

from features.contract.settings import AbsentSettingsError
from features.errors import ConfigError, QuadRankError, TryAgainError
from features.progress import say
from features.stopping import TRY_AGAIN, Stopped
from features.store.disk import disk_error, disk_trouble
from pipelines.shipped import with_the_way_to_it

UNEXPLAINED = 1  # a defect of QuadRank, with its traceback
INTERRUPTED = 130  # what a shell gives a command ended by Ctrl-C; typer returns it, too
DRIFTED = 3
SUCCESSES = (0, DRIFTED)
FORBIDDEN = "may not be read or written by this user. Change its permissions, or name another path."
# What a path cannot be used for, by the number of the error that names it.
UNUSABLE = {
    errno.EACCES: FORBIDDEN,
    errno.EPERM: FORBIDDEN,
    errno.EISDIR: "is a folder, where a file is wanted. Name another path.",
    errno.ENAMETOOLONG: "is longer than a path may be here. Name another one.",
}


def explained(error: BaseException, folder: Path) -> QuadRankError | None:
    """The error with a message for its user; None for one that only its traceback explains.

    A full disk is the reason of any error that it causes, whoever raised it. A path that its user may not use, or that
    cannot be what it is to be, is an error of usage.

    Args:
        error: that ended a command.
        folder: what the command wrote to, for an error that names no file.
    """
    if isinstance(error, TryAgainError):
        return error
    if isinstance(error, AbsentSettingsError):
        return with_the_way_to_it(error)
    if trouble := disk_trouble(error):
        reason, path = trouble
        return disk_error(reason, path or folder.absolute())
    return error if isinstance(error, QuadRankError) else _of_path(error)


def _of_path(error: BaseException) -> ConfigError | None:
    """What is wrong with the path that an error names; None for one that names none, or is of another kind."""
    if not isinstance(error, OSError) or not isinstance(error.filename, str | Path):
        return None
    path = Path(error.filename2 or error.filename)  # of two, what the first was to become
    if error.errno in UNUSABLE:
        return ConfigError(f"{path}: {UNUSABLE[error.errno]}")
    if error.errno not in (errno.ENOTDIR, errno.EEXIST) or error.filename2 is not None:
        return None
    above = next((one for one in (path, *path.parents) if one.is_symlink() or one.exists()), path)
    if above.is_dir():
        return None
    which = "" if above == path else f"{above} "
    return ConfigError(f"{path}: {which}is no folder, so nothing can lie below it. Name another path.")


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
        say(f"quadrank: exit {code}")
