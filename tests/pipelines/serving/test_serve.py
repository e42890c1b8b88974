"""What `quadrank serve` says before it serves."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ctr.serving.bundle import MANIFEST
from ctr.serving.settings import ServeConfig
from pipelines.serving.serve import serve_bundle
from pipelines.workspace import Workspace


@pytest.mark.parametrize(("token", "processes", "told"), [("t", 2, True), ("t", 1, False), ("", 2, False)])
def test_a_token_that_several_processes_pass_over_is_told(
    token: str, processes: int, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / MANIFEST).touch()
    monkeypatch.setenv("QUADRANK_TOKEN", token)
    tokens: list[Any] = []

    def run_server(make_app: Any, *_: Any, **__: Any) -> int:
        tokens.append(make_app.token)
        return 0

    monkeypatch.setattr("pipelines.serving.serve.run_server", run_server)
    said = io.StringIO()
    console = Console(file=said, width=1000)
    where = "127.0.0.1", 0
    serve_bundle(tmp_path, "", ServeConfig(), *where, processes, False, None, Workspace(tmp_path), console)
    assert tokens == ["t" if processes == 1 else None]
    assert ("/v1/events, /v1/items and /v1/rollback are off" in said.getvalue()) == told
