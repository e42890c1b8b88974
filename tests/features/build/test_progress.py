"""How far a build says it is."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import polars as pl
import pytest

from features.build import build
from features.contract.contract import Contract
from features.contract.settings import validate
from features.progress import Bar

ROWS = 400


def test_half_of_a_build_is_done_when_all_rows_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(Bar, "show", lambda bar: seen.append((bar.done, bar.total)))
    monkeypatch.setattr(build, "progress", lambda title, total, unit: nullcontext(Bar(total, unit)))
    numbers = pl.int_range(ROWS, eager=True)
    log = pl.DataFrame({"user": numbers % 40, "item": numbers % 7, "time": numbers * 3600, "click": numbers % 2})
    log.write_parquet(tmp_path / "log.parquet")
    columns = {"path": "log.parquet", "user": "user", "item": "item", "time": "time", "label": "click"}
    content = {"name": "log", "root": str(tmp_path), "interactions": columns, "checks": {"earliest": "1970-01-01"}}
    build.build_feature_set(validate(Contract, content, "log.yaml"), tmp_path / "out")
    done = [one for one, _ in seen]
    assert done == sorted(done)
    assert ROWS // 2 in done
    assert seen[-1] == (ROWS, ROWS)
