"""`--help` of every command: each option says what it is, each command gives an example that works."""

from __future__ import annotations

import atexit
import gc
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from pipelines.cli.commands import app, main
from tests.command_lines import Command, problem

ROOT = Path(__file__).parents[3]
WIDTH = 53  # what the list of commands has room for on a terminal of 80 columns


def commands(found: Any, name: str) -> Iterator[tuple[str, Any]]:
    if hasattr(found, "commands"):
        for child, command in found.commands.items():
            yield from commands(command, f"{name} {child}")
    else:
        yield name, found


COMMANDS = dict(commands(typer.main.get_command(app), "quadrank"))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is(name: str) -> None:
    for parameter in COMMANDS[name].params:
        text = getattr(parameter, "help", None) or ""
        assert text[:1].isupper() and text.endswith("."), f"{name} {parameter.opts}: {text!r}"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_does_and_gives_an_example(name: str) -> None:
    command = COMMANDS[name]
    first = (command.help or "").splitlines()[0]
    assert first[:1].isupper() and first.endswith((".", ":")), first
    assert len(first) <= WIDTH
    example = (command.epilog or "").removeprefix("Example: ")
    assert example.startswith(f"{name} "), f"{name}: {example!r}"
    assert problem(Command(name, tuple(shlex.split(example)), whole=True)) is None


def test_a_command_ends_without_a_last_search_for_circles(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is frozen is not searched; before the end nothing is, or memory would grow."""
    at_the_end: list[Any] = []
    monkeypatch.setattr(atexit, "register", at_the_end.append)
    frozen = gc.get_freeze_count()
    with pytest.raises(SystemExit):
        main(["--help"])
    assert gc.freeze in at_the_end and gc.get_freeze_count() == frozen


README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md")]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_named_in_the_readme_or_on_a_page_of_its_command(name: str) -> None:
    texts = [README, *(text for text in PAGES if re.search(rf"{name}\b", text))]
    options = [[*one.opts, *one.secondary_opts] for one in COMMANDS[name].params if one.opts[0][:1] == "-"]
    named = [rf"({'|'.join(either)})(?![\w-])" for either in options]
    assert not [one for one in named if not any(re.search(one, text) for text in texts)]
