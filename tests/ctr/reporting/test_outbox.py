"""What waits for a store: kept in order, sent once, and never in the way of what can be sent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ctr.reporting.entries import File, Known, MoveAlias, Points, Status, Tag
from ctr.reporting.mlflow_store import MlflowStore
from ctr.reporting.outbox import Delivery, Outbox
from features.errors import StoreAwayError


class Store:
    """Takes tags and files, or is away; refuses the tag `bad`."""

    is_served = True

    def __init__(self) -> None:
        self.away = False
        self.calls = 0
        self.told: list[tuple[str, ...]] = []

    @contextmanager
    def contact(self) -> Iterator[Any]:
        self.calls += 1
        if self.away:
            raise StoreAwayError("server: does not answer")
        yield self

    def set_tag(self, run: str, name: str, value: str) -> None:
        if name == "bad":
            raise ValueError("no such run")
        self.told.append((run, name, value))

    def log_artifact(self, run: str, path: str, folder: str | None) -> None:
        self.told.append((run, Path(path).name, Path(path).read_text()))


def tag(name: str, run: str = "r") -> Tag:
    return Tag(run=run, name=name, value=name.upper())


def names(store: Store) -> list[str]:
    return [told[1] for told in store.told]


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "outbox")


@pytest.fixture
def delivery(store: Any, outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> Delivery:
    return Delivery(store, outbox)


def test_a_store_that_answers_is_told_at_once_and_nothing_is_written(
    delivery: Delivery, store: Store, outbox: Outbox
) -> None:
    delivery.put(tag("a"))
    assert names(store) == ["a"] and not outbox.folder.exists()


def test_without_an_outbox_a_store_that_is_away_is_an_error(store: Any) -> None:
    store.away = True
    with pytest.raises(StoreAwayError):
        Delivery(store, None).put(tag("a"))


def test_nothing_overtakes_what_waits(delivery: Delivery, store: Store, outbox: Outbox) -> None:
    store.away = True
    delivery.put(tag("a"))
    store.away = False
    delivery.put(tag("b"))  # before the next try is due
    assert names(store) == []
    assert delivery.send()
    delivery.put(tag("c"))
    assert names(store) == ["a", "b", "c"]


def test_a_store_that_is_away_is_not_asked_at_every_point(
    delivery: Delivery, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("ctr.reporting.outbox.time.monotonic", lambda: clock.now)
    store.away = True
    calls = []
    for second in range(60):
        clock.now = 1000.0 + second
        before = store.calls
        delivery.put(tag(f"t{second}"))
        if store.calls > before:
            calls.append(second)
    assert calls == [0, 15, 45]


def test_a_store_that_came_back_is_told_when_the_next_try_is_due(
    delivery: Delivery, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("ctr.reporting.outbox.time.monotonic", lambda: clock.now)
    store.away = True
    delivery.put(tag("a"))
    store.away, clock.now = False, 1016.0
    delivery.put(tag("b"))
    assert names(store) == ["a", "b"]


def test_another_process_reads_what_waits(delivery: Delivery, store: Any, outbox: Outbox) -> None:
    store.away = True
    delivery.put(tag("a"))
    store.away = False
    other = Outbox(outbox.folder)
    assert (other.send(store), other.waiting(), names(store)) == (1, [], ["a"])
    assert other.send(store) == 0


def test_half_a_line_of_a_killed_process_is_dropped(delivery: Delivery, store: Store, outbox: Outbox) -> None:
    store.away = True
    delivery.put(tag("a"))
    with (outbox.folder / "entries.jsonl").open("ab") as file:
        file.write(b'{"kind": "tag", "ru')
    assert [entry.kind for entry in outbox.waiting()] == ["tag"]
    delivery.put(tag("b"))
    store.away = False
    assert delivery.send() and names(store) == ["a", "b"]


def test_what_the_store_refuses_does_not_hold_up_the_rest(delivery: Delivery, store: Store, outbox: Outbox) -> None:
    store.away = True
    for name in ("a", "bad", "c"):
        delivery.put(tag(name))
    store.away = False
    assert delivery.send() and names(store) == ["a", "c"]
    assert outbox.refused() == ["tag: no such run"]


def test_what_the_store_refuses_at_once_does_not_end_the_run(
    delivery: Delivery, store: Store, outbox: Outbox, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as a point of a run that someone deleted while it trains."""
    delivery.put(tag("bad"))
    delivery.put(tag("good"))
    assert names(store) == ["good"] and outbox.refused() == ["tag: no such run"] and outbox.waiting() == []
    assert "MLflow refuses a tag, the run goes on: no such run" in capsys.readouterr().err


def test_a_run_that_cannot_be_resumed_and_a_full_disk_are_errors(
    delivery: Delivery, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("no such run")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Status, "deliver", refuse)
    with pytest.raises(ValueError, match="no such run"):
        delivery.put(Status(run="r", status="RUNNING", moment=1))
    monkeypatch.setattr(Tag, "deliver", full)
    with pytest.raises(OSError, match="No space"):
        delivery.put(tag("a"))
    assert outbox.refused() == []


def test_what_goes_away_in_the_middle_of_sending_goes_on_from_there(
    delivery: Delivery, store: Store, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.away = True
    for name in ("a", "b", "c"):
        delivery.put(tag(name))
    store.away = False
    told = store.set_tag

    def once(run: str, name: str, value: str) -> None:
        told(run, name, value)
        store.away = True

    monkeypatch.setattr(store, "set_tag", once)
    assert not delivery.send()
    monkeypatch.undo()
    store.away = False
    assert delivery.send() and names(store) == ["a", "b", "c"]


def test_a_file_is_sent_as_it_was_when_it_was_logged(delivery: Delivery, store: Store, tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("then")
    store.away = True
    delivery.put(File(run="r", path=note, folder=None))
    note.unlink()
    store.away = False
    assert delivery.send() and store.told == [("r", "note.txt", "then")]


def test_nan_survives_the_outbox(outbox: Outbox) -> None:
    outbox.append(Points(run="r", moment=1, step=2, values={"auc": float("nan")}))
    (read,) = outbox.waiting()
    assert isinstance(read, Points) and str(read.values["auc"]) == "nan"


def test_a_run_that_began_later_has_its_real_id_where_it_is_sent(store: Any, outbox: Outbox) -> None:
    outbox.append(tag("a", run="later-1"))
    outbox.remember(Known(runs={"later-1": "real"}))
    outbox.send(store)
    assert store.told == [("real", "a", "A")]


class NamedError(Exception):
    pass


def error_of(module: str, name: str) -> Exception:
    return type(name, (NamedError,), {"__module__": module})("too many 503 error responses")


@pytest.mark.parametrize(
    ("error", "uri", "away"),
    [
        (ConnectionRefusedError(), "http://host", True),
        (error_of("requests.exceptions", "ConnectionError"), "http://host", True),
        (error_of("requests.exceptions", "RetryError"), "http://host", True),
        (error_of("requests.exceptions", "HTTPError"), "http://host", False),
        (error_of("sqlalchemy.exc", "OperationalError"), "postgresql://host/db", True),
        (error_of("sqlalchemy.exc", "OperationalError"), "sqlite:///mlflow.db", False),
        (ValueError("wrong"), "http://host", False),
    ],
)
def test_what_counts_as_away(
    error: Exception, uri: str, away: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    wrapped = RuntimeError("API request failed")
    wrapped.__context__ = error
    assert MlflowStore(tmp_path).is_away(wrapped) is away


def test_the_message_has_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctr.reporting.mlflow_store.SECONDS_BETWEEN_KNOCKS", 0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@127.0.0.1:1/db")
    with pytest.raises(StoreAwayError) as caught, MlflowStore(tmp_path).contact():
        pass
    assert "postgresql://me:…@127.0.0.1:1/db: the MLflow store does not answer" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "entry",
    [Status(run="r", status="FAILED", moment=3), MoveAlias(name="n", alias="champion", version="2", moment=4)],
)
def test_entries_come_back_as_they_were(outbox: Outbox, entry: Any) -> None:
    outbox.append(entry)
    assert outbox.waiting() == [entry]
