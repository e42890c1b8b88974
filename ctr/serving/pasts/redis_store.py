"""Pasts in Redis or Valkey, for several hosts: one key a user. A server that is away costs one ranking a timeout."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from ctr.serving.pasts.packing import pack
from ctr.serving.pasts.source import AwayError, Note, merged
from ctr.serving.pasts.stored import Blobs
from features.contract.contract import Contract
from features.encoding.past import PastEvent
from features.errors import ConfigError

PASSWORD = "QUADRANK_REDIS_PASSWORD"
WRITE_SECONDS = 1.0  # that a write waits for an answer: no ranking waits for it
ATTEMPTS = 100  # of a write while others write to the same user


class RedisStore:
    """Connections to the server; gives each contract a view of it. Nothing is connected before it is asked.

    Args:
        url: `redis://HOST:PORT/DB`, `rediss://…` with TLS, or `unix://PATH`; the password is in the environment
            variable QUADRANK_REDIS_PASSWORD.
        timeout: seconds that a ranking waits at most: half for a connection, half for an answer.
        pause: seconds without asking after the server was away.
        ttl: seconds after which a user without new events is forgotten.

    Raises:
        ConfigError: an address that is none.
    """

    def __init__(self, url: str, timeout: float, pause: float, ttl: int) -> None:
        import redis

        self.failures = (redis.RedisError, OSError)
        self.refusal = redis.ResponseError
        self.conflict = redis.WatchError
        self.ttl = ttl
        self.breaker = Breaker(pause)
        try:
            self.readers = _client(url, timeout / 2)
            self.writers = _client(url, WRITE_SECONDS)
        except ValueError as error:
            raise ConfigError(f"pasts.url: {error}. Write e.g. redis://127.0.0.1:6379/0.") from None

    def of(self, contract: Contract, note: Note) -> RedisPasts:
        """The pasts of a contract."""
        return RedisPasts(self, contract, note)

    def close(self) -> None:
        """Close the connections."""
        self.readers.close()
        self.writers.close()


class RedisPasts:
    """One contract's view of the server: a key `quadrank:past:NAME:USER` holds all that is kept of a user."""

    def __init__(self, store: RedisStore, contract: Contract, note: Note) -> None:
        self._store, self._blobs = store, Blobs.of(contract, note)
        self._prefix = f"quadrank:past:{contract.name}:".encode()

    def newest(self, user: Any) -> list[PastEvent]:
        """The newest events of a user, oldest first; none while the server is away."""
        if not self._store.breaker.may_try():
            self._blobs.note("failed")
            return []
        try:
            blob = self._store.readers.get(self._key(user))
        except self._store.failures as error:
            # A server that refuses one key is not away.
            (self._store.breaker.answered if isinstance(error, self._store.refusal) else self._store.breaker.failed)()
            self._blobs.note("failed")
            return []
        self._store.breaker.answered()
        return self._blobs.events(blob)

    def add(self, user: Any, events: Iterable[PastEvent]) -> None:
        """Keep events of a user too; of two writers of one user none takes back what the other wrote."""
        events = list(events)
        try:
            for attempt in range(ATTEMPTS):
                if self._written(self._key(user), events):
                    return
                time.sleep(random.uniform(0, 0.001 * min(attempt + 1, 20)))
        except self._store.refusal as error:
            raise AwayError(f"Redis refuses: {error}") from None
        except self._store.failures as error:
            raise AwayError(f"Redis does not answer: {type(error).__name__}") from None
        raise AwayError("too many others write to the same user")

    def _written(self, key: bytes, events: list[PastEvent]) -> bool:
        """Whether the key was written; not where another writer came between reading and writing."""
        silent = Blobs(self._blobs.header, self._blobs.keep, lambda outcome: None)
        with self._store.writers.pipeline() as pipeline:
            pipeline.watch(key)
            known = silent.events(pipeline.get(key))
            pipeline.multi()
            pipeline.set(key, pack(merged(known, events, silent.keep), silent.header), ex=self._store.ttl)
            try:
                pipeline.execute()
            except self._store.conflict:
                return False
        return True

    def _key(self, user: Any) -> bytes:
        return self._prefix + str(user).encode(errors="surrogatepass")


class Breaker:
    """Keeps callers from a server that did not answer; after a pause one of them tries it again.

    Args:
        pause: seconds.
        clock: for tests.
    """

    def __init__(self, pause: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._pause, self._clock = pause, clock
        self._lock = threading.Lock()
        self._again_at: float | None = None

    def may_try(self) -> bool:
        """Whether to ask the server."""
        if self._again_at is None:
            return True
        with self._lock:
            if self._again_at is None:
                return True
            if self._clock() < self._again_at:
                return False
            self._again_at = self._clock() + self._pause  # the others wait for what this one finds
            return True

    def failed(self) -> None:
        """It did not answer."""
        with self._lock:
            self._again_at = self._clock() + self._pause

    def answered(self) -> None:
        """It answered."""
        self._again_at = None


def _client(url: str, seconds: float) -> Any:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    return redis.Redis.from_url(
        url,
        password=os.environ.get(PASSWORD),
        socket_timeout=seconds,
        socket_connect_timeout=seconds,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        driver_info=None,  # no greeting: a connection is ready when it is open
    )
