"""Which code a result comes from: the commit it stands at, and a hash of its sources."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from features.build.revision import commit_of, hash_of

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("features", "ctr", "pipelines")


def git_revision() -> str:
    """The commit the code stands at, `-dirty` when changed since; `unknown` outside a checkout."""
    return commit_of(ROOT) or "unknown"


@cache
def source_hash() -> str:
    """12 hex digits of the sha256 of every source file, as they stood when this process first asked.

    A commit says less: a tree may be changed since, and a commit of the docs alone changes no result.
    """
    return hash_of_packages(ROOT)


def hash_of_packages(root: Path) -> str:
    """The same of the packages below another folder."""
    return hashlib.sha256("".join(hash_of(root / package) for package in PACKAGES).encode()).hexdigest()[:12]
