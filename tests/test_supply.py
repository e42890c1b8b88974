"""What comes from outside: data is never run as code, packages have their licence, vulnerabilities are looked up."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

from tests.documents import ROOT
from tools.audit import COMMAND
from tools.audit import main as audit
from tools.licences import PAGE, pinned

MODULES = sorted(path for name in ("features", "ctr", "pipelines") for path in (ROOT / name).rglob("*.py"))
# Modules whose files run code when they are read.
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
RUN_TEXT = {"eval", "exec", "compile", "__import__"}
# Calls of others that read pickles, make any object of YAML, or unpack wherever an archive says.
CALLS = {
    ("yaml", "load"),
    ("yaml", "load_all"),
    ("yaml", "full_load"),
    ("yaml", "unsafe_load"),
    ("torch", "load"),
    ("torch", "save"),
    ("os", "system"),
    ("pd", "read_pickle"),
}
METHODS = {"extractall"}
OPTIONS = {"allow_pickle": True, "shell": True, "weights_only": False}


def dangers(source: str) -> list[str]:
    """What a piece of Python has that could run what it reads, with its line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "").partition(".")[0]]
        else:
            names = []
        found += [f"{node.lineno}: import of {name}" for name in names if name in PICKLES]  # type: ignore[attr-defined]
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Name) and called.id in RUN_TEXT:
            found.append(f"{node.lineno}: {called.id}()")
        if isinstance(called, ast.Attribute):
            owner = called.value.id if isinstance(called.value, ast.Name) else ""
            if (owner, called.attr) in CALLS or called.attr in METHODS:
                found.append(f"{node.lineno}: {owner}.{called.attr}()")
        for option in node.keywords:
            value = option.value.value if isinstance(option.value, ast.Constant) else None
            if option.arg in OPTIONS and value is OPTIONS[option.arg]:
                found.append(f"{node.lineno}: {option.arg}={value}")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_that_is_read_is_run(path: Path) -> None:
    assert dangers(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "eval('1')",
        "import yaml\nyaml.load(text)",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "archive.extractall(folder)",
    ],
)
def test_a_danger_is_found(source: str) -> None:
    assert len(dangers(source)) == 1


@pytest.mark.parametrize(
    "source", ["yaml.safe_load(text)", "model.eval()", "column.list.eval(e)", "np.load(path, allow_pickle=False)"]
)
def test_what_is_harmless_is_not(source: str) -> None:
    assert dangers(source) == []


def test_every_pinned_package_has_a_line_in_the_list_of_licences() -> None:
    """`.venv/bin/python -m tools.licences` writes it again."""
    assert re.findall(r"^\| (\S+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)[1:] == pinned()


def test_the_audit_reads_the_lock_with_its_hashes() -> None:
    assert COMMAND[1:] == [
        "tool", "run", "pip-audit", "--requirement", "requirements.lock", "--require-hashes", "--disable-pip"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("says", "code", "expected"),
    [
        ("No known vulnerabilities found", 0, 0),
        ("Found 1 known vulnerability in 1 package", 1, 1),
        ("requests.exceptions.ConnectionError: Max retries exceeded", 1, 0),
        ("Found 1 known vulnerability; ConnectionError", 1, 1),
        ("Traceback: KeyError", 1, 1),
    ],
)
def test_an_audit_fails_on_what_is_known_and_not_on_an_outage(says: str, code: int, expected: int) -> None:
    stand_in = f"import sys; print({says!r}, file=sys.stderr); sys.exit({code})"
    assert audit([sys.executable, "-c", stand_in]) == expected
