"""The table of `make mutants` names modules and tests that exist."""

from __future__ import annotations

import tomllib

import pytest

from tests.documents import ROOT
from tests.mutation.run import TABLE, main

MODULES = {name: part for name, part in tomllib.loads(TABLE.read_text(encoding="utf-8")).items() if name != "sample"}


def test_every_module_exists():
    assert [name for name in MODULES if not (ROOT / name).is_file()] == []


def test_every_pattern_of_tests_finds_a_file():
    patterns = {pattern for part in MODULES.values() for pattern in part["tests"]}
    assert [pattern for pattern in sorted(patterns) if not list(ROOT.glob(pattern))] == []


def test_the_command_shows_its_options(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["run", "--help"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0 and "--sample" in capsys.readouterr().out
