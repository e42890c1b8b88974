"""Threads of torch's loops sleep soon after a loop, in a command and in what it starts."""

import os
import subprocess
import sys

import pytest

from pipelines.cli import commands, threads

IMPORTED = (
    "import sys; import pipelines.cli.commands; print(sorted(sys.modules.keys() & {'torch', 'sklearn', 'numba'}))"
)


@pytest.mark.parametrize(
    ("given", "turns"),
    [({}, "5000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_a_command_says_it_unless_the_environment_does(monkeypatch, given: dict[str, str], turns: str | None):
    for name in (threads.TURNS, threads.POLICY):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    seen: list[str | None] = []

    def ended(run, arguments) -> int:
        seen.append(os.environ.get(threads.TURNS))
        return 0

    monkeypatch.setattr(commands, "ended", ended)
    with pytest.raises(SystemExit):
        commands.main(["--help"])
    assert seen == [turns]


def test_commands_are_known_before_anything_that_has_such_threads_is_loaded():
    done = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_import_says_it_before_the_command_can_see_what_the_environment_wants():
    program = "import os; import pipelines.cli.commands; print(os.environ.get('GOMP_SPINCOUNT'))"
    given = {name: value for name, value in os.environ.items() if name != threads.TURNS} | {threads.POLICY: "active"}
    done = subprocess.run([sys.executable, "-c", program], env=given, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"
