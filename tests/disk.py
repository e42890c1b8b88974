"""What is asked of the disk, in order: how a test shows that nothing is named before it is safe."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def steps_of(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """From now on each fsync and rename, as ("flush", what) and ("rename", to what); they are done, too."""
    steps: list[tuple[str, Path]] = []
    fsync = os.fsync

    def flushing(descriptor: int) -> None:
        steps.append(("flush", Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def renaming(name: str) -> None:
        real = getattr(Path, name)

        def renamed(self: Path, target: Path) -> Path:
            steps.append(("rename", Path(target)))
            return real(self, target)

        monkeypatch.setattr(Path, name, renamed)

    monkeypatch.setattr(os, "fsync", flushing)
    renaming("rename")
    renaming("replace")
    return steps
