"""Pasts in a real Redis server: writers at once, a server that is away, slow or hostile, foreign and broken blobs."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from ctr.serving.pasts.packing import header_of, pack
from ctr.serving.pasts.redis_store import Breaker, RedisStore
from ctr.serving.pasts.source import AwayError
from ctr.serving.pasts.stores import Stores
from ctr.serving.settings import PastsSettings
from features.contract.contract import Contract
from features.encoding.past import PastEvent
from features.errors import ConfigError
from tests.ctr.serving.pasts.conftest import RedisServer

Note = Callable[[str], None]
KEY = b"quadrank:past:shop:u"


def events(*times: int) -> list[PastEvent]:
    return [PastEvent(100 + time, time, {"clicked": time % 2}) for time in times]


@pytest.fixture
def store(redis_server: RedisServer) -> Iterator[RedisStore]:
    store = RedisStore(redis_server.url, timeout=5.0, pause=0.0, ttl=60)
    yield store
    store.close()


def test_added_events_are_found_once_each_and_the_newest_seven_stay(
    store: RedisStore, contract: Contract, note: Note, outcomes: list[str]
) -> None:
    pasts = store.of(contract, note)
    assert pasts.newest("u") == []
    pasts.add("u", events(3, 1))
    pasts.add("u", iter(events(2, 3)))
    assert pasts.newest("u") == events(1, 2, 3)
    pasts.add("u", events(*range(4, 10)))
    assert pasts.newest("u") == events(*range(3, 10))
    assert outcomes == ["absent", "found", "found"]


def test_a_user_is_one_key_that_lives_as_long_as_events_come(
    store: RedisStore, redis_server: RedisServer, contract: Contract, note: Note
) -> None:
    store.of(contract, note).add("u", events(1))
    client = redis_server.client()
    assert client.keys() == [KEY] and 50_000 < client.pttl(KEY) <= 60_000
    client.pexpire(KEY, 5_000)
    store.of(contract, note).add("u", events(2))
    assert client.pttl(KEY) > 50_000
    assert client.get(KEY) == pack(events(1, 2), header_of(contract.fingerprint()))
    client.pexpire(KEY, 1)
    until = time.monotonic() + 60
    while client.exists(KEY) and time.monotonic() < until:
        time.sleep(0.01)
    assert store.of(contract, note).newest("u") == []
    client.close()


def test_writers_of_one_user_take_nothing_from_each_other(
    redis_server: RedisServer, contract: Contract, note: Note
) -> None:
    many = contract.model_copy(update={"history": contract.history.model_copy(update={"max_len": 200})})
    stores = [RedisStore(redis_server.url, timeout=5.0, pause=0.0, ttl=60) for _ in range(3)]

    def write(first: int) -> None:
        for at in range(first, 90, 3):
            stores[first].of(many, note).add("u", events(at))

    threads = [threading.Thread(target=write, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stores[0].of(many, note).newest("u") == events(*range(90))
    for store in stores:
        store.close()


def test_a_write_between_reading_and_writing_is_seen(
    store: RedisStore, contract: Contract, note: Note, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another writer comes exactly in between, once."""
    first, other = store.of(contract, note), store.of(contract, note)
    others = [events(2)]

    def packed(*arguments: object) -> bytes:
        if others:
            other.add("u", others.pop())
        return pack(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("ctr.serving.pasts.redis_store.pack", packed)
    first.add("u", events(1))
    assert first.newest("u") == events(1, 2)


def test_a_writer_that_never_gets_through_gives_up(
    store: RedisStore, redis_server: RedisServer, contract: Contract, note: Note, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = redis_server.client()

    def packed(*arguments: object) -> bytes:
        client.append(KEY, b"x")
        return pack(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("ctr.serving.pasts.redis_store.pack", packed)
    monkeypatch.setattr("ctr.serving.pasts.redis_store.ATTEMPTS", 3)
    with pytest.raises(AwayError, match="too many others"):
        store.of(contract, note).add("u", events(1))
    client.close()


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        (lambda blob: blob[:-3], "broken"),
        (lambda blob: blob[:4], "broken"),
        (lambda blob: b"\x02" + blob[1:], "foreign"),
        (lambda blob: blob[:1] + b"\x00" * 8 + blob[9:], "foreign"),
    ],
)
def test_what_cannot_be_read_is_nothing_and_the_next_write_replaces_it(
    store: RedisStore,
    redis_server: RedisServer,
    contract: Contract,
    note: Note,
    outcomes: list[str],
    change: Callable[[bytes], bytes],
    outcome: str,
) -> None:
    with redis_server.client() as client:
        client.set(KEY, change(pack(events(1, 2), header_of(contract.fingerprint()))))
    pasts = store.of(contract, note)
    assert pasts.newest("u") == [] and outcomes == [outcome]
    pasts.add("u", events(3))
    assert pasts.newest("u") == events(3)


def test_a_server_that_is_killed_gives_no_past_and_comes_back(
    redis_server: RedisServer, contract: Contract, note: Note, outcomes: list[str]
) -> None:
    store = RedisStore(redis_server.url, timeout=5.0, pause=0.05, ttl=60)
    pasts = store.of(contract, note)
    pasts.add("u", events(1))
    assert pasts.newest("u") == events(1)
    redis_server.kill()
    assert pasts.newest("u") == []
    with pytest.raises(AwayError, match="does not answer"):
        pasts.add("u", events(2))
    redis_server.start()
    with redis_server.client() as client:
        assert client.dbsize() == 0  # it kept nothing over its end
    pasts.add("u", events(3))
    until = time.monotonic() + 30
    while pasts.newest("u") != events(3) and time.monotonic() < until:
        time.sleep(0.01)
    assert pasts.newest("u") == events(3)
    assert outcomes[:2] == ["found", "failed"] and outcomes[-1] == "found"
    store.close()


def test_a_server_that_hangs_is_asked_once_and_then_left_alone(
    redis_server: RedisServer, contract: Contract, note: Note, outcomes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RedisStore(redis_server.url, timeout=0.1, pause=3600.0, ttl=60)
    pasts = store.of(contract, note)
    asked: list[bytes] = []
    ask = store.readers.get
    monkeypatch.setattr(store.readers, "get", lambda key: (asked.append(key), ask(key))[1])
    redis_server.send(signal.SIGSTOP)
    began = time.monotonic()
    assert [pasts.newest("u") for _ in range(1000)] == [[]] * 1000
    # A thousand timeouts would be 100 s.
    assert time.monotonic() - began < 20 and asked == [KEY]
    assert outcomes == ["failed"] * 1000
    redis_server.send(signal.SIGCONT)
    store.close()


def test_a_key_of_another_kind_is_no_reason_to_leave_the_server_alone(
    redis_server: RedisServer, contract: Contract, note: Note, outcomes: list[str]
) -> None:
    store = RedisStore(redis_server.url, timeout=5.0, pause=3600.0, ttl=60)
    with redis_server.client() as client:
        client.rpush(KEY, "a list")
    pasts = store.of(contract, note)
    assert pasts.newest("u") == [] and pasts.newest("v") == []
    assert outcomes == ["failed", "absent"]
    with pytest.raises(AwayError, match=r"^Redis refuses: WRONGTYPE Operation against a key"):
        pasts.add("u", events(1))
    store.close()


def test_a_full_server_is_told_from_one_that_does_not_answer(
    redis_server: RedisServer, contract: Contract, note: Note
) -> None:
    store = RedisStore(redis_server.url, timeout=5.0, pause=3600.0, ttl=60)
    with redis_server.client() as client:
        client.config_set("maxmemory", 1)
    with pytest.raises(AwayError, match=r"^Redis refuses: .* when used memory > 'maxmemory'"):
        store.of(contract, note).add("u", events(1))
    store.close()


def test_after_a_pause_one_caller_tries_the_server_again() -> None:
    now = [100.0]
    breaker = Breaker(2.0, clock=lambda: now[0])
    assert breaker.may_try()
    breaker.failed()
    now[0] = 101.9
    assert not breaker.may_try()
    now[0] = 102.1
    assert [breaker.may_try() for _ in range(3)] == [True, False, False]
    breaker.answered()
    assert [breaker.may_try() for _ in range(3)] == [True] * 3


def test_settings_are_told_in_the_units_of_the_store(note: Note) -> None:
    """Nothing is connected before it is asked."""
    stores = Stores(PastsSettings(kind="redis", timeout_ms=40, pause_ms=500, ttl="2h"), note)
    assert isinstance(stores._store, RedisStore)
    assert (stores._store.ttl, stores._store.breaker._pause) == (7200, 0.5)
    waits = stores._store.readers.connection_pool.connection_kwargs
    assert (waits["socket_timeout"], waits["socket_connect_timeout"]) == (0.02, 0.02)
    stores.close()


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"pasts\.url: .*Write e\.g\. redis://"):
        Stores(PastsSettings(kind="redis", url="127.0.0.1:6379"), print)


def test_a_server_with_a_password_takes_it_from_the_environment(
    redis_server: RedisServer, contract: Contract, note: Note, outcomes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with redis_server.client() as client:
        client.config_set("requirepass", "secret")
    settings = PastsSettings(kind="redis", url=redis_server.url, timeout_ms=5_000, pause_ms=1)
    without = Stores(settings, note)
    assert without._store is not None
    assert without._store.of(contract, note).newest("u") == [] and outcomes == ["failed"]
    monkeypatch.setenv("QUADRANK_REDIS_PASSWORD", "secret")
    stores = Stores(settings, note)
    assert stores._store is not None
    stores._store.of(contract, note).add("u", events(1))
    assert stores._store.of(contract, note).newest("u") == events(1)
    for one in (without, stores):
        with suppress(Exception):
            one.close()
