"""The ranking server under load: requests a second a core, its slowest answers at 70 % load, while versions change."""

from __future__ import annotations

import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from threading import Event
from typing import Any

from benchmarks.harness.load import send_alone
from benchmarks.harness.measured import measure
from benchmarks.harness.report import Report, Section
from benchmarks.harness.served import Served, served
from benchmarks.harness.wrk import as_fast_as_answered
from benchmarks.jobs.serve import BUNDLES, new_items
from features.store.pointer import point_at

SHARE = 0.7  # of what one process answers as fast as it can
OVERLOAD = 1.5
CLIENTS = 4  # a process, where they send as soon as they are answered
CONNECTIONS = 32  # where requests come at a rate
CROWD = 256  # connections of an overload: each waits for its answer, and fewer could not send so much
BODIES = 64
CHANGE_SECONDS = 1.0
POLL_SECONDS = 0.2
SWAP_SECONDS = 120.0
SWAPS = "quadrank_swaps_total"
LOG_DROPPED = "quadrank_log_dropped_total"
NEW_ITEMS = 10
FALLBACK_MS = 50.0
PATIENT_MS = 10_000.0  # of all servers but that with a fallback: what waits long is seen as latency, not as an error
ALLOWED_FACTOR, ALLOWED_MS = 1.5, 2.0  # the server's p99 may be so many times the model's, and so much more
WARM_UP = 50
STARTS = 3
LOAD = f"{send_alone.__module__}:send_alone"
Say = Callable[[str], object]
SIZING = {
    "name": "as fast as answered",
    "candidates": "N",
    "requests_per_s": "requests/s",
    "cpu_ms": "processor ms a request",
    "requests_per_s_core": "requests/s a core",
    "errors": "errors",
    "tool": "load by",
}
AT_A_RATE = {
    "name": "at a rate",
    "rate": "rate",
    "p50_ms": "p50",
    "p95_ms": "p95",
    "p99_ms": "p99",
    "max_ms": "max",
    "model_p99_ms": "model",
    "allowed_ms": "allowed",
    "late_p99_ms": "late",
    "cpu_ms": "cpu",
    "errors": "errors",
    "fallbacks": "popular",
    "changes": "swaps",
}
MEMORY = {
    "name": "memory",
    "requests": "requests",
    "resident_mib": "resident MiB",
    "errors": "errors",
    "log_dropped": "not logged",
}
START = {
    "name": "start",
    "ready_s": "s until ready",
    "resident_mib": "resident MiB",
    "beside_table_mib": "without the table",
}


@dataclass(frozen=True)
class ServeBench:
    """What is measured, and for how long.

    Args:
        rows, items, max_len: of the log that the model is made from, in the shape of MM-CTR.
        paper: the widths of the paper; false: those of conf/model/qin.yaml.
        candidates: sizes of a request.
        under_load: the size that is sent at a rate.
        processes: numbers of server processes.
        seconds: of each load.
        requests: of the run that watches memory, in halves; their sizes take turns.
        sizes: model settings over those of the preset.
    """

    rows: int
    items: int
    max_len: int
    paper: bool
    candidates: tuple[int, ...]
    under_load: int
    processes: tuple[int, ...]
    seconds: float
    requests: int
    sizes: dict[str, Any] = field(default_factory=dict)


def run(work: Path, say: Say, settings: ServeBench) -> Report:
    """Export a bundle, serve it, and load the server in every way.

    Raises:
        ConfigError: too few rows for the items; no Linux; a process was killed.
        RuntimeError: a server did not start, a load failed, or a change of version was refused.
    """
    say(f"exporting a model of {settings.items:,} items, histories of up to {settings.max_len}")
    made = measure(
        "benchmarks.jobs.serve:bundles",
        out=str(work),
        rows=settings.rows,
        items=settings.items,
        max_len=settings.max_len,
        paper=settings.paper,
        sizes=settings.sizes,
    ).result
    say(f"a bundle of {made['mib']:,} MiB")
    bench = _Bench(work, say, settings, Path(made["pointer"]))
    one, plain = bench.one_process()
    results = [*one, *bench.processes()]
    rate = plain[0]["rate"]
    rated = [*plain, bench.shadow(rate), bench.logged(rate), bench.overloaded(rate / SHARE)]
    memory, start = bench.memory(), bench.start()
    report = Report(results, ratios(results, rated, memory, settings), SIZING)
    return (
        report.with_section(
            Section(f"{settings.under_load} candidates at a rate of requests/s; times in ms", rated, AT_A_RATE)
        )
        .with_section(Section("memory over requests of all sizes in turn, the served log on", memory, MEMORY))
        .with_section(Section("a start on a host where the hashes were compared before", start, START))
    )


def ratios(
    results: list[dict[str, Any]], rated: list[dict[str, Any]], memory: list[dict[str, Any]], settings: ServeBench
) -> dict[str, float]:
    """What is claimed, from the rows of all three tables."""
    by_name = {row["name"]: row for row in rated}
    plain = by_name["alone"]
    found = {"p99_over_allowed": plain["p99_ms"] / plain["allowed_ms"]}
    for name, row in by_name.items():
        if name != "alone":
            found[f"p99_{name.replace(' ', '_')}_over_alone"] = row["p99_ms"] / plain["p99_ms"]
    answered = {row["processes"]: row["requests_per_s"] for row in results if row["candidates"] == settings.under_load}
    fewest = min(answered)
    for processes in sorted(answered)[1:]:
        share = answered[processes] / processes / (answered[fewest] / fewest)
        found[f"throughput_a_process_{processes}_over_{fewest}"] = share
    half, end = (row["resident_mib"] for row in memory[-2:])
    found["memory_growth_second_half"] = end / half - 1
    return {name: round(value, 4) for name, value in found.items()}


class _Bench:
    """Servers of one bundle, and loads on them.

    Args:
        work: folder for bodies and what servers print.
        pointer: to the first bundle.
    """

    def __init__(self, work: Path, say: Say, settings: ServeBench, pointer: Path) -> None:
        self._work, self._say, self._settings, self._pointer = work, say, settings, pointer
        self._token = work / "token"
        self._token.write_text("token", encoding="utf-8")
        self._numbers = count(1)
        most = max(*settings.candidates, settings.under_load)
        self._options: dict[str, Any] = {"limits__max_candidates": most, "queue__deadline_ms": PATIENT_MS}

    def one_process(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """One process: every size as fast as answered, then one size at a rate, also while its version changes."""
        at, sizes = self._settings.under_load, self._settings.candidates
        with self._served(token=self._token, poll_seconds=POLL_SECONDS) as server:
            fast = [self._fast(server, size, 1) for size in dict.fromkeys((*sizes, at))]
            rate = SHARE * next(row["requests_per_s"] for row in fast if row["candidates"] == at)
            rated = [self._rated(server, "alone", rate)]
            for name, change in (
                ("versions replaced", partial(self._replace, server, count(1))),
                ("items upserted", partial(self._upsert, server.port, count(self._settings.items + 1, NEW_ITEMS))),
            ):
                before = server.metric(SWAPS)
                with meanwhile(change, CHANGE_SECONDS):
                    row = self._rated(server, name, rate)
                rated.append({**row, "changes": int(server.metric(SWAPS) - before)})
            if server.metric("quadrank_versions_refused_total"):
                raise RuntimeError("a version was refused while the server was under load")
        return fast, rated

    def processes(self) -> list[dict[str, Any]]:
        """Several processes, as fast as answered."""
        rows = []
        for processes in self._settings.processes:
            if processes > 1:
                with self._served(processes=processes) as server:
                    rows.append(self._fast(server, self._settings.under_load, processes))
        return rows

    def shadow(self, rate: float) -> dict[str, Any]:
        """A challenger that scores every request after its answer has left."""
        challenger = self._pointer.parent / BUNDLES[1]
        with self._served(challenger__bundle=challenger, challenger__share=1.0) as server:
            return self._rated(server, "shadow", rate)

    def logged(self, rate: float) -> dict[str, Any]:
        """Every answer becomes a row of the served log."""
        with self._served(log__folder=self._work / "logged") as server:
            row = self._rated(server, "logged", rate)
            if dropped := server.metric(LOG_DROPPED):
                raise RuntimeError(f"the log dropped {dropped:.0f} answers")
        return row

    def overloaded(self, most: float) -> dict[str, Any]:
        """More requests than one process can rank, with answers by popularity."""
        with self._served(fallback="true", queue__deadline_ms=FALLBACK_MS) as server:
            return self._rated(server, "overloaded", OVERLOAD * most, CROWD)

    def memory(self) -> list[dict[str, Any]]:
        """Resident memory after no request, half of them, and all of them, while all are logged."""
        bodies, logged = self._bodies(self._settings.candidates), self._work / "logged-all"
        half = self._settings.requests // 2
        rows = []
        with self._served(log__folder=logged) as server:
            for done in (0, half, 2 * half):
                errors = 0
                if done:
                    sent = measure(LOAD, port=server.port, bodies=str(bodies), connections=CLIENTS, requests=half)
                    errors = sent.result["errors"]
                mib, dropped = server.resident_mib(), int(server.metric(LOG_DROPPED))
                row = {"requests": done, "resident_mib": mib, "errors": errors, "log_dropped": dropped}
                rows.append({"name": "after", **row})
                self._say(f"after {done:,} requests {mib:.1f} MiB")
        mib = sum(part.stat().st_size for part in logged.iterdir()) / 2**20
        shutil.rmtree(logged)  # of 100,000 requests it would fill the folder
        self._say(f"the log had {mib:.1f} MiB")
        return rows

    def start(self) -> list[dict[str, Any]]:
        """Seconds from the start of one process to the first 200 of the ready route, and its memory then."""
        seconds, resident, beside = list[float](), list[float](), list[float]()
        for _ in range(STARTS):
            began = time.perf_counter()
            with self._served() as server:
                while not server.is_ready():
                    time.sleep(POLL_SECONDS / 10)
                seconds.append(time.perf_counter() - began)
                resident.append(server.resident_mib())
                beside.append(server.beside_table_mib())
        self._say(f"ready after {median(seconds):.2f} s with {median(beside):.1f} MiB beside the table")
        row = {"ready_s": median(seconds), "resident_mib": median(resident), "beside_table_mib": median(beside)}
        return [{"name": f"median of {STARTS}", **row}]

    def _fast(self, server: Served, size: int, processes: int) -> dict[str, Any]:
        bodies = self._warm(server, size)
        before = server.cpu_seconds()
        sent = as_fast_as_answered(server.port, bodies, CLIENTS * processes, self._settings.seconds)
        cpu_ms = (server.cpu_seconds() - before) * 1e3 / sent["requests"]
        row = {
            "name": "one process" if processes == 1 else f"{processes} processes",
            "processes": processes,
            "candidates": size,
            "requests_per_s": sent["requests_per_s"],
            "cpu_ms": cpu_ms,
            "requests_per_s_core": 1e3 / cpu_ms,
            "errors": sent["errors"],
            "tool": sent["tool"],
        }
        self._say(f"{row['name']}, {size:,} candidates: {row['requests_per_s']:,.0f} requests/s")
        return row

    def _rated(self, server: Served, name: str, rate: float, connections: int = CONNECTIONS) -> dict[str, Any]:
        size, seconds = self._settings.under_load, max(self._settings.seconds, WARM_UP / rate)
        bodies = self._warm(server, size)
        before = server.cpu_seconds()
        sent = measure(
            LOAD, port=server.port, bodies=str(bodies), connections=connections, seconds=seconds, rate=rate
        ).result
        cpu_ms = (server.cpu_seconds() - before) * 1e3 / max(sent["requests"], 1)
        model = sent["model_p99_ms"]
        allowed = None if model is None else ALLOWED_FACTOR * model + ALLOWED_MS
        self._say(f"{name}: {rate:,.0f} requests/s, p99 {sent['p99_ms']:.2f} ms")
        return {**sent, "name": name, "candidates": size, "rate": rate, "allowed_ms": allowed, "cpu_ms": cpu_ms}

    def _warm(self, server: Served, size: int) -> Path:
        bodies = self._bodies((size,))
        measure(LOAD, port=server.port, bodies=str(bodies), connections=CLIENTS, requests=WARM_UP)
        return bodies

    def _bodies(self, sizes: tuple[int, ...]) -> Path:
        out = self._work / f"bodies-{'-'.join(map(str, sizes))}"
        if not out.is_file():
            bundle = str(self._pointer.parent / BUNDLES[0])
            measure("benchmarks.jobs.serve:bodies", bundle=bundle, out=str(out), candidates=sizes, count=BODIES)
        return out

    @contextmanager
    def _served(self, **options: Any) -> Iterator[Served]:
        log = self._work / f"server-{next(self._numbers)}.log"
        with served(self._pointer, log, **(self._options | options)) as server:
            yield server

    def _replace(self, server: Served, turns: Iterator[int]) -> None:
        """Move the pointer, and wait until the version that it names answers."""
        before, end = server.metric(SWAPS), time.monotonic() + SWAP_SECONDS
        point_at(self._pointer.parent, BUNDLES[next(turns) % 2])
        while server.metric(SWAPS) == before:
            if time.monotonic() > end:
                raise RuntimeError(f"the server did not take a version over within {SWAP_SECONDS:g} s")
            time.sleep(POLL_SECONDS)

    def _upsert(self, port: int, first: Iterator[int]) -> None:
        headers = {"Authorization": f"Bearer {self._token.read_text(encoding='utf-8')}"}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/items", new_items(next(first), NEW_ITEMS), headers
        )
        with urllib.request.urlopen(request, timeout=60):
            pass


@contextmanager
def meanwhile(act: Callable[[], object], seconds: float) -> Iterator[None]:
    """Do something now, and again so many seconds after it was done, while the block runs; its error is raised."""
    over = Event()

    def repeat() -> None:
        act()
        while not over.wait(seconds):
            act()

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(repeat)
        try:
            yield
        finally:
            over.set()
        done.result()
