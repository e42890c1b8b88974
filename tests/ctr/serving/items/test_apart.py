"""Versions that another process makes: its refusals are those of the rule, and its end is told."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ctr.serving.bundle import open_bundle
from ctr.serving.items import apart
from ctr.serving.items.upsert import Upserted
from features.errors import ConfigError, DataError, NewItemsError, NumericalError

BODY = b'{"items": [{"item": 900}]}'
MADE = Upserted(Path("/bundles/first+items.1"), "first+items.1", 1, 0, 1)


def told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, result: Any) -> dict[str, Any]:
    """What the process says when the rule gives or raises `result`."""

    def rule(*_: Any) -> Upserted:
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr(apart, "upsert_items", rule)
    monkeypatch.setattr(apart.os, "nice", lambda by: by)
    monkeypatch.setattr("sys.stdin", type("Pipe", (), {"buffer": type("Bytes", (), {"read": lambda self: BODY})()})())
    apart.main("/bundles/first", "3")
    return json.loads(capsys.readouterr().out)


def test_a_version_comes_back_whole(copy: Path) -> None:
    version = f"{open_bundle(copy).manifest.model_version}+items.1"
    made = apart.upsert_apart(copy, BODY, 3)
    assert made == Upserted(copy.parent / f"{copy.name}+items.1", version, 1, 0, 1)
    assert open_bundle(made.path).manifest.model_version == version


@pytest.mark.parametrize("kind", [ConfigError, NewItemsError, DataError, NumericalError])
def test_a_refusal_comes_back_as_its_kind(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    said = json.dumps(told(monkeypatch, capsys, kind("no")))
    done = type("Done", (), {"stdout": said.encode(), "stderr": b"", "returncode": 0})()
    monkeypatch.setattr(apart.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(kind) as found:
        apart.upsert_apart(Path("first"), BODY, 3)
    assert type(found.value) is kind and str(found.value) == "no"


def test_requests_come_before_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    given: list[int] = []
    monkeypatch.setattr(apart, "NICENESS", 7)
    monkeypatch.setattr("sys.stdin", type("Pipe", (), {"buffer": type("Bytes", (), {"read": lambda self: BODY})()})())
    monkeypatch.setattr(apart.os, "nice", given.append)
    monkeypatch.setattr(apart, "upsert_items", lambda *_: MADE)
    apart.main("/bundles/first", "3")
    assert given == [7] and json.loads(capsys.readouterr().out)["new"] == 1


def test_nothing_of_the_working_folder_is_imported(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "msgspec.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    assert apart.upsert_apart(copy, BODY, 3).new == 1


def test_a_process_that_ends_by_itself_is_told_with_what_it_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho no memory >&2\nkill -9 $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(RuntimeError, match=r"making a version ended with -9: no memory"):
        apart.upsert_apart(tmp_path, BODY, 3)
