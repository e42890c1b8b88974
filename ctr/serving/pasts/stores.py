"""Opens the source of pasts that the settings name, once a process, and gives each bundle its view of it."""

from __future__ import annotations

from pathlib import Path

from ctr.serving.pasts.lmdb_store import LmdbStore
from ctr.serving.pasts.redis_store import RedisStore
from ctr.serving.pasts.snapshot import SnapshotPasts
from ctr.serving.pasts.source import Note, Pasts, RequestPasts
from ctr.serving.settings import PastsSettings
from features.encoding.encoder import Encoder


class Stores:
    """The source of pasts of one process.

    Args:
        settings: which, and where.
        note: is told what came of each asking.

    Raises:
        ConfigError: it cannot be opened.
        ModuleNotFoundError: its package is not installed.
    """

    def __init__(self, settings: PastsSettings, note: Note) -> None:
        self._kind, self._note = settings.kind, note
        self._store: LmdbStore | RedisStore | None = None
        if settings.kind == "lmdb":
            assert settings.folder is not None  # the settings say so
            self._store = LmdbStore(settings.folder, settings.size_mib * 2**20)
        elif settings.kind == "redis":
            seconds = settings.timeout_ms / 1e3, settings.pause_ms / 1e3
            self._store = RedisStore(settings.url, *seconds, ttl=settings.ttl // 1_000_000)

    def of(self, bundle: Path, encoder: Encoder) -> Pasts:
        """The pasts of a bundle's contract.

        Raises:
            ConfigError: the bundle should bring them and does not.
        """
        if self._store is not None:
            return self._store.of(encoder.contract, self._note)
        if self._kind == "snapshot":
            return SnapshotPasts(bundle, encoder.contract, encoder.users, self._note)
        return RequestPasts()

    def close(self) -> None:
        """Close it."""
        if self._store is not None:
            self._store.close()
