"""The version that answers: taken from a pointer or an alias, replaced while the server runs, and taken back."""

from __future__ import annotations

import base64
import http.client
import json
import logging
import os
import shutil
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ctr.serving.answering.every import Every
from ctr.serving.bundle import folder_of
from ctr.serving.items.upsert import Upserted
from ctr.serving.ranker import Ranker
from features.encoding.request import Limits, parse_request
from features.errors import ConfigError, DataError, QuadRankError
from features.store.pointer import move_pointer

ALIAS_TIMEOUT = 5.0  # seconds
log = logging.getLogger("quadrank.serve")
Files = tuple[tuple[str, int, int], ...]  # name, size and time of change


class Source(Protocol):
    """Says which bundle folder is wanted now."""

    def wanted(self) -> Path:
        """Raises DataError where it cannot be told."""

    def move(self, before: Path, after: Path) -> bool:
        """Want `after` from now on if `before` is wanted; whether a server that starts later finds it so."""


@dataclass(frozen=True)
class PointerSource:
    """A bundle folder, or a pointer to one (`bundles/NAME/CURRENT`)."""

    path: Path

    def wanted(self) -> Path:
        """The folder that the pointer names now."""
        return folder_of(self.path)

    def move(self, before: Path, after: Path) -> bool:
        """Move the pointer; a folder cannot be moved."""
        return move_pointer(self.path, before, after)


@dataclass(frozen=True)
class AliasSource:
    """`models:/NAME@alias` of an MLflow server, asked by its REST call: MLflow itself is not imported.

    Credentials are those of MLflow's own environment variables.

    Args:
        server: address of the tracking server, `http://…`.
        name, alias: of the registered model.
        bundles: folder that holds its bundles by version.
    """

    server: str
    name: str
    alias: str
    bundles: Path

    def wanted(self) -> Path:
        """The bundle folder of the model version that the alias names now."""
        query = urllib.parse.urlencode({"name": self.name, "alias": self.alias})
        address = f"{self.server.rstrip('/')}/api/2.0/mlflow/registered-models/alias?{query}"
        try:
            with urllib.request.urlopen(_with_credentials(address), timeout=ALIAS_TIMEOUT) as answer:
                bundle = _bundle_of(json.load(answer))
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
            raise DataError(f"models:/{self.name}@{self.alias}: the tracking server does not say: {error!r}") from None
        folder = self.bundles / Path(bundle).name
        if not bundle or not folder.is_dir():
            raise DataError(
                f"models:/{self.name}@{self.alias}: its bundle {bundle!r} is not in {self.bundles}. Copy it there, or "
                "download it from the registry."
            )
        return folder.resolve()

    def move(self, before: Path, after: Path) -> bool:
        """An alias names registered versions alone."""
        return False


def files_of(folder: Path) -> Files:
    """Names, sizes and times of change of the files of a bundle: what tells that it is no longer as it was."""
    try:
        files = [(file, file.stat()) for file in sorted(folder.rglob("*")) if file.is_file()]
    except OSError:  # it changes at this moment
        return ()
    return tuple((str(file), state.st_size, state.st_mtime_ns) for file, state in files)


def _with_credentials(address: str) -> urllib.request.Request:
    """A request with the credentials that MLflow would send.

    Raises:
        ValueError: they cannot be sent.
    """
    user, password, token = (os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD", "TOKEN"))
    request = urllib.request.Request(address)
    if user and password:
        credentials = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    elif token:
        credentials = f"Bearer {token}"
    else:
        return request
    if not credentials.isascii() or not credentials.isprintable():
        raise ValueError("MLFLOW_TRACKING_TOKEN is no token: it holds characters that no header may have")
    request.add_unredirected_header("Authorization", credentials)  # to this server alone
    return request


def _bundle_of(answer: Any) -> str:
    """The bundle that a model version's tags name; empty where they name none. Raises ValueError for another answer."""
    try:
        tags = {tag["key"]: tag["value"] for tag in answer["model_version"].get("tags", [])}
        return str.strip(tags.get("model_version", ""))
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"its answer holds no model version: {str(answer)[:200]}") from None


def source_of(model: str, bundle: Path | None, server: str | None, bundles: Path) -> Source:
    """What `--bundle` or `--model models:/NAME@alias` asks for.

    Raises:
        ConfigError: neither or both, a model that names no alias, or an alias without an MLflow server.
    """
    if bool(model) == (bundle is not None):
        raise ConfigError("Give either --bundle DIR or --model models:/NAME@ALIAS.")
    if bundle is not None:
        return PointerSource(bundle)
    name, at, alias = model.removeprefix("models:/").partition("@")
    if not model.startswith("models:/") or not at or not name or not alias:
        raise ConfigError(f"--model: {model!r} names no alias; write models:/NAME@ALIAS, e.g. models:/shop@champion.")
    if not server or not server.startswith(("http://", "https://")):
        raise ConfigError(
            "--model needs an MLflow server: set MLFLOW_TRACKING_URI=http://HOST:PORT, or give "
            "--bundle bundles/NAME/CURRENT, which follows the same promotions."
        )
    return AliasSource(server, name, alias, bundles / name)


class Versions:
    """The ranker that answers, the one before it, and their replacement.

    A new version is verified, replays its golden requests and ranks recent requests before it answers; one that fails
    is refused, and the one that answers stays. A wrong bundle is passed over until another one is wanted or its files
    have changed, and one that a rollback left until another one is wanted.
    The switch is one assignment: a request that began with a version ends with it.

    Args:
        source: says which bundle is wanted.
        load: opens and verifies it.
        warm_up: how many recent requests are kept and ranked by a new version.
        on_swap: called with the new version, just before it answers, and the seconds it took.
        on_refusal: called with the path of a version that failed and the reason.
        on_untold: called with the reason where the source cannot say which bundle is wanted.
        on_look: called whenever the source has said which bundle is wanted.
    """

    def __init__(
        self,
        source: Source,
        load: Callable[[Path], Ranker],
        warm_up: int = 32,
        on_swap: Callable[[Ranker, float], None] = lambda ranker, seconds: None,
        on_refusal: Callable[[Path, str], None] = lambda path, reason: None,
        on_untold: Callable[[str], None] = lambda reason: None,
        on_look: Callable[[], None] = lambda: None,
    ) -> None:
        self._source = source
        self._load = load
        self._recent: deque[dict[str, Any]] = deque(maxlen=warm_up)
        self._on_swap, self._on_refusal = on_swap, on_refusal
        self._on_untold, self._on_look = on_untold, on_look
        self._making = threading.Lock()  # of who asks the source and loads: it takes seconds
        self._switching = threading.Lock()  # of what is read and written below: nobody keeps it for long
        self._left: set[Path] = set()  # by rollbacks, since another version than these was wanted
        self._refused: tuple[Path, Files] | None = None  # the wanted one that failed, as it was then
        self._stands_for: Path | None = None  # what is wanted while a version made from it answers
        self._looking = Every("versions", self.refresh)
        began = time.perf_counter()
        self.current = load(self._look())
        self.previous: Ranker | None = None
        on_swap(self.current, time.perf_counter() - began)

    def remember(self, request: dict[str, Any]) -> None:
        """Keep an answered request for the warm-up of the next version."""
        self._recent.append(request)

    def refresh(self) -> bool:
        """Replace the version if another one is wanted; whether it was."""
        with self._making:
            return self._refresh()

    def upsert(self, make: Callable[[Path], Upserted]) -> tuple[Upserted, bool]:
        """Make a version from the one that answers, and let it answer.

        Where a rollback brings another one back meanwhile, it is made from that.

        Args:
            make: publishes the new version of a bundle folder.

        Returns:
            The new version, and whether the source names it from now on. Where it does not, the version answers until
            another one is wanted, or the server ends.

        Raises:
            What `make` raises, and errors of loading; the version before answers on.
        """
        with self._making:
            self._refresh()
            while True:
                before = self.current
                made = make(before.bundle.path)
                began = time.perf_counter()
                try:
                    ranker = self._load(made.path)
                    self._warm(ranker)
                except BaseException:
                    shutil.rmtree(made.path, ignore_errors=True)  # no pointer and no answer names it
                    raise
                kept = self._answer_for(before, ranker, began)
                if kept is not None:
                    return made, kept
                shutil.rmtree(made.path, ignore_errors=True)

    def roll_back(self) -> Ranker:
        """Let the version before answer again, until another one than now is wanted; it waits for no other version.

        Raises:
            ConfigError: there is none.
        """
        with self._switching:
            if self.previous is None:
                raise ConfigError("There is no version before this one: the server has answered with one version only.")
            self._left.add(self.current.bundle.path)
            self._on_swap(self.previous, 0.0)
            self.current, self.previous = self.previous, self.current
            return self.current

    def watch(self, seconds: float) -> None:
        """Begin to look for another version every so many seconds, in a thread of its own."""
        self._looking.start(seconds)

    def close(self) -> None:
        """End the watching."""
        self._looking.close()

    def _look(self) -> Path:
        self._named = self._source.wanted()
        self._on_look()
        return self._named

    def _answer_for(self, before: Ranker, ranker: Ranker, began: float) -> bool | None:
        """Let an upserted version answer; whether the source names it, None where `before` no longer answers."""
        try:
            wanted = self._look()
        except Exception as error:
            self._on_untold(str(error))
            log.warning("%s: a restart may not find it", ranker.bundle.path)
            wanted = None
        with self._switching:
            if self.current is not before:
                return None
            kept = wanted == before.bundle.path and self._moved(before.bundle.path, ranker.bundle.path)
            if kept:
                self._stands_for = None
            elif self._named == before.bundle.path:
                self._stands_for = before.bundle.path
            self._switch(ranker, began)
            return kept

    def _moved(self, before: Path, after: Path) -> bool:
        try:
            return self._source.move(before, after)
        except Exception as error:
            log.warning("%s answers, but a restart will not find it: %s", after, error)
            return False

    def _refresh(self) -> bool:
        try:
            wanted = self._look()
        except Exception as error:
            # Whatever it is, the source may say it at the next look.
            self._on_untold(str(error))
            return False
        with self._switching:
            if wanted in self._left:
                return False
            self._left.clear()
            if wanted in (self.current.bundle.path, self._stands_for):
                self._refused = None
                return False
        found = wanted, files_of(wanted)
        if found == self._refused:
            return False
        began = time.perf_counter()
        try:
            ranker = self._load(wanted)
            self._warm(ranker)
        except Exception as error:
            # A wrong bundle stays wrong, unless it was being copied; what the machine lacked (memory, a disk) may be
            # there at the next look.
            self._refused = found if isinstance(error, QuadRankError) else None
            self._on_refusal(wanted, str(error))
            return False
        self._refused = None
        with self._switching:
            self._left.clear()  # what a rollback left meanwhile: another one was wanted since
            if wanted == self.current.bundle.path:  # a rollback brought it back meanwhile
                return False
            self._stands_for = None
            self._switch(ranker, began)
            return True

    def _switch(self, ranker: Ranker, began: float) -> None:
        self._on_swap(ranker, time.perf_counter() - began)  # it gets its counters before it answers
        self.previous, self.current = self.current, ranker

    def _warm(self, ranker: Ranker) -> None:
        for raw in list(self._recent):
            try:
                request = parse_request(raw, ranker.encoder.contract, Limits())
                ranker.scores(ranker.encode(request))
            except ConfigError:
                continue  # the new contract reads other columns, or the new model bears no number so far
