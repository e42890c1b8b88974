"""Pytest plugin of `make mutants`: which tests a mutant meets, and in which order."""

from __future__ import annotations

import os

import pytest
from mutmut.state import state


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order by file and line: mutmut hands tests over in random order, which sets module fixtures up repeatedly."""
    named = [argument.split("::")[0] for argument in config.getini("mutant_files")]
    items.sort(key=lambda item: (named.index(item.nodeid.split("::")[0]), item.location[1] or 0))


def pytest_addoption(parser: pytest.Parser) -> None:
    """The module's test files, fast ones first."""
    parser.addini("mutant_files", "test files in the order in which they run", type="args", default=[])


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Give a function every test of each file that reaches it.

    mutmut notes which test was running when a function was called. What a module fixture calls is noted for the first
    test alone, though all tests of the file judge what the fixture made.
    """
    if os.environ.get("MUTANT_UNDER_TEST") != "stats":
        return
    of_file: dict[str, set[str]] = {}
    for item in session.items:
        of_file.setdefault(item.nodeid.split("::")[0], set()).add(item.nodeid)
    for function, tests in state().tests_by_mangled_function_name.items():
        files = {test.split("::")[0] for test in tests}
        state().tests_by_mangled_function_name[function] = set().union(*(of_file[file] for file in files))
