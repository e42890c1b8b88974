"""Sources of a wanted bundle that a test moves, and rankers that are a path alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any


class Wanted:
    """A source that a test sets."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def wanted(self) -> Path:
        return self.path


def ranker(path: Path) -> Any:
    return SimpleNamespace(bundle=SimpleNamespace(path=path))


A, B, C = Path("/bundles/a"), Path("/bundles/b"), Path("/bundles/c")


class Moving(Wanted):
    """A source that can be moved, as a pointer can."""

    def move(self, before: Path, after: Path) -> bool:
        self.path = after
        return True


class Standing(Wanted):
    """A source that cannot, as an alias."""

    def move(self, before: Path, after: Path) -> bool:
        return False


def made_at(path: Path) -> Any:
    return lambda before: SimpleNamespace(path=path)
