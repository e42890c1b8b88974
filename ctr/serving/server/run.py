"""Runs the server: one process, or several on one port; SIGTERM lets it finish what it took."""

from __future__ import annotations

import contextlib
import gc
import ipaddress
import os
import shlex
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from ctr.serving.answering.metrics import SEVERAL_PROCESSES
from ctr.serving.answering.versions import Source
from ctr.serving.server.processes import Processes, listening
from ctr.serving.server.slow_clients import EndsSlowClients
from ctr.serving.settings import ServeConfig
from features.errors import ConfigError, QuadRankError
from features.progress import say

DRAIN_SECONDS = 30
# uvicorn kills a process that says nothing for so long. One that imports on a busy machine says nothing either, and
# with uvicorn's own 5 s it would be killed and started again for ever.
SILENT_SECONDS = 60
TURN_SECONDS = 0.0002


@dataclass(frozen=True)
class MakeApp:
    """Makes a process's app; it travels to the processes of a server."""

    source: Source
    config: ServeConfig
    token: str | None

    def __call__(self) -> Any:
        """The ASGI app of one process, its bundle loaded.

        One of several processes ends with the code of an error that is explained, as a command does.
        """
        from ctr.serving.server.app import Server

        try:
            app = Server(self.source, self.config, self.token).app()
        except QuadRankError as error:
            if SEVERAL_PROCESSES not in os.environ:
                raise
            say(f"error: {error}")
            raise SystemExit(error.exit_code) from None
        keep_pauses_short()
        return app


def keep_pauses_short() -> None:
    """Let Python itself hold up no answer: neither its search for garbage nor a thread that makes another version.

    What is loaded is never garbage, and left out of the search: all of it was looked through again and again. A thread
    that computes gives way to one that answers after a fifth of a millisecond instead of five.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(TURN_SECONDS)


def run_server(
    make_app: MakeApp,
    host: str,
    port: int,
    processes: int,
    announce: Callable[[int], None] = lambda port: None,
    quiet: bool = False,
    connections: int | None = None,
    client_seconds: float = 10.0,
) -> int:
    """Answer until SIGTERM or Ctrl-C; returns 0, or the code of an error that no process of several could begin for.

    Args:
        make_app: of each process.
        host: address to bind; other machines reach it only if this is not a loopback address.
        port: 0 for any that is free.
        processes: each ranks on its own; they share the port and the pages of the mapped item table.
        announce: is told the port once it is bound.
        quiet: no line a request.
        connections: open at the same time in one process; a request over a further one is answered 503. Default any.
        client_seconds: after which a connection is ended on which the head of a request has not come, or whose client
            has not taken an answer.

    Raises:
        ConfigError: an address that cannot be bound.
    """
    protocol: Any = partial(EndsSlowClients, client_seconds)  # makes one for each connection, and travels to processes
    settings = uvicorn.Config(
        make_app,
        host=host,
        port=port,
        factory=True,
        workers=processes,
        loop="uvloop",
        http=protocol,
        ws="none",
        access_log=not quiet,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        timeout_worker_healthcheck=SILENT_SECONDS,
        limit_concurrency=None if connections is None else connections + 1,
    )
    bound = _bound(settings)
    # uvicorn raises a signal again once it has drained; after SIGTERM the command has then done what it should.
    signal.signal(signal.SIGTERM, lambda *_: None)
    # Listening now: whoever reads the address may call it at once, and waits for the bundle.
    sockets = listening(bound, processes, settings.backlog)
    announce(sockets[0].getsockname()[1])
    if processes == 1:
        _end_in_order_without_a_terminal()
        uvicorn.Server(settings).run(sockets=sockets)
        return 0
    with tempfile.TemporaryDirectory(prefix="quadrank-metrics-") as folder:
        os.environ[SEVERAL_PROCESSES] = folder
        supervisor = Processes(settings, sockets)
        supervisor.run()
    return supervisor.failed


def _bound(settings: uvicorn.Config) -> socket.socket:
    """The socket of the address. uvicorn ends with 3 where there is none, which says elsewhere that all is done."""
    try:
        return settings.bind_socket()
    except SystemExit as ended:
        raise ConfigError(
            f"--host {settings.host} --port {settings.port}: cannot be listened on: {ended.__context__}. Name another "
            "address or port, or end the server that has it."
        ) from None


def _end_in_order_without_a_terminal() -> None:
    """Let SIGHUP do what SIGTERM does, unless it is ignored (`nohup`): it would end the process with all that waits."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))


def check_address(host: str, public: bool) -> None:
    """Refuse to be reachable from elsewhere unless that was asked for.

    Raises:
        ConfigError: the address is no loopback address and `--public` was not given.
    """
    loopback = host == "localhost"
    with contextlib.suppress(ValueError):
        loopback = loopback or ipaddress.ip_address(host).is_loopback
    if not loopback and not public:
        raise ConfigError(
            f"--host {host}: other machines could reach it. Say --public if that is meant, behind a proxy that "
            "authenticates; routes that write stay off without a token."
        )


def example(path: Path, host: str, port: int) -> str:
    """A curl line for the shell that works on the bundle's own example."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    address = f"[{shown}]" if ":" in shown else shown
    return f"curl -s {shlex.quote(f'http://{address}:{port}/v1/rank')} -d {shlex.quote(f'@{path}')}"
