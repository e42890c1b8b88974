"""Pasts at the end of the log, memory-mapped from the bundle: `pasts/offsets.npy` and `pasts/events.bin`.

Shapes: U users of the catalogue.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ctr.serving.pasts.source import Note
from ctr.serving.pasts.stored import Blobs
from features.contract.contract import Contract
from features.encoding.past import PastEvent
from features.encoding.vocabulary import Vocabulary
from features.errors import ConfigError

FOLDER = "pasts"
OFFSETS, EVENTS = "offsets.npy", "events.bin"


class SnapshotPasts:
    """The pasts that a bundle brings. Only what is asked for is read from disk; nothing can be added.

    Args:
        bundle: its folder.
        contract: of the bundle.
        users: the catalogue of users.
        note: is told what came of each asking.

    Raises:
        ConfigError: the bundle was exported without pasts.
    """

    def __init__(self, bundle: Path, contract: Contract, users: Vocabulary, note: Note) -> None:
        if not (bundle / FOLDER / OFFSETS).is_file():
            raise ConfigError(
                f"pasts.kind: snapshot, but {bundle.name} was exported without pasts. Export it with "
                "`quadrank export --pasts`, or choose another kind."
            )
        self._users, self._blobs = users, Blobs.of(contract, note)
        self._offset_U = np.load(bundle / FOLDER / OFFSETS, mmap_mode="r")
        with (bundle / FOLDER / EVENTS).open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if self._offset_U[-1] else b""

    def newest(self, user: Any) -> list[PastEvent]:
        """The newest events of a user before the end of the log, oldest first."""
        row = self._users.index(user)
        start, end = self._offset_U[row : row + 2].tolist()
        return self._blobs.events(self._bytes[start:end] if end > start else None)

    def add(self, user: Any, events: Iterable[PastEvent]) -> None:
        """They are not kept: a bundle is never changed."""
