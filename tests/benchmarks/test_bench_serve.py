"""`quadrank bench serve` at toy sizes: servers are threads of this process, what is measured is called in it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench_serve
from benchmarks.bench_serve import ServeBench, meanwhile, ratios
from benchmarks.harness import wrk
from benchmarks.harness.measured import Measured
from benchmarks.harness.served import Served, served
from ctr.serving.answering.versions import PointerSource
from ctr.serving.bundle import ITEM_TABLE
from ctr.serving.server.app import Server
from ctr.serving.settings import ServeConfig
from features.contract.settings import merge
from pipelines.cli.commands import main
from tests.ctr.serving.server.over_http import serving

SIZES = {"embedding_dim": 4, "vector_dim": 4, "attention_dim": 8, "layers": 1, "rows": 2}
TOY = ServeBench(2_000, 200, 8, False, (3, 20), 5, (1, 2), 0.3, 40, SIZES)


def call(target: str, **arguments: Any) -> Measured:
    """As `measure`, in this process."""
    module, _, name = target.partition(":")
    result = getattr(import_module(module), name)(**arguments)
    return Measured(1.0, 100.0, json.loads(json.dumps(result)))


@contextmanager
def as_thread(
    bundle: Path, log: Path, processes: int = 1, token: Path | None = None, **settings: Any
) -> Iterator[Served]:
    """As `served`, in a thread of this process."""
    over: dict[str, Any] = {}
    for key, value in settings.items():
        *heads, last = key.split("__")
        entry: dict[str, Any] = {last: value}
        for head in reversed(heads):
            entry = {head: entry}
        over = merge(over, entry)
    server = Server(PointerSource(bundle), ServeConfig.model_validate(over), token.read_text() if token else None)
    with serving(server) as port:
        yield Served(port, os.getpid())


@pytest.mark.slow
def test_every_load_has_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench_serve, "measure", call)
    monkeypatch.setattr(wrk, "measure", call)
    monkeypatch.setattr(wrk.shutil, "which", lambda name: None)
    folders: list[str] = []

    def noted(*how: Any, **settings: Any) -> Any:
        folders.append(str(settings.get("log__folder", "")))
        return as_thread(*how, **settings)

    monkeypatch.setattr(bench_serve, "served", noted)
    monkeypatch.setattr(bench_serve, "CHANGE_SECONDS", 0.05)
    monkeypatch.setattr(bench_serve, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(bench_serve, "WARM_UP", 10)
    report = bench_serve.run(tmp_path, lambda text: None, TOY)
    assert [(row["processes"], row["candidates"]) for row in report.results] == [(1, 3), (1, 20), (1, 5), (2, 5)]
    assert all(row["requests_per_s"] > 0 and row["errors"] == 0 and row["tool"] == "own" for row in report.results)
    for row in report.results:
        assert row["requests_per_s_core"] == pytest.approx(1e3 / row["cpu_ms"])
    rated, memory, start = report.sections
    assert [row["name"] for row in rated.results] == [
        "alone", "versions replaced", "items upserted", "shadow", "logged", "overloaded"
    ]  # fmt: skip
    by_name = {row["name"]: row for row in rated.results}
    alone = by_name["alone"]
    assert alone["rate"] == pytest.approx(0.7 * report.results[2]["requests_per_s"])
    assert by_name["overloaded"]["rate"] == pytest.approx(1.5 * report.results[2]["requests_per_s"])
    assert all(row["errors"] == 0 for row in rated.results[:5])
    assert alone["requests"] == pytest.approx(alone["rate"] * max(0.3, 10 / alone["rate"]), abs=1)
    assert alone["allowed_ms"] == pytest.approx(1.5 * alone["model_p99_ms"] + 2)
    assert by_name["versions replaced"]["changes"] >= 1 and by_name["items upserted"]["changes"] >= 1
    assert [row["requests"] for row in memory.results] == [0, 20, 40]
    assert all(row["resident_mib"] > 50 for row in memory.results)
    assert [row["log_dropped"] for row in memory.results] == [0, 0, 0]
    assert folders[-4:] == [str(tmp_path / "logged-all"), "", "", ""], "memory is watched with the log on"
    assert not (tmp_path / "logged-all").exists()
    (row,) = start.results
    assert 0 < row["ready_s"] < 100
    assert row["resident_mib"] > 50
    assert row["beside_table_mib"] > 50


def test_claims_by_hand():
    results = [
        {"name": "one process", "processes": 1, "candidates": 100, "requests_per_s": 900.0},
        {"name": "one process", "processes": 1, "candidates": 5, "requests_per_s": 100.0},
        {"name": "2 processes", "processes": 2, "candidates": 5, "requests_per_s": 190.0},
        {"name": "4 processes", "processes": 4, "candidates": 5, "requests_per_s": 300.0},
    ]
    rated = [
        {"name": "alone", "p99_ms": 6.0, "allowed_ms": 8.0},
        {"name": "versions replaced", "p99_ms": 9.0, "allowed_ms": 8.0},
    ]
    memory = [{"resident_mib": 100.0}, {"resident_mib": 200.0}, {"resident_mib": 201.0}]
    assert ratios(results, rated, memory, TOY) == {
        "p99_over_allowed": 0.75,
        "p99_versions_replaced_over_alone": 1.5,
        "throughput_a_process_2_over_1": 0.95,
        "throughput_a_process_4_over_1": 0.75,
        "memory_growth_second_half": 0.005,
    }


def test_what_goes_on_meanwhile_is_done_again_and_its_error_is_raised():
    done: list[float] = []
    with meanwhile(lambda: done.append(time.perf_counter()), 0.01):
        end = time.perf_counter() + 30
        while len(done) < 3 and time.perf_counter() < end:
            time.sleep(0.01)
    assert len(done) >= 3 and done[1] - done[0] >= 0.01
    count = len(done)
    time.sleep(0.05)
    assert len(done) == count

    def fail() -> None:
        raise OSError("refused")

    with pytest.raises(OSError, match="refused"), meanwhile(fail, 0.01):
        pass


def test_pages_of_an_item_table_are_told_apart(tmp_path: Path):
    """Here the process itself stands for a server."""
    held, size = Served(0, os.getpid()), 64 * 2**20
    (tmp_path / ITEM_TABLE).write_bytes(bytes(size))
    resident, beside = held.resident_mib(), held.beside_table_mib()
    with (tmp_path / ITEM_TABLE).open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as table:
        assert sum(table[place] for place in range(0, size, 4096)) == 0
        assert held.resident_mib() - resident > 50
        assert abs(held.beside_table_mib() - beside) < 32  # what else this process does changes it too


def test_a_server_that_ends_says_why(tmp_path: Path):
    with pytest.raises(RuntimeError, match=r"(?s)not ready.*nowhere"), served(tmp_path / "nowhere", tmp_path / "log"):
        pass


@pytest.mark.parametrize("option", ["--candidates", "--processes"])
def test_sizes_that_are_no_numbers_are_refused(option: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "serve", option, "0"])
    assert ended.value.code == 2 and option in capsys.readouterr().err
