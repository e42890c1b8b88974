"""Writes raw files for the tests of sources."""

from __future__ import annotations

from pathlib import Path


def put_local(path: str, content: bytes) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(content)
