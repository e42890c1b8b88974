"""Commands that pages, YAML heads and messages name, held to the command line and the Makefile as they are."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import typer

from pipelines.cli.commands import app
from tests.documents import PAGES, ROOT, codes, shell_blocks

QUADRANK = {"quadrank", ".venv/bin/quadrank"}
GROUPS = {"bench", "items"}  # commands that have commands of their own
# What `quadrank init` writes: a page and a Makefile of its own.
TEMPLATE = ROOT / "pipelines/project/template"
MAKEFILES = [ROOT / "Makefile", TEMPLATE / "Makefile"]
PLACEHOLDER = re.compile(r"…|[<{*]|yours|NAME|FOLDER|\b[A-Z]\b")


@dataclass(frozen=True)
class Command:
    """One command line; `whole`: with every option that it needs, as it stands to be copied."""

    origin: str
    words: tuple[str, ...]
    whole: bool
    makefile: Path = MAKEFILES[0]

    @property
    def text(self) -> str:
        return shlex.join(self.words)


def commands_of(origin: str, text: str, whole: bool, makefile: Path = MAKEFILES[0]) -> Iterator[Command]:
    """The commands of ours in a piece of shell: comments, prompts and `[…]` around options taken away."""
    text = re.sub(r"\\\n\s*", " ", text)
    for line in text.splitlines():
        line = re.sub(r"\[(--[^\]]*)\]", r"\1", line.removeprefix("$ "))
        for part in re.split(r"\s&&\s|;\s", line):
            try:
                words = shlex.split(part, comments=True)
            except ValueError:
                continue
            if words and (words[0] in QUADRANK or words[0] == "make"):
                yield Command(origin, tuple(words), whole, makefile)


def written_in_blocks() -> list[Command]:
    return [
        command
        for page in PAGES
        for code in shell_blocks(page)
        for command in commands_of(code.origin, code.text, whole=True)
    ]


def written_inline() -> list[Command]:
    return [
        command
        for page in PAGES
        for code in codes(page)
        if code.language is None
        for command in commands_of(code.origin, code.text.replace("\n", " "), whole=False)
    ]


def of_projects() -> list[Command]:
    """Shell blocks of the page that `quadrank init` writes, against the Makefile that it writes."""
    return [
        command
        for code in shell_blocks(TEMPLATE / "README.md")
        for command in commands_of(code.origin, code.text, whole=True, makefile=TEMPLATE / "Makefile")
    ]


def recipes() -> list[Command]:
    """Lines `$(QUADRANK) …` of the Makefiles: X for what make and the shell fill in, and what `$(if …)` may add."""
    found = []
    for makefile in MAKEFILES:
        for number, line in enumerate(makefile.read_text(encoding="utf-8").splitlines(), 1):
            if line.startswith("\t") and "$(QUADRANK)" in line:
                recipe = line.partition("$(QUADRANK)")[2].replace('"$$@"', "")
                while re.search(r"\$\([^()]*\)", recipe):
                    recipe = re.sub(r"\$\((?:if [^(),]*,([^(),]*)|[^()]*)\)", lambda found: found[1] or "X", recipe)
                found += commands_of(f"{makefile.relative_to(ROOT)}:{number}", f"quadrank {recipe}", whole=True)
    return found


def heads_of_yaml() -> list[Command]:
    """Comment lines `#   quadrank …` and `#   make …`; what follows two spaces is explanation."""
    found = []
    for path in sorted((ROOT / "conf").rglob("*.yaml")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if match := re.match(r"#   ((?:quadrank|make) .*?)(?:  |$)", line):
                found += commands_of(f"{path.relative_to(ROOT)}:{number}", match[1], whole=True)
    return found


def messages() -> list[Command]:
    """`quadrank …` and `make …` in strings and docstrings of the packages: command and options alone."""
    found = []
    for package in ("features", "ctr", "pipelines"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                for name, rest in re.findall(r"\bquadrank ([a-z][a-z-]*)\b([^`\n#]*)", _text(node)):
                    options = re.findall(r"(?<!\S)--[a-z][a-z-]*", rest)
                    below = re.findall(r"^ ([a-z]+)\b", rest) if name in GROUPS else []
                    words = ("quadrank", name, *below, *options)
                    found.append(Command(f"{path.relative_to(ROOT)}", words, whole=False))
                for target in re.findall(r"`make ([a-z][a-z-]*)", _text(node)):
                    found.append(Command(f"{path.relative_to(ROOT)}", ("make", target), whole=False))
    return found


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(value) or "{}" for value in node.values)
    return ""


def problem(command: Command) -> str | None:
    """Why a command cannot be what it says; None where nothing is wrong."""
    words = list(command.words)
    if words[0] == "make":
        return _make_problem(words[1:], command.makefile)
    return _quadrank_problem(words[1:], command.whole)


def _make_problem(words: list[str], makefile: Path) -> str | None:
    targets, variables = read_makefile(makefile)
    for word in words:
        name, equals, value = word.partition("=")
        if equals and name not in variables:
            return f"the Makefile reads no {name}"
        if not equals and word not in targets:
            return f"no target {word}"
        for variable, folder in (("DATA", "data"), ("MODEL", "model")):
            missing = not (ROOT / "conf" / folder / f"{value}.yaml").is_file()
            if name == variable and missing and not PLACEHOLDER.search(value):
                return f"no conf/{folder}/{value}.yaml"
    return None


def _quadrank_problem(words: list[str], whole: bool) -> str | None:
    found: Any = typer.main.get_command(app)
    while words and hasattr(found, "commands"):
        name = words.pop(0)
        if name == "--help" or PLACEHOLDER.search(name):
            return None
        if name not in found.commands:
            return f"no command {name}"
        found = found.commands[name]
    options = {name: param for param in found.params for name in (*param.opts, *param.secondary_opts)}
    given, arguments = set(), 0
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if name == "--help":
            return None
        if not word.startswith("--"):
            arguments += 1
            continue
        if name not in options:
            return f"{found.name} has no option {name}"
        given.add(options[name].name)
        if getattr(options[name], "is_flag", False):
            continue
        if not equals and words:
            value = words.pop(0)
        if value.startswith("conf/") and not PLACEHOLDER.search(value) and not (ROOT / value).exists():
            return f"no file {value}"
    return _incomplete(found, given, arguments) if whole else None


def _incomplete(command: Any, given: set[str], arguments: int) -> str | None:
    positional = [param for param in command.params if param.param_type_name == "argument"]
    if arguments > len(positional):
        return f"{command.name} takes {len(positional)} arguments"
    needed = {param.name for param in command.params if param.required} - {param.name for param in positional}
    return f"{command.name} needs {', '.join(sorted(needed - given))}" if needed - given else None


@cache
def read_makefile(path: Path = MAKEFILES[0]) -> tuple[set[str], set[str]]:
    """Targets of a Makefile, and the variables that it reads."""
    text = path.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", text, re.MULTILINE))
    return targets, set(re.findall(r"\$\((?:or \$\(|value )?([A-Z_]+)\)", text))
