"""The log of what was served: what does not fit or cannot be written is dropped and counted, never waited for."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from ctr.serving.answering.answers import Answer
from ctr.serving.served.part import LEFT_SECONDS, OpenPart
from ctr.serving.server import served_log
from ctr.serving.server.served_log import GROUP, ServedLog
from ctr.serving.settings import LogSettings
from features.encoding.encoder import EncodedRequest
from features.encoding.raw_values import WholeIds
from features.encoding.request import Request
from features.errors import ConfigError


def answer(name: str = "r", asked: bytes = b"{}") -> Answer:
    return Answer(
        body=b"{}",
        request_id=name,
        model_version="v",
        raw={"candidates": [1, 2]},
        variant="champion",
        request=Request(candidates=WholeIds([1, 2]), history=(3,), user="u"),
        stages={},
        asked=asked,
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
    latest = time.monotonic() + 60
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


def test_each_part_has_a_time_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr(served_log, "time", SimpleNamespace(time=time.time, monotonic=lambda: now[0]))
    log = ServedLog(LogSettings(folder=tmp_path, seconds_per_part=60))
    log.add(answer("a"))
    until(lambda: not log._backlog)
    now[0] = 60.0
    until(lambda: list(tmp_path.glob("served-*.parquet")))
    for name in ("b", "c"):
        log.add(answer(name))
    until(lambda: not log._backlog)
    log.close()
    parts = sorted(pq.read_table(path)["request"].to_pylist() for path in tmp_path.iterdir())
    assert parts == [["a"], ["b", "c"]]


def test_a_part_is_flushed_then_renamed_then_its_folder_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A power cut leaves no part without its end, and takes none back that a reader has seen."""
    flushed: list[tuple[str, bool]] = []
    part = OpenPart(tmp_path)
    monkeypatch.setattr("ctr.serving.served.part.flush", lambda at: flushed.append((at.name, part.path.exists())))
    part.finish()
    assert flushed == [(f".{part.path.name}", False), (tmp_path.name, True)]


@pytest.mark.timeout(120)
def test_a_part_that_cannot_be_written_is_dropped_and_the_next_is_written(tmp_path: Path):
    folder, dropped = tmp_path / "served", []
    log = ServedLog(LogSettings(folder=folder, rows_per_part=2), lambda: dropped.append(1))
    folder.rmdir()
    folder.touch()
    for _ in range(2):
        log.add(answer())
    until(lambda: len(dropped) == 2)
    folder.unlink()
    log.add(answer("later"))
    log.close()
    (part,) = folder.iterdir()
    assert pq.read_table(part)["request"].to_pylist() == ["later"]


@pytest.mark.timeout(120)
def test_a_folder_that_was_removed_is_made_again_for_the_next_part(tmp_path: Path):
    """Else all answers are lost until the server is started anew."""
    folder, dropped = tmp_path / "logs" / "served", []
    log = ServedLog(LogSettings(folder=folder, rows_per_part=2), lambda: dropped.append(1))
    (folder.rmdir(), folder.parent.rmdir())
    for name in ("a", "b"):
        log.add(answer(name))
    log.close()
    (part,) = folder.iterdir()
    assert pq.read_table(part)["request"].to_pylist() == ["a", "b"]
    assert not dropped


def test_a_part_that_cannot_even_begin_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A full disk takes the name of a file, and then not its first bytes."""

    def begin(path: str, schema: Any) -> Any:
        Path(path).touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ctr.serving.served.part.pq.ParquetWriter", begin)
    with pytest.raises(OSError, match="No space"):
        OpenPart(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"log\.folder: .*file/served cannot be made"):
        ServedLog(LogSettings(folder=tmp_path / "file" / "served"))


def test_no_part_stays_open_until_another_process_takes_it_for_one_that_was_left():
    with pytest.raises(ValidationError):
        LogSettings(seconds_per_part=LEFT_SECONDS)
    assert LogSettings(seconds_per_part=LEFT_SECONDS / 2)


@pytest.mark.timeout(120)
def test_what_does_not_fit_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    dropped: list[int] = []
    monkeypatch.setattr(ServedLog, "_write_parts", lambda self: time.sleep(0.3))
    log = ServedLog(LogSettings(folder=tmp_path, waiting=3), lambda: dropped.append(1))
    for _ in range(5):
        log.add(answer())
    assert len(dropped) == 2
    log.close()


@pytest.mark.timeout(120)
def test_what_waits_is_bounded_by_bytes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    dropped: list[int] = []
    monkeypatch.setattr(ServedLog, "_write_parts", lambda self: None)
    log = ServedLog(LogSettings(folder=tmp_path, waiting_mib=1), lambda: dropped.append(1))
    third = 2**20 // 3 // served_log.JSON_FACTOR - 100
    for _ in range(4):
        log.add(answer(asked=bytes(third)))
    assert len(dropped) == 1
    log._backlog.get(0)  # what was taken makes room
    log.add(answer(asked=bytes(third)))
    assert len(dropped) == 1
    log.close()


def test_what_a_full_queue_turned_away_takes_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    dropped: list[int] = []
    monkeypatch.setattr(ServedLog, "_write_parts", lambda self: None)
    log = ServedLog(LogSettings(folder=tmp_path, waiting=1, waiting_mib=1), lambda: dropped.append(1))
    third = 2**20 // 3 // served_log.JSON_FACTOR - 100
    for _ in range(4):
        log.add(answer(asked=bytes(third)))
    log._backlog.get(0)
    log.add(answer(asked=bytes(2 * third)))
    assert len(dropped) == 3
    log.close()


def test_arrays_count_among_the_bytes_and_what_the_log_does_not_need_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    dropped: list[int] = []
    monkeypatch.setattr(ServedLog, "_write_parts", lambda self: None)
    log = ServedLog(LogSettings(folder=tmp_path, waiting_mib=1), lambda: dropped.append(1))
    wide = replace(answer().encoded, candidate={"rate": np.zeros(2**18 + 1, np.float32)})
    log.add(replace(answer(asked=b"{}"), encoded=wide))
    log.add(answer())
    assert len(dropped) == 1
    _, waits = log._backlog.get(0)
    assert waits.asked == b""
    assert (waits.body, waits.raw, waits.request.history, waits.request.past) == (b"", {}, (), None)
    log.close()


@pytest.mark.timeout(120)
def test_a_part_grows_by_groups_while_it_is_open(tmp_path: Path):
    log = ServedLog(LogSettings(folder=tmp_path))
    for place in range(GROUP + 3):
        log.add(answer(str(place)))
    until(lambda: list(tmp_path.glob(".served-*.parquet")))  # hidden: no reader looks for it
    assert not list(tmp_path.glob("served-*.parquet"))
    log.close()
    (part,) = tmp_path.iterdir()
    written = pq.ParquetFile(part)
    groups = [written.metadata.row_group(place).num_rows for place in range(written.metadata.num_row_groups)]
    assert groups == [GROUP, 3]
    assert written.read()["request"].to_pylist() == [str(place) for place in range(GROUP + 3)]
    assert written.read()["candidates"].to_pylist()[-1] == ["1", "2"]


@pytest.mark.timeout(120)
def test_an_answer_that_cannot_be_a_row_is_dropped_alone(tmp_path: Path):
    dropped: list[int] = []
    log = ServedLog(LogSettings(folder=tmp_path), lambda: dropped.append(1))
    log.add(answer("before"))
    log.add(replace(answer("odd"), order=np.array([7])))  # a place that is none
    log.add(answer("after"))
    log.close()
    (part,) = tmp_path.iterdir()
    assert (pq.read_table(part)["request"].to_pylist(), len(dropped)) == (["before", "after"], 1)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("where", "lost"), [("ctr.serving.server.served_log.served_table", 2), ("ctr.serving.served.part.flush", 4)]
)
def test_any_error_of_a_group_or_a_part_is_counted_and_the_log_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, lost: int
):
    dropped: list[int] = []
    monkeypatch.setattr(served_log, "GROUP", 2)
    log = ServedLog(LogSettings(folder=tmp_path, rows_per_part=4), lambda: dropped.append(1))
    with monkeypatch.context() as broken:

        def fails(*_: Any) -> None:
            raise pa.ArrowInvalid("not so")

        if lost == 4:
            log.add(answer("a"))
            log.add(answer("b"))
            until(lambda: list(tmp_path.iterdir()))
        broken.setattr(where, fails)
        log.add(answer("c"))
        log.add(answer("d"))
        until(lambda: len(dropped) == lost)
    assert list(tmp_path.iterdir()) == []
    log.add(answer("later"))
    log.close()
    (part,) = tmp_path.iterdir()
    assert (pq.read_table(part)["request"].to_pylist(), len(dropped)) == (["later"], lost)


def test_what_a_killed_process_had_begun_is_removed_and_what_lives_is_not(tmp_path: Path):
    old, new = (tmp_path / f".served-{name}.parquet" for name in ("old", "new"))
    for each in (old, new):
        each.write_bytes(b"PAR1")
    os.utime(old, (time.time() - 7200,) * 2)
    ServedLog(LogSettings(folder=tmp_path)).close()
    assert list(tmp_path.iterdir()) == [new]
