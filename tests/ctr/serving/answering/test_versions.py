"""Which version answers: pointers and aliases, versions that fail, rollback, and the thread that looks for the next."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ctr.serving.answering.versions import AliasSource, PointerSource, Versions, source_of
from features.errors import ConfigError, DataError, NumericalError


class Wanted:
    """A source that a test sets."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def wanted(self) -> Path:
        return self.path


def ranker(path: Path) -> Any:
    return SimpleNamespace(bundle=SimpleNamespace(path=path))


A, B, C = Path("/bundles/a"), Path("/bundles/b"), Path("/bundles/c")


def test_a_fault_while_a_version_is_loaded_is_tried_again_and_ends_no_watching():
    faults = [RuntimeError("out of memory"), OSError("disk"), None]
    refused: list[str] = []
    loaded = threading.Event()

    def load(path: Path) -> Any:
        if path == B and (fault := faults.pop(0)):
            raise fault
        if path == B:
            loaded.set()
        return ranker(path)

    source = Wanted(A)
    versions = Versions(source, load, on_refusal=lambda path, reason: refused.append(reason))
    source.path = B
    versions.watch(0.01)
    assert loaded.wait(10)
    versions.close()
    assert versions.current.bundle.path == B and refused == ["out of memory", "disk"]


def test_a_source_that_fails_in_any_way_ends_no_watching():
    faults = [TypeError("null is no answer"), RuntimeError("cut"), DataError("away")]
    refused: list[str] = []
    loaded = threading.Event()

    class Failing(Wanted):
        def wanted(self) -> Path:
            if self.path == B and faults:
                raise faults.pop(0)
            return self.path

    def load(path: Path) -> Any:
        if path == B:
            loaded.set()
        return ranker(path)

    source = Failing(A)
    versions = Versions(source, load, on_refusal=lambda path, reason: refused.append(reason))
    source.path = B
    versions.watch(0.01)
    assert loaded.wait(10)
    versions.close()
    assert versions.current.bundle.path == B and refused == ["null is no answer", "cut", "away"]


def test_each_look_at_the_source_that_succeeds_is_told():
    source, looks = Wanted(A), list[None]()
    versions = Versions(source, ranker, on_look=lambda: looks.append(None))
    assert len(looks) == 1
    versions.refresh()
    assert len(looks) == 2
    source.wanted = lambda: A / 1  # type: ignore[operator, method-assign]
    versions.refresh()
    assert len(looks) == 2, "a look that fails is none"


def test_a_bundle_that_is_wrong_is_tried_once_until_another_is_wanted():
    tries: list[Path] = []

    def load(path: Path) -> Any:
        tries.append(path)
        if path == B:
            raise DataError("changed")
        return ranker(path)

    source = Wanted(A)
    versions = Versions(source, load)
    for wanted in (B, B, A, B, C):
        source.path = wanted
        versions.refresh()
    assert tries == [A, B, B, C] and versions.current.bundle.path == C


def test_after_a_rollback_the_version_that_was_left_answers_when_it_is_wanted_anew():
    source = Wanted(A)
    versions = Versions(source, ranker)
    source.path = B
    assert versions.refresh() and versions.roll_back().bundle.path == A
    assert not versions.refresh()
    source.path = A
    assert not versions.refresh()
    source.path = B
    assert versions.refresh() and versions.current.bundle.path == B


def test_without_a_version_before_there_is_no_rollback():
    with pytest.raises(ConfigError, match="no version before"):
        Versions(Wanted(A), ranker).roll_back()


@pytest.fixture
def tracking_server() -> Iterator[tuple[str, dict[str, Any]]]:
    """An MLflow server of one route, and what it answers: JSON, or these bytes in place of a whole answer."""
    answers: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path)
            if isinstance(found, bytes):
                self.wfile.write(found)
                return
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(json.dumps(found).encode())

        def log_message(self, *_: Any) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", answers
    server.shutdown()
    server.server_close()


def test_an_alias_names_the_bundle_of_its_model_version(tracking_server, tmp_path):
    address, answers = tracking_server
    source = source_of("models:/shop@champion", None, address, tmp_path)
    assert source == AliasSource(address, "shop", "champion", tmp_path / "shop")
    with pytest.raises(DataError, match="models:/shop@champion: the tracking server does not say"):
        source.wanted()
    route = "/api/2.0/mlflow/registered-models/alias?name=shop&alias=champion"
    answers[route] = {"model_version": {"version": "3", "tags": [{"key": "model_version", "value": "run-3"}]}}
    with pytest.raises(DataError, match="'run-3' is not in"):
        source.wanted()
    (tmp_path / "shop" / "run-3").mkdir(parents=True)
    assert source.wanted() == tmp_path / "shop" / "run-3"
    answers[route] = {"model_version": {"version": "4", "tags": [{"key": "model_version", "value": "../shop/run-3"}]}}
    assert source.wanted() == tmp_path / "shop" / "run-3", "no path leads out of the folder of bundles"


ALIAS = "/api/2.0/mlflow/registered-models/alias?name=shop&alias=champion"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 200 OK\r\ncontent-length: 500\r\n\r\n{",
        b"no status\r\n\r\n",
        b"",
        b"HTTP/1.0 200 OK\r\n\r\n" + b"[" * 100_000,
        b"HTTP/1.0 200 OK\r\n\r\n\xff",
        b"HTTP/1.0 200 OK\r\n\r\nnull",
        {"model_version": [3]},
        {"model_version": {"tags": None}},
        {"model_version": {"tags": [{"key": "model_version", "value": 3}]}},
    ],
)
def test_an_answer_that_is_none_is_a_data_error(tracking_server, tmp_path, answer):
    address, answers = tracking_server
    answers[ALIAS] = answer
    with pytest.raises(DataError, match="models:/shop@champion: the tracking server does not say"):
        AliasSource(address, "shop", "champion", tmp_path).wanted()


@pytest.mark.parametrize(
    ("model", "bundle", "server", "message"),
    [
        ("", None, "http://h", "either --bundle"),
        ("models:/shop@champion", A, "http://h", "either --bundle"),
        ("models:/shop/3", None, "http://h", "names no alias"),
        ("shop@champion", None, "http://h", "names no alias"),
        ("models:/shop@champion", None, "sqlite:///mlflow.db", "needs an MLflow server"),
        ("models:/shop@champion", None, None, "needs an MLflow server"),
    ],
)
def test_what_names_no_bundle_is_refused(model, bundle, server, message):
    with pytest.raises(ConfigError, match=message):
        source_of(model, bundle, server, Path())


def test_a_folder_needs_no_server():
    assert source_of("", A, None, Path()) == PointerSource(A)


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


def test_an_upserted_version_answers_and_the_source_names_it():
    source = Moving(A)
    versions = Versions(source, ranker)
    assert versions.upsert(made_at(B))[1] and versions.current.bundle.path == B == source.path
    assert not versions.refresh()
    source.path = C
    assert versions.refresh() and versions.current.bundle.path == C


def test_where_the_source_cannot_be_moved_an_upserted_version_answers_until_another_is_wanted():
    source = Standing(A)
    versions = Versions(source, ranker)
    for path in (B, C):
        assert not versions.upsert(made_at(path))[1]
        assert not versions.refresh() and versions.current.bundle.path == path
    assert versions.roll_back().bundle.path == B and not versions.refresh()
    source.path = Path("/bundles/d")
    assert versions.refresh()
    # What it stood for is a version like any other again.
    source.path = A
    assert versions.refresh() and versions.current.bundle.path == A


def test_a_version_that_is_wanted_comes_before_an_upsert():
    """Items are added to the new training's bundle, not to the one that it replaces."""
    source = Moving(A)
    versions = Versions(source, ranker)
    source.path = B
    seen: list[Path] = []

    def make(before: Path) -> Any:
        seen.append(before)
        return SimpleNamespace(path=C)

    assert versions.upsert(make)[1] and seen == [B] and versions.previous.bundle.path == B  # type: ignore[union-attr]


def test_a_new_bundle_that_is_refused_stays_named_after_an_upsert():
    """Others may be able to load it: the pointer is not taken away from it."""
    source = Moving(A)

    def load(path: Path) -> Any:
        if path == B:
            raise OSError("no memory")
        return ranker(path)

    versions = Versions(source, load)
    source.path = B
    assert not versions.upsert(made_at(C))[1] and source.path == B and versions.current.bundle.path == C


class Away(Standing):
    """An alias that is away for all looks after so many."""

    looks = 100

    def wanted(self) -> Path:
        self.looks -= 1
        if self.looks < 0:
            raise DataError("away")
        return self.path


@pytest.mark.parametrize("looks", [0, 1], ids=["before", "meanwhile"])
def test_while_the_source_is_away_an_upserted_version_answers_and_stays_when_it_is_back(looks):
    source = Away(A)
    versions = Versions(source, ranker)
    source.looks = looks
    assert not versions.upsert(made_at(B))[1] and versions.current.bundle.path == B
    source.looks = 100
    assert not versions.refresh(), "it stands for what the source named last, and names still"
    source.path = C
    assert versions.refresh() and versions.current.bundle.path == C


def test_where_the_source_fails_to_move_an_upserted_version_answers_and_the_log_says_why(caplog):
    class Full(Wanted):
        def move(self, before: Path, after: Path) -> bool:
            raise OSError("no space left")

    versions = Versions(Full(A), ranker)
    assert not versions.upsert(made_at(B))[1] and versions.current.bundle.path == B
    assert "b answers, but a restart will not find it: no space left" in caplog.text and not versions.refresh()


def test_an_upserted_version_that_cannot_be_loaded_is_removed(tmp_path):
    def make(before: Path) -> Any:
        (tmp_path / "b" / "columns").mkdir(parents=True)
        return SimpleNamespace(path=tmp_path / "b")

    def load(path: Path) -> Any:
        if path != A:
            raise MemoryError
        return ranker(path)

    versions = Versions(Moving(A), load)
    with pytest.raises(MemoryError):
        versions.upsert(make)
    assert versions.current.bundle.path == A and not list(tmp_path.iterdir())


@pytest.mark.parametrize("fault", [ConfigError("1e38 gives no score"), None], ids=["refused", "ranked"])
def test_a_recent_request_that_a_new_version_refuses_bars_it_not(fault, monkeypatch):
    """A number that the model before bore may be too far for the new one: that is the request's fault."""
    scored: list[Any] = []

    def load(path: Path) -> Any:
        def scores(encoded: Any) -> None:
            scored.append(encoded)
            if fault and encoded == 1:
                raise fault

        encoder = SimpleNamespace(contract=None)
        return SimpleNamespace(
            bundle=SimpleNamespace(path=path), encoder=encoder, encode=lambda one: one, scores=scores
        )

    monkeypatch.setattr("ctr.serving.answering.versions.parse_request", lambda raw, *_: raw["id"])
    source = Wanted(A)
    versions = Versions(source, load)
    versions.remember({"id": 1})
    versions.remember({"id": 2})
    source.path = B
    assert versions.refresh() and versions.current.bundle.path == B and scored == [1, 2]


def test_a_version_that_gives_a_recent_request_no_score_is_refused(monkeypatch):
    def load(path: Path) -> Any:
        def scores(encoded: Any) -> None:
            raise NumericalError("no score")

        encoder = SimpleNamespace(contract=None)
        return SimpleNamespace(
            bundle=SimpleNamespace(path=path), encoder=encoder, encode=lambda one: one, scores=scores
        )

    monkeypatch.setattr("ctr.serving.answering.versions.parse_request", lambda raw, *_: raw)
    source = Wanted(A)
    versions = Versions(source, load)
    versions.remember({})
    source.path = B
    assert not versions.refresh() and versions.current.bundle.path == A


def test_an_upsert_that_fails_changes_nothing():
    source = Moving(A)
    versions = Versions(source, ranker)

    def broken(before: Path) -> Any:
        raise DataError("no such set")

    with pytest.raises(DataError, match="no such set"):
        versions.upsert(broken)
    assert versions.current.bundle.path == A == source.path and versions.previous is None
