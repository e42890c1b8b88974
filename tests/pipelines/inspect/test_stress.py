"""What the table of stresses says of drops that no resample of users judges."""

from __future__ import annotations

import io

from rich.console import Console

from ctr.diagnosis.vector_stress import CorruptionResult, StressResult
from ctr.evaluation.bootstrap import Interval
from pipelines.inspect.stress import table_of

FOUND = StressResult(
    split="test",
    auc=0.75,
    log_loss=0.5,
    stresses=[CorruptionResult("all", "int8", 1, "random", 0.5, 0.6, Interval(0.25, 0.25, 0.25), 0.1)],
    ignored=[],
)


def shown(users: int) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(table_of("stress", FOUND, users))
    return out.getvalue()


def test_the_drop_of_one_user_has_no_interval_and_no_star() -> None:
    (row,) = (line for line in shown(users=1).splitlines() if "int8" in line)
    assert row.split("│")[3].strip() == "+0.2500"
    assert "All rows are one user's: no interval or star" in shown(users=1)


def test_the_drop_of_two_users_has_both() -> None:
    (row,) = (line for line in shown(users=2).splitlines() if "int8" in line)
    assert row.split("│")[3].strip() == "+0.2500 (+0.2500 to +0.2500) *"
    assert "from resampling users" in shown(users=2)
