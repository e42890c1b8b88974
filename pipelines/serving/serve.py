"""`quadrank serve`: which bundle, on which address, with how many processes."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console

from ctr.serving.answering.versions import source_of
from ctr.serving.bundle import REQUEST
from ctr.serving.pasts.stores import Stores
from ctr.serving.server.app import token_of
from ctr.serving.server.run import MakeApp, check_address, example, run_server
from ctr.serving.settings import ServeConfig
from pipelines.workspace import Workspace


def serve_bundle(
    bundle: Path | None,
    model: str,
    config: ServeConfig,
    host: str,
    port: int,
    processes: int,
    public: bool,
    token_file: Path | None,
    workspace: Workspace,
    console: Console,
) -> int:
    """Answer until SIGTERM or Ctrl-C; returns the exit code.

    Raises:
        ConfigError: neither or both of bundle and model, an address that others can reach without `public`, or no
            token in the file.
        DataError: no bundle there, or a changed one.
    """
    token = token_of(token_file)
    check_address(host, public)
    # What cannot be opened ends here, and not in each process.
    Stores(config.pasts, lambda outcome: None).close()
    source = source_of(model, bundle, os.environ.get("MLFLOW_TRACKING_URI"), workspace.root / "bundles")
    folder = source.wanted()

    def announce(bound: int) -> None:
        console.print(f"serving {folder.name} on port {bound} of {host}, follow with /metrics; an example:")
        console.print(f"  {example(folder / REQUEST, host, bound)}", soft_wrap=True, highlight=False, markup=False)

    # A request reaches one process, which would roll back alone: several of them follow the pointer.
    if token and processes > 1:
        console.print(
            f"--processes {processes}: /v1/events, /v1/items and /v1/rollback are off, though there is a token. Run a "
            "second server of one process for them, as docs/serving.md shows.",
            style="yellow",
            markup=False,
        )
    make_app = MakeApp(source, config, token if processes == 1 else None)
    return run_server(
        make_app,
        host,
        port,
        processes,
        announce,
        connections=config.max_connections,
        client_seconds=config.receive_seconds,
    )
