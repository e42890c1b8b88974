"""Pasts in LMDB: one file on this host, which any number of its processes read and write."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ctr.serving.pasts.packing import pack
from ctr.serving.pasts.source import AwayError, Note, merged
from ctr.serving.pasts.stored import Blobs
from features.contract.contract import Contract
from features.encoding.past import PastEvent
from features.errors import ConfigError

LONGEST = 500  # bytes of a key; LMDB takes 511
READERS = 512  # threads of all processes that read at the same time


class LmdbStore:
    """The database; it is opened once a process and gives each contract a view of it.

    Args:
        folder: is made where it is not there.
        size: bytes that it may grow to.

    Raises:
        ConfigError: it cannot be opened.
    """

    def __init__(self, folder: Path, size: int) -> None:
        import lmdb

        self.failures, self.full, self._grown = lmdb.Error, lmdb.MapFullError, lmdb.MapResizedError
        self._transactions, self._ended = 0, threading.Condition()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # LMDB syncs each write, its own pages too: a client does not send again what was taken.
            self.environment = lmdb.open(str(folder), map_size=size, max_readers=READERS, readahead=False)
            # A killed process keeps its places among the readers; without one no past can be read.
            self.environment.reader_check()
        except (lmdb.Error, OSError) as error:
            raise ConfigError(f"pasts.folder: {folder} cannot be opened: {error}.") from None

    def of(self, contract: Contract, note: Note) -> LmdbPasts:
        """The pasts of a contract."""
        return LmdbPasts(self, contract, note)

    @contextmanager
    def transaction(self, write: bool = False) -> Iterator[Any]:
        """A transaction; it ends with the block.

        Where another process, of a larger `pasts.size_mib`, let the file grow beyond what this one maps, it is mapped
        anew first: it may then grow as far as that process lets it.
        """
        begun = self._begun(write)
        try:
            with begun:
                yield begun
        finally:
            with self._ended:
                self._transactions -= 1
                self._ended.notify_all()

    def _begun(self, write: bool) -> Any:
        while True:
            with self._ended:
                self._transactions += 1
            try:
                return self.environment.begin(write=write, buffers=True)
            except BaseException as error:
                with self._ended:
                    self._transactions -= 1
                    self._ended.notify_all()
                    if not isinstance(error, self._grown):
                        raise
                    self._ended.wait_for(lambda: not self._transactions)  # LMDB allows it when none runs
                    self.environment.set_mapsize(0)  # that of the process which let it grow

    def close(self) -> None:
        """Close the database."""
        self.environment.close()


class LmdbPasts:
    """One contract's view of the database. Writers wait for each other, readers for nobody."""

    def __init__(self, store: LmdbStore, contract: Contract, note: Note) -> None:
        self._store, self._blobs = store, Blobs.of(contract, note)
        self._name = contract.name.encode()

    def newest(self, user: Any) -> list[PastEvent]:
        """The newest events of a user, oldest first; none where the database cannot be read."""
        try:
            with self._store.transaction() as transaction:
                return self._blobs.events(transaction.get(self._key(user)))
        except self._store.failures:
            self._blobs.note("failed")
            return []

    def add(self, user: Any, events: Iterable[PastEvent]) -> None:
        """Keep events of a user too; on disk when it returns."""
        key, silent = self._key(user), Blobs(self._blobs.header, self._blobs.keep, lambda outcome: None)
        try:
            with self._store.transaction(write=True) as transaction:
                known = silent.events(transaction.get(key))
                transaction.put(key, pack(merged(known, events, silent.keep), silent.header))
        except self._store.full:
            raise AwayError("the database is full: raise pasts.size_mib") from None
        except self._store.failures as error:
            raise AwayError(f"the database cannot be written: {error}") from None

    def _key(self, user: Any) -> bytes:
        """`NAME:i7` or `NAME:t…` of a text; a long text by its sha256."""
        text = user.encode(errors="surrogatepass") if isinstance(user, str) else b""
        key = self._name + (b":t" + text if isinstance(user, str) else b":i%d" % user)
        return key if len(key) <= LONGEST else self._name + b":h" + hashlib.sha256(text).digest()
