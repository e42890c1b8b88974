"""The MLflow store that runs and registered models lie in: where it is, and a client of it.

It is `mlflow.db` (SQLite) and `mlartifacts/` in the work folder, or whatever `MLFLOW_TRACKING_URI` names. MLflow is
imported on first use: it takes seconds, which `quadrank --help` should not.

A store that does not answer is a `StoreAwayError`, within seconds: MLflow's own client tries for minutes.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from features.errors import ConfigError, StoreAwayError

# Of MLflow's HTTP client, where the user's environment says nothing else: seconds a request, tries after the first.
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
# Of the first contact, whatever the environment says. Whether anyone answers at all is known after nine seconds, and
# before MLflow is imported, which takes as long on a busy machine. Then two requests have what is left of twelve.
FIRST_TIMEOUT, KNOCKS, SECONDS_BETWEEN_KNOCKS = 4, 2, 1
SECONDS_TO_KNOCK, SECONDS_OF_FIRST_CONTACT = 9.0, 12.0
NOBODY_BEHIND = (502, 503, 504)  # what a proxy answers for a server that is away
# Ports of databases that MLflow can use, where the address names none.
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
# Errors of the libraries below MLflow that say that nobody answers, or not now: by package and name, since these
# packages are MLflow's and not ours to import.
AWAY = {
    "requests": {"ConnectionError", "Timeout", "RetryError", "ChunkedEncodingError"},
    "urllib3": {"HTTPError"},
    "botocore": {"ConnectionError", "HTTPClientError"},
    "sqlalchemy": {"OperationalError", "InterfaceError", "TimeoutError"},
}
AWAY_CODES = {"TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"}
# HTTP answers below 500 that mean the same; 500 and above all do.
AWAY_STATUS = (408, 429)


class MlflowStore:
    """Opens the store when it is first used.

    Args:
        root: work folder that holds the default store.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.root / 'mlflow.db'}"

    @cached_property
    def mlflow(self) -> Any:
        """The package, without notes, progress bars and telemetry: a scheduled job sends nothing out."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        import mlflow

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        return mlflow

    @cached_property
    def client(self) -> Any:
        """The client of an initialised store, after a first contact of seconds.

        Raises:
            StoreAwayError: nobody answers there.
            ConfigError: the store cannot be used.
        """
        registry = os.environ.get("MLFLOW_REGISTRY_URI") or self.uri
        began = time.monotonic()
        try:
            _knock_in_time([self.uri, registry])
        except OSError as error:
            raise StoreAwayError(self._away(error)) from None
        patience = _first_contact(time.monotonic() - began)
        mlflow = self.mlflow
        try:
            # Processes that meet a fresh SQLite store at once break each other's migration.
            with self._lock(), _environment(patience):
                self._make_default()
                client = mlflow.MlflowClient(self.uri, registry)
                client.search_experiments(max_results=1)
                client.search_registered_models(max_results=1)
        except Exception as error:
            if self.is_away(error):
                raise StoreAwayError(self._away(error)) from None
            if not isinstance(error, mlflow.exceptions.MlflowException):
                raise
            message = error.message.replace(self.uri, self.shown)
            raise ConfigError(
                f"{self.shown}: the MLflow store cannot be used: {message} Start the server, correct "
                "MLFLOW_TRACKING_URI, or unset it to keep runs in mlflow.db."
            ) from None
        return client

    def _make_default(self) -> None:
        """Make the default store's file aside: MLflow takes no store whose making a kill left half done."""
        file = self.root / "mlflow.db"
        if self.uri != f"sqlite:///{file}" or file.exists():
            return
        fresh = file.with_name("mlflow.db.new")
        fresh.unlink(missing_ok=True)
        client = self.mlflow.MlflowClient(f"sqlite:///{fresh}", f"sqlite:///{fresh}")
        client.search_experiments(max_results=1)
        client.search_registered_models(max_results=1)
        fresh.replace(file)

    @property
    def is_served(self) -> bool:
        """Whether it is behind a network, where it may be away, and not a file."""
        return not self.uri.startswith("sqlite")

    @property
    def shown(self) -> str:
        """Its address, without a password."""
        return _without_password(self.uri)

    @contextmanager
    def contact(self) -> Iterator[Any]:
        """The client, for calls inside the block.

        Raises:
            StoreAwayError: nobody answers there any more.
            ConfigError: the store cannot be used.
        """
        try:
            yield self.client
        except StoreAwayError:
            raise
        except Exception as error:
            if self.is_away(error):
                self.__dict__.pop("client", None)  # the next call begins with a first contact, which is short
                raise StoreAwayError(self._away(error)) from None
            # MLflow explains its own refusals. This one is of what holds the files of runs, such as S3.
            if not isinstance(error, self.mlflow.exceptions.MlflowException) and _http_status(error) is not None:
                raise ConfigError(
                    f"{self.shown}: where MLflow keeps files of runs refuses one ({_reason(error)}). Correct the "
                    "credentials or rights of the artifact store, and start the same command again."
                ) from None
            raise

    def artifacts(self, uri: str) -> Any:
        """The files below an address of artifacts, as MLflow reaches them: list, download, delete."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        return get_artifact_repository(uri, tracking_uri=self.uri)

    def is_away(self, error: BaseException) -> bool:
        """Whether an error says that the store does not answer, and not that it refuses what it was asked."""
        for seen in _with_causes(error):
            if isinstance(seen, ConnectionError | TimeoutError) or getattr(seen, "error_code", None) in AWAY_CODES:
                return True
            for kind in type(seen).__mro__:
                package = kind.__module__.partition(".")[0]
                if kind.__name__ in AWAY.get(package, ()):
                    # SQLite is a file: it answers, but for a moment in which another process writes.
                    of_a_file = package == "sqlalchemy" and self.uri.startswith("sqlite")
                    return not of_a_file or "locked" in str(seen)
        status = _http_status(error)
        return status is not None and (status >= 500 or status in AWAY_STATUS)

    def _away(self, error: BaseException) -> str:
        return (
            f"{self.shown}: the MLflow store does not answer ({_reason(error)}). Start the server, or "
            "correct MLFLOW_TRACKING_URI, and start the same command again; `--set train.tracking=later` trains "
            "without it and sends what was logged later."
        )

    def experiment_id(self, name: str) -> str:
        """The id of an experiment, which is made when it does not exist. Raises ConfigError where it was deleted."""
        client = self.client
        with self._lock():
            found = client.get_experiment_by_name(name)
            if found is None:
                served = self.uri.startswith(("http://", "https://", "databricks"))
                # A server knows where artifacts lie; a bare database would take the current folder.
                location = None if served else (self.root / "mlartifacts" / name).as_uri()
                return str(client.create_experiment(name, artifact_location=location))
        if found.lifecycle_stage != "active":
            raise ConfigError(
                f"{self.shown}: experiment {name!r} was deleted. Bring it back with `mlflow "
                f"experiments restore --experiment-id {found.experiment_id}`."
            )
        return str(found.experiment_id)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        folder = self.root / ".cache"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "mlflow-store.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables as they are inside the block alone."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _first_contact(spent: float) -> dict[str, str]:
    """Settings of MLflow's client for the two requests of a first contact whose knock took so many seconds."""
    left = (SECONDS_OF_FIRST_CONTACT - spent) / 2
    return {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(min(max(int(left), 1), FIRST_TIMEOUT)),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }


def _knock_in_time(uris: Iterable[str]) -> None:
    """Knock at each address. Raises OSError where one does not answer; all together have nine seconds.

    In a thread of its own, since a name that nobody resolves and an address of several machines have no time limit.
    """
    found: list[OSError | None] = []

    def knock() -> None:
        try:
            for uri in set(uris):
                _knock(uri)
            found.append(None)
        except OSError as error:
            found.append(error)

    thread = threading.Thread(target=knock, daemon=True, name="knock")
    thread.start()
    thread.join(SECONDS_TO_KNOCK)
    error = found[0] if found else TimeoutError(f"no answer within {SECONDS_TO_KNOCK:.0f} s")
    if error is not None:
        raise error


def _knock(uri: str) -> None:
    """Look whether a server answers at all; a file always does. Raises OSError where nobody answers, twice."""
    for tries_left in reversed(range(KNOCKS)):
        try:
            if uri.startswith(("http://", "https://")):
                _ask(uri)
            else:
                _connect(uri)
        except OSError:
            if not tries_left:
                raise
            time.sleep(SECONDS_BETWEEN_KNOCKS)
        else:
            return


def _ask(uri: str) -> None:
    """Any answer is a sign of life, a refusal and a wrong certificate too: MLflow's client then says what is wrong."""
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=FIRST_TIMEOUT).close()
    except urllib.error.HTTPError as answer:
        if answer.code in NOBODY_BEHIND:
            raise ConnectionError(f"HTTP {answer.code}") from None
    except urllib.error.URLError as error:
        if not isinstance(error.reason, ssl.SSLError):
            raise ConnectionError(error.reason) from None
    except TimeoutError:
        # A connection that is refused, or that nobody takes, is told as such above.
        raise TimeoutError(
            f"it takes connections, and has not answered within {FIRST_TIMEOUT} s: it is slow, or hangs"
        ) from None


def _connect(uri: str) -> None:
    """Open a connection to a database server, and close it. MLflow's own client would try for a minute and a half."""
    parts = urlsplit(uri)
    kind = parts.scheme.partition("+")[0]
    if parts.hostname and kind in PORTS:
        address = (parts.hostname, parts.port or PORTS[kind])
        socket.create_connection(address, timeout=FIRST_TIMEOUT).close()


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it was raised from or while handling."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def _http_status(error: BaseException) -> int | None:
    """The HTTP status that a client of an artifact store was answered with; None where its error tells of none."""
    for seen in _with_causes(error):
        response = getattr(seen, "response", None)
        if isinstance(response, Mapping):  # of botocore
            found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            found = getattr(response, "status_code", None) or getattr(seen, "status_code", None)
        if isinstance(found, int):
            return found
    return None


def _reason(error: BaseException) -> str:
    """The first line of what an error says."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _without_password(uri: str) -> str:
    parts = urlsplit(uri)
    return uri.replace(f":{parts.password}@", ":…@") if parts.password else uri
