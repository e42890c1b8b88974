"""The log of what was served: what does not fit or cannot be written is dropped and counted, never waited for."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ctr.serving.server.served_log import ServedLog
from ctr.serving.settings import LogSettings
from features.encoding.encoder import EncodedRequest
from features.encoding.request import Request


def answer(name: str = "r") -> Any:
    return SimpleNamespace(
        request_id=name,
        model_version="v",
        variant="champion",
        request=Request(candidates=(1, 2), history=(3,), user="u"),
        encoded=EncodedRequest(
            user={},
            context={},
            history_item=np.array([5]),
            history_events={},
            candidate_item=np.array([3, 4]),
            candidate={"rate": np.array([0.5, 0.25], np.float32)},
            unknown_history=0,
            unknown_candidates=(),
            history=(3,),
        ),
        order=np.array([1, 0]),
        scores=np.array([0.2, 0.7], np.float32),
    )


def until(condition: Any) -> None:
    latest = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < latest
        time.sleep(0.005)


def test_a_part_is_written_when_it_is_full(tmp_path: Path):
    log = ServedLog(LogSettings(folder=tmp_path, rows_per_part=2))
    for name in ("a", "b", "c"):
        log.add(answer(name))
    until(lambda: len(list(tmp_path.glob("served-*.parquet"))) == 1)
    log.close()
    parts = sorted(pq.read_table(path)["request"].to_pylist() for path in tmp_path.iterdir())
    assert parts == [["a", "b"], ["c"]]


def test_a_part_is_written_when_its_time_is_over(tmp_path: Path):
    log = ServedLog(LogSettings(folder=tmp_path, seconds_per_part=0.05))
    log.add(answer())
    until(lambda: list(tmp_path.glob("served-*.parquet")))
    log.close()
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.timeout(30)
def test_a_part_that_cannot_be_written_is_dropped_and_the_next_is_written(tmp_path: Path):
    folder, dropped = tmp_path / "served", []
    log = ServedLog(LogSettings(folder=folder, rows_per_part=2), lambda: dropped.append(1))
    folder.rmdir()
    for _ in range(2):
        log.add(answer())
    until(lambda: len(dropped) == 2)
    folder.mkdir()
    log.add(answer("later"))
    log.close()
    (part,) = folder.iterdir()
    assert pq.read_table(part)["request"].to_pylist() == ["later"]


@pytest.mark.timeout(30)
def test_what_does_not_fit_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    dropped: list[int] = []
    monkeypatch.setattr(ServedLog, "_write_parts", lambda self: time.sleep(0.3))
    log = ServedLog(LogSettings(folder=tmp_path, waiting=3), lambda: dropped.append(1))
    for _ in range(5):
        log.add(answer())
    assert len(dropped) == 2
    log.close()
