"""The storage that the workers of a study share: a journal file, or a database by URL; and one lock for all workers."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import sqlite3
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from sqlalchemy.engine import make_url

from features.errors import ConfigError, LockError, TryAgainError
from pipelines.tune.workers.journal import Journal
from pipelines.tune.workers.leases import Lease
from pipelines.workspace import TUNE, Workspace

LONGEST_WAIT = 3600.0  # seconds for another worker to build a feature set, or to hold the lock
SECONDS_BETWEEN_TRIES = 0.05
LONGEST_NAME = 150  # bytes of a study's name; a file has 255, and locks of a journal add up to 70
SECONDS_TO_CONNECT = 5  # with the imports of a busy machine, 15 seconds until a storage that is away is told
POSTGRESQL, SQLITE = "postgresql", "sqlite"
# A worker whose host is gone holds the lock until the server notices: after a minute, not after two hours.
_KEEPALIVES = "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"
# And a server whose host is gone is noticed by the worker.
_OF_CLIENT = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
# What a path or a database of SQLite cannot be used for until somebody changes it or names another one. A disk that is
# read-only, as a damaged one is, is tried again, like a full one.
_UNUSABLE_PATH = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)
_UNUSABLE_DATABASE = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOTADB)
_LOCK_NOT_AVAILABLE = "55P03"  # what PostgreSQL answers when `lock_timeout` is over


class Database(optuna.storages.RDBStorage):
    """Optuna's database, whose heartbeat outlives a moment without it.

    Optuna beats in a thread that the first error would end: the trial would then be given to another worker, though the
    database is back, as after its restart, and this worker still trains. A database that stays away is told by the
    trial itself.
    """

    def record_heartbeat(self, trial_id: int) -> None:
        """Say that the trial of this id is at work."""
        with suppress(StorageInternalError):
            super().record_heartbeat(trial_id)


@dataclass(frozen=True)
class SharedStorage:
    """Where a study is kept, and how its workers take turns.

    Args:
        study: its name.
        url: of a database; None for a journal file.
        journal: that file, and the place of the lock where the storage is no PostgreSQL.
        lease: how often a worker says that it is alive.
    """

    study: str
    url: str | None
    journal: Path
    lease: Lease

    @classmethod
    def of(cls, storage: str | None, study: str, workspace: Workspace, lease: Lease) -> SharedStorage:
        """The storage of `--storage`: a database URL or a journal file; default `runs/tune/<study>.journal`.

        Raises:
            ConfigError: as `require_name`; a database other than PostgreSQL and SQLite, PostgreSQL without its
                driver, or a file of SQLite that cannot be made.
        """
        require_name(study)
        journal = workspace.runs / TUNE / f"{study}.journal"
        if storage is None or "://" not in storage:
            return cls(study, None, Path(storage) if storage else journal, lease)
        return cls(study, _database(storage), journal, lease)

    @property
    def beats(self) -> bool:
        """Whether Optuna itself finds trials of dead workers, by a heartbeat in the database."""
        return self.url is not None

    @property
    def shown(self) -> str:
        """The storage as messages name it, without a password."""
        return str(self.journal) if self.url is None else make_url(self.url).render_as_string(hide_password=True)

    def open(self) -> optuna.storages.BaseStorage:
        """The storage; made where it is new. Call it while holding the lock: two at once break each other's tables.

        Raises:
            ConfigError, TryAgainError: as `reached`.
            DataError: a journal with a line that cannot be read.
        """
        with self.reached():
            if self.url is None:
                self.journal.parent.mkdir(parents=True, exist_ok=True)
                return optuna.storages.JournalStorage(Journal(self.journal))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)  # the heartbeat
                return Database(
                    self.url,
                    engine_kwargs={**_connecting(self.url), "pool_pre_ping": True},
                    heartbeat_interval=self.lease.interval,
                    grace_period=self.lease.grace,
                )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the study for one worker: to make it, to draw a trial, to put a lost one back.

        It is an advisory lock of PostgreSQL, which ends with the connection, or a lock of a file, which ends with the
        process.

        Raises:
            LockError: another worker still holds it after `LONGEST_WAIT`.
            ConfigError, TryAgainError: as `reached`.
        """
        if self.url is not None and make_url(self.url).get_backend_name() == POSTGRESQL:
            with self._database_lock(self.url):
                yield
            return
        with self.reached():
            self.journal.parent.mkdir(parents=True, exist_ok=True)
            file = self.journal.with_name(f"{self.journal.name}.turn").open("w")
        with file:
            until = time.monotonic() + LONGEST_WAIT
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= until:
                        raise LockError(f"{file.name}: another worker of {self.study!r} holds it.") from None
                    time.sleep(SECONDS_BETWEEN_TRIES)
            yield

    @contextmanager
    def reached(self) -> Iterator[None]:
        """Explain a storage that cannot be reached, or is lost in the middle.

        Raises:
            ConfigError: a file or folder that stays unusable, however often the command is started.
            TryAgainError: all else (exit 75).
        """
        try:
            yield
        except (sqlalchemy.exc.DBAPIError, StorageInternalError) as error:
            # What the driver says first is enough: SQLAlchemy adds the statement and a link.
            driver = getattr(error, "orig", None) or getattr(error.__cause__, "orig", None)
            cause = str(driver or error.__cause__ or error).strip().splitlines()[0]
            told = f"{self.shown}: the storage of study {self.study!r} cannot be used: {cause}."
            # The low byte is the error, the others say more of it.
            if isinstance(driver, sqlite3.Error) and driver.sqlite_errorcode & 0xFF in _UNUSABLE_DATABASE:
                raise ConfigError(f"{told} Name a file that can be written with --storage.") from None
            raise TryAgainError(
                f"{told} Start the database, or correct --storage, and start the command again: trials that ended are "
                "kept."
            ) from None
        except OSError as error:
            place = None if error.filename is None else Path(error.filename)
            if place is None or self.journal.parent not in (place, place.parent):
                raise
            kind = ConfigError if error.errno in _UNUSABLE_PATH else TryAgainError
            raise kind(
                f"{error.filename}: the storage of study {self.study!r} cannot be used: {error.strerror}. Name a "
                "journal file that can be written with --storage."
            ) from None

    @contextmanager
    def _database_lock(self, url: str) -> Iterator[None]:
        key = int.from_bytes(hashlib.sha256(self.study.encode()).digest()[:8], "big", signed=True)
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.pool.NullPool, **_connecting(url))
        with self.reached():
            connection = engine.connect()
            connection = connection.execution_options(isolation_level="AUTOCOMMIT")
            connection.execute(sqlalchemy.text(f"SET lock_timeout = {round(1000 * LONGEST_WAIT)}"))
            try:
                connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": key})
            except sqlalchemy.exc.OperationalError as error:
                if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
                    raise
                raise LockError(f"{self.shown}: another worker of {self.study!r} holds it.") from None
        try:
            yield
        finally:
            connection.close()
            engine.dispose()


def require_name(study: str) -> None:
    """Refuse a name that no single folder can have. Raises ConfigError."""
    if study in ("", "..") or Path(study).name != study:
        raise ConfigError(
            f"study {study!r}: its trials lie in a folder of this name, below runs/tune. Choose a name without '/'."
        )
    if (size := len(os.fsencode(study))) > LONGEST_NAME:
        raise ConfigError(
            f"study '{study[:20]}…': its trials lie in a folder of this name, and its journal beside it. It has {size} "
            f"bytes: choose a name of at most {LONGEST_NAME}."
        )


def _database(storage: str) -> str:
    try:
        url = make_url(storage)
    except sqlalchemy.exc.ArgumentError:
        raise ConfigError(f"--storage {storage}: not the address of a database.") from None
    backend = "postgresql" if url.drivername.partition("+")[0] == "postgres" else url.drivername.partition("+")[0]
    if backend == SQLITE:
        _require_file(storage, url.database or "")
        return storage
    if backend != POSTGRESQL:
        raise ConfigError(
            f"--storage {url.render_as_string()}: workers share PostgreSQL (postgresql://USER@HOST/NAME), or on one "
            "machine a journal file, which needs no database."
        )
    url = url.set(drivername="postgresql+psycopg")
    try:
        sqlalchemy.create_engine(url)
    except ModuleNotFoundError:
        raise ConfigError(
            '--storage postgresql://…: needs psycopg, which is not installed. pip install "quadrank[tune]" brings it.'
        ) from None
    return url.render_as_string(hide_password=False)


def _require_file(storage: str, database: str) -> None:
    """Refuse a file of SQLite that will never be there, as long as the command stays the same."""
    if database in ("", ":memory:"):
        raise ConfigError(
            f"--storage {storage}: a database in memory ends with the worker, and its study with it. Name a file: "
            "sqlite:///NAME.db, or leave --storage out for a journal file."
        )
    if database.startswith("file:"):
        return  # an address of SQLite's own, with options
    path = Path(database).absolute()
    if path.is_dir():
        raise ConfigError(f"--storage {storage}: {path} is a folder. Name a file in it.")
    if not path.parent.is_dir():
        slashes = "" if Path(database).is_absolute() else f"; from the root it is sqlite:////{database}"
        raise ConfigError(
            f"--storage {storage}: there is no folder {path.parent}. Make it, or name a file in another one{slashes}."
        )


def _connecting(url: str) -> dict[str, Any]:
    if make_url(url).get_backend_name() != POSTGRESQL:
        return {}
    return {"connect_args": {"connect_timeout": SECONDS_TO_CONNECT, "options": _KEEPALIVES, **_OF_CLIENT}}
