"""Tables of benchmarks on a terminal."""

from __future__ import annotations

import io

from rich.console import Console

from benchmarks.bench_serve import AT_A_RATE
from benchmarks.harness.report import Report
from pipelines.inspect.bench import _print

NAMES = ("alone", "versions replaced", "items upserted", "shadow", "logged", "overloaded")


def test_the_widest_table_is_whole_on_100_columns():
    shown = io.StringIO()
    numbers = dict.fromkeys(AT_A_RATE, 123.4) | {"errors": 1_000, "fallbacks": 10_000, "changes": 100}
    rows = [{**numbers, "name": name} for name in NAMES]
    _print(Console(file=shown, width=100), "serve", Report(rows, {}, AT_A_RATE))
    lines = shown.getvalue().splitlines()
    assert "…" not in shown.getvalue()
    heading = next(line for line in lines if "allowed" in line)
    assert heading.split() == " ".join(AT_A_RATE.values()).split()
    assert sum("10,000" in line for line in lines) == len(NAMES)
