"""Large files whose sha256 was compared on this host since it booted, so that not every start reads them again.

That a file was compared is an empty file in a folder of this user's cache. Its name is a hash of what the kernel says
of the file (device, inode, size, times of the last change of its content and of its inode), of the sha256 that it was
found to have, and of the boot. A write changes the last of these times, and no program can put that one back.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from features.store.feature_set import sha256_of

LARGE = 16 * 2**20  # bytes; a smaller file is read within 10 to 40 ms
SETTLED_NS = 2_000_000_000  # a clock of a file system may stand still so long: what is younger may change unnoticed
KEPT_SECONDS = 30 * 86_400
ALWAYS = "always"
VARIABLE = "QUADRANK_VERIFY"
BOOT = Path("/proc/sys/kernel/random/boot_id")

log = logging.getLogger("quadrank.bundle")


def has_sha256(path: Path, sha256: str) -> bool:
    """Whether a file has this sha256; a large one is not read where it was found to have it before.

    `QUADRANK_VERIFY=always` in the environment reads it whatever was found before.
    """
    before = path.stat()
    if before.st_size < LARGE or os.environ.get(VARIABLE) == ALWAYS:
        return sha256_of(path) == sha256
    with _cache() as folder:
        if folder is None:
            return sha256_of(path) == sha256
        if _is_noted(folder, before, sha256):
            return True
        began = time.time_ns()
        if sha256_of(path) != sha256:
            return False
        settled = max(before.st_mtime_ns, before.st_ctime_ns) + SETTLED_NS <= began
        if settled and _state(path.stat()) == _state(before):
            _note(folder, before, sha256)
        return True


def link(source: Path, target: Path, sha256: str) -> None:
    """Give a file a second name. What was found of it stays known, though a link changes the time of the inode.

    Raises:
        OSError: the file system allows no such link.
    """
    before = source.stat()
    with _cache() as folder:
        known = folder is not None and before.st_size >= LARGE and _is_noted(folder, before, sha256)
        os.link(source, target)
        after = target.stat()
        if folder is not None and known and _content(after) == _content(before):
            _note(folder, after, sha256)


def _content(of: os.stat_result) -> tuple[int, ...]:
    return of.st_dev, of.st_ino, of.st_size, of.st_mtime_ns


def _state(of: os.stat_result) -> tuple[int, ...]:
    return *_content(of), of.st_ctime_ns


@contextmanager
def _cache() -> Iterator[int | None]:
    """Descriptor of the folder, which is this user's alone; None where there is none, or no boot to name."""
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        path = Path(home) / "quadrank" / "verified"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except (OSError, RuntimeError):
        yield None
        return
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
            log.warning("%s: not used, as others may write there; it must be this user's, mode 0700", path)
            yield None
        else:
            yield descriptor if BOOT.is_file() else None
    finally:
        os.close(descriptor)


def _name(of: os.stat_result, sha256: str) -> str:
    parts = (BOOT.read_text().strip(), *_state(of), sha256)
    return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()


def _is_noted(folder: int, of: os.stat_result, sha256: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(_name(of, sha256), dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _note(folder: int, of: os.stat_result, sha256: str) -> None:
    """An empty file is there or not, so processes that note the same at once do not disturb each other."""
    try:
        os.close(os.open(_name(of, sha256), os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=folder))
    except OSError as error:
        log.warning("the sha256 of a large file will be compared again at the next start: %s", error)
    for name in os.listdir(folder):
        with suppress(FileNotFoundError):  # another process removes it
            if time.time() - os.stat(name, dir_fd=folder).st_mtime > KEPT_SECONDS:
                os.unlink(name, dir_fd=folder)
