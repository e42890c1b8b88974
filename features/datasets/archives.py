"""Fetch a zip file, prove that it is the right one, and unpack it without trusting what is in it."""

from __future__ import annotations

import hashlib
import stat
import tempfile
import urllib.request
import zipfile
import zlib
from http.client import HTTPException
from pathlib import Path, PurePosixPath

from features.datasets.public import Archive
from features.errors import DataError
from features.progress import Progress, silent

CHUNK = 1 << 20
MOST_BYTES = 4 << 30  # of a zip file, and of all that comes out of one: more is a mistake or an attack
MOST_FILES = 10_000
TIMEOUT_S = 60


def fetch_archive(archive: Archive, out: Path, progress: Progress = silent, most_bytes: int = MOST_BYTES) -> Path:
    """Fetch and unpack an archive; its folder appears below `out` in one step, or not at all.

    Args:
        archive: what to fetch.
        out: made if it is not there.
        progress: shows the download.
        most_bytes: refuse more, packed or unpacked.

    Returns:
        The folder.

    Raises:
        DataError: the folder is there already, the address does not answer, the file is not the expected one, or its
            content tries to leave the folder.
    """
    target = out / archive.folder
    if target.exists():
        raise DataError(f"{target}: is there already. Use it, or remove it to fetch it again.")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=out) as scratch:
        packed = Path(scratch) / "archive.zip"
        _fetch(archive, packed, progress, most_bytes)
        unpacked = Path(scratch) / "unpacked"
        _unpack(packed, archive, unpacked, most_bytes)
        (unpacked / archive.folder).rename(target)
    return target


def _fetch(archive: Archive, packed: Path, progress: Progress, most_bytes: int) -> None:
    digest = hashlib.sha256()
    size = 0
    try:
        with urllib.request.urlopen(archive.url, timeout=TIMEOUT_S) as answer, packed.open("wb") as file:
            if archive.url.startswith("https://") and not answer.geturl().startswith("https://"):
                raise DataError(f"{archive.url}: leads to {answer.geturl()}, which is not encrypted. Not fetched.")
            total = archive.size or int(answer.headers.get("Content-Length") or 0)
            with progress("downloading", total=total, unit="bytes") as bar:
                while chunk := answer.read(CHUNK):
                    size += len(chunk)
                    if size > most_bytes:
                        raise DataError(f"{archive.url}: is larger than {most_bytes:,} bytes. Not fetched.")
                    digest.update(chunk)
                    file.write(chunk)
                    bar.advance(len(chunk))
    except (OSError, HTTPException) as error:
        raise DataError(f"{archive.url}: cannot be fetched: {error}. Try later, or fetch it with a browser.") from None
    if archive.size is not None and size != archive.size:
        raise DataError(f"{archive.url}: {size:,} bytes came, expected {archive.size:,}. Try again.")
    if archive.sha256 is not None and digest.hexdigest() != archive.sha256:
        raise DataError(
            f"{archive.url}: sha256 {digest.hexdigest()} is not the known {archive.sha256}. It was changed, on the way "
            "or by its owner: not used."
        )


def _unpack(packed: Path, archive: Archive, folder: Path, most_bytes: int) -> None:
    try:
        with zipfile.ZipFile(packed) as content:
            members = content.infolist()
            if len(members) > MOST_FILES:
                raise DataError(f"{archive.url}: holds {len(members):,} files, more than {MOST_FILES:,}. Not unpacked.")
            left = most_bytes
            for member in members:
                path = folder / _safe_name(archive, member)
                if member.is_dir():
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                left -= _write(content, member, path, left, archive)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise DataError(f"{archive.url}: cannot be unpacked: {error}. Fetch it again.") from None
    if not (folder / archive.folder).is_dir():
        shown = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) if folder.is_dir() else "nothing"
        raise DataError(f"{archive.url}: holds no folder {archive.folder!r} but {shown}. Unpack it by hand.")


def _write(content: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, left: int, archive: Archive) -> int:
    """Write one file; counts what really comes out, for a zip file may lie about it."""
    size = 0
    with content.open(member) as source, path.open("wb") as file:
        while chunk := source.read(CHUNK):
            size += len(chunk)
            if size > left:
                raise DataError(f"{archive.url}: unpacks to more than is allowed, at {member.filename!r}. Not used.")
            file.write(chunk)
    return size


def _safe_name(archive: Archive, member: zipfile.ZipInfo) -> PurePosixPath:
    """The name of a member as a path below the folder. Raises DataError for one that leads out, and for links."""
    name = PurePosixPath(member.filename)
    is_link = stat.S_ISLNK(member.external_attr >> 16)
    if is_link or name.is_absolute() or ".." in name.parts or "\\" in member.filename or ":" in member.filename:
        raise DataError(f"{archive.url}: {member.filename!r} would be written outside of its folder. Not unpacked.")
    return name
