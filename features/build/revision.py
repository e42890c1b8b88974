"""Which version of the code builds: it decides whether an earlier feature set is used again."""

from __future__ import annotations

import hashlib
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGE = Path(__file__).parent.parent


@cache
def code_hash() -> str:
    """Hex sha256 of the sources of this package: a feature set that other code built is not used again.

    A bug fix that leaves `FORMAT` as it is builds again, and so does a change of a comment. A checkout therefore builds
    after each edit of `features/`; an installed release builds each feature set once. Versions of libraries do not
    count; the manifest records them.
    """
    return hash_of(PACKAGE)


@cache
def revision() -> str:
    """The package's version and, in a checkout, its commit (`-dirty` when changed since), for people to read."""
    return revision_of(PACKAGE)


def hash_of(package: Path) -> str:
    """Hex sha256 of the names and contents of all `.py` files below a folder."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()} {len(content)} ".encode() + content)
    return digest.hexdigest()


def revision_of(package: Path) -> str:
    """As `revision`, of the package in this folder."""
    try:
        released = version("quadrank")
    except PackageNotFoundError:
        released = "not installed"
    commit = commit_of(package.parent)
    return released if commit is None else f"{released} (git {commit})"


def commit_of(checkout: Path) -> str | None:
    """The commit that a checkout stands at, `-dirty` when changed since; None where the folder is none."""
    if not (checkout / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=checkout,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
