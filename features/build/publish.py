"""Publish a feature set in one step: built aside, flushed, renamed, and only then pointed at."""

from __future__ import annotations

import fcntl
import hashlib
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO

from features.build.revision import code_hash
from features.contract.contract import Contract
from features.errors import DataError, LockError
from features.progress import say
from features.sources.files import content_hash, find_files
from features.store.atomic import flush, flush_tree
from features.store.disk import folder_bytes
from features.store.feature_set import FORMAT, FeatureSet
from features.store.pointer import CURRENT, follow, point_at

STAGING = ".building-"
REPLACED = ".replaced-"
SECONDS_BETWEEN_TRIES = 0.2


@contextmanager
def build_lock(folder: Path, wait: float = 0.0) -> Iterator[None]:
    """Hold a contract's folder for one builder, and clear what a killed one left behind.

    Args:
        folder: of the contract's versions.
        wait: seconds to wait for another process that builds here; stderr says so.

    Raises:
        LockError: another process builds here, still after `wait`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        if not _lock(file) and not (wait > 0 and _lock_within(wait, file, folder)):
            waited = f" after {wait:,g} s" if wait else ""
            raise LockError(f"{folder}: another process builds this feature set{waited}. Wait for it to end.")
        for stale in folder.glob(f"{STAGING}*"):
            shutil.rmtree(stale, ignore_errors=True)
        for aside in folder.glob(f"{REPLACED}*"):
            target = folder / aside.name.removeprefix(REPLACED)
            # Without a target the builder died between its two renames: what stood there comes back.
            if target.exists():
                shutil.rmtree(aside, ignore_errors=True)
            else:
                aside.rename(target)
        yield


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock_within(wait: float, file: IO[str], folder: Path) -> bool:
    say(f"{folder}: another process builds this feature set; waiting up to {wait:,g} s")
    until = time.monotonic() + wait
    while time.monotonic() < until:
        time.sleep(min(SECONDS_BETWEEN_TRIES, wait))
        if _lock(file):
            return True
    return False


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """An empty folder beside the versions; removed again when the block raises."""
    staging = folder / f"{STAGING}{secrets.token_hex(4)}"
    staging.mkdir()
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def publish(staging: Path, folder: Path, version: str) -> FeatureSet:
    """Flush every file, rename the folder to its version, and flip `CURRENT` to it once that name is on disk.

    A broken version of the same name is renamed aside, and deleted when the new one is in use: its readers go on, and
    whoever opens `CURRENT` finds one of the two, but for the instant between two renames.
    """
    flush_tree(staging)
    target, aside = folder / version, folder / f"{REPLACED}{version}"
    if target.exists():
        target.rename(aside)
    staging.rename(target)
    flush(folder)
    point_at(folder, version)
    shutil.rmtree(aside, ignore_errors=True)
    return FeatureSet.open(target)


def find_version(folder: Path, source: str) -> FeatureSet | None:
    """The newest published version built from the same source, with all of its files, if there is one."""
    # Hidden folders are being built, or set aside.
    for path in sorted(folder.glob("[!.]*/MANIFEST.json"), reverse=True):
        try:
            found = FeatureSet.open(path.parent)
        except DataError:
            continue
        if found.manifest.source == source and found.is_whole():
            return found
    return None


def bytes_of_a_build(contract: Contract, folder: Path) -> int:
    """What a new version will take: as much as the one in use; a first one, as much as the files that it reads."""
    # `CURRENT` may name a version that was deleted, in order to build it again.
    with suppress(DataError):
        if (folder / CURRENT).is_file() and (used := folder_bytes(follow(folder))) > 0:
            return used
    return sum(Path(file).stat().st_size for file in source_files(contract) if Path(file).is_file())


def source_key(contract: Contract, as_of: str | None, window: int | None = None) -> str:
    """What a build depends on: code, contract, as-of date, window, and content of every file it reads (sha256)."""
    digest = hashlib.sha256(f"{FORMAT} {code_hash()} {contract.fingerprint()} {as_of} {window}".encode())
    for file in source_files(contract):
        digest.update(f"{PurePosixPath(file).name} {content_hash(file)}".encode())
    return digest.hexdigest()


def source_files(contract: Contract) -> list[str]:
    """Every file that a build of the contract reads. Raises DataError for one that is not there."""
    paths = [contract.interactions.path]
    if contract.interactions.served is not None:
        paths.append(contract.interactions.served.outcomes)
    if contract.split.by == "files":
        paths += [str(contract.split.valid), str(contract.split.test)]
    paths += [table.path for table in (*contract.history.tables, contract.items, contract.users) if table]
    for spec in contract.embeddings.values():
        paths += [path for path in (spec.path, spec.ids) if path is not None]
    return [file for path in paths for file in find_files(contract.resolve(path))]
