"""Time of one request at the paper's sizes: ours from JSON to JSON, the literal QIN, torch, DIN and boosting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness.measured import ROOT, measure
from benchmarks.harness.report import Report
from benchmarks.jobs.rank import INT8
from features.errors import ConfigError

DEFAULT_SITE = ROOT / ".bench" / "rank"
USERS_A_LOG = 500  # so few that histories are full
QIN, QIN_PLUS = "QIN", "QIN+"
PRESETS = {QIN: "qin", QIN_PLUS: "qin_plus"}
EAGER, LITERAL, DIN, BOOSTING = "torch, QIN", "literal QIN", "torch-rechub DIN", "boosting"
Say = Callable[[str], object]
COLUMNS = {
    "name": "one request",
    "candidates": "N",
    "threads": "threads",
    "p50_ms": "median ms",
    "p99_ms": "p99 ms",
    "over_literal": "over literal",
}


@dataclass(frozen=True)
class RankBench:
    """What is measured, and for how long.

    Args:
        rows, items, max_len: of the log, in the shape of MM-CTR (`benchmarks.inputs.mmctr_shaped`).
        candidates: sizes of the request.
        threads: numbers of threads.
        seconds: of turns for each size and number of threads.
        peers: false measures ours and torch alone.
        site: folder of the peers' packages, filled where it is not; None for `.bench/rank` of the checkout.
        sizes: model settings over those of the paper.
    """

    rows: int
    items: int
    max_len: int
    candidates: tuple[int, ...]
    threads: tuple[int, ...]
    seconds: float
    peers: bool
    site: Path | None
    sizes: dict[str, Any] = field(default_factory=dict)


def run(work: Path, say: Say, settings: RankBench) -> Report:
    """Export every way, then time all of them in turns, one process for each size and number of threads.

    Raises:
        ConfigError: too few rows for the items; a process was killed.
        RuntimeError: a call failed.
    """
    say(f"simulating {settings.rows:,} rows of {settings.items:,} items, histories of up to {settings.max_len}")
    feature_sets, bundles = {}, {}
    for name, preset in PRESETS.items():
        # QIN is given what the literal equations are given; QIN+ reads feedback and rates as well.
        feature_sets[name] = measure(
            "benchmarks.inputs.mmctr_shaped:build",
            out=str(work / f"log_{preset}"),
            rows=settings.rows,
            users=USERS_A_LOG,
            items=settings.items,
            max_len=settings.max_len,
            feedback=name == QIN_PLUS,
        ).result["feature_set"]
        bundles[name] = str(work / preset)
        bundles[f"{name} int8"] = f"{work / preset}{INT8}"
        made = measure(
            "benchmarks.jobs.rank:export_ours",
            feature_set=feature_sets[name],
            out=bundles[name],
            preset=preset,
            sizes=settings.sizes,
        )
        parameters, tower, mib = (made.result[key] for key in ("parameters", "tower", "mib"))
        say(f"{name}: {parameters:,} parameters, a tower {tower:,} wide, a bundle of {mib:,} MiB")
    graphs = _peers(work, say, settings) if settings.peers else {}
    results: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    for threads in settings.threads:
        for candidates in settings.candidates:
            done = measure(
                "benchmarks.jobs.rank:times",
                bundles=bundles,
                graphs=graphs,
                eager={EAGER: PRESETS[QIN]},
                sizes=settings.sizes,
                feature_set=feature_sets[QIN],
                candidates=candidates,
                threads=threads,
                seconds=settings.seconds,
            ).result
            sizes = {"candidates": candidates, "threads": threads}
            own, own_ratios = compared(done["ways"], done["products_ms"])
            results += [{**row, **sizes} for row in own]
            ratios |= {f"{name}_n{candidates}_t{threads}": value for name, value in own_ratios.items()}
            say(f"{candidates:,} candidates, {threads} threads: QIN {own[0]['p50_ms']:.2f} ms")
    return Report(results, ratios, COLUMNS)


def compared(
    ways: list[dict[str, Any]], products_ms: dict[str, float]
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows with their speed relative to the literal graph, and the ratios that are claimed.

    Args:
        ways: `name`, `p50_ms` and `p99_ms` of each.
        products_ms: least time of the matrix products of our graphs, by name.
    """
    p50 = {way["name"]: way["p50_ms"] for way in ways}
    literal = p50.get(LITERAL)
    rows = [{**way, "over_literal": literal / way["p50_ms"] if literal else None} for way in ways]
    ratios = {"qin_plus_over_qin_time": p50[QIN_PLUS] / p50[QIN], "qin_over_torch": p50[EAGER] / p50[QIN]}
    for name, short in ((QIN, "qin"), (QIN_PLUS, "qin_plus"), (f"{QIN} int8", "qin_int8")):
        ratios[f"{short}_share_of_products"] = products_ms[name] / p50[name]
        if literal:
            ratios[f"{short}_over_literal"] = literal / p50[name]
    return rows, {name: round(value, 3) for name, value in ratios.items()}


def _peers(work: Path, say: Say, settings: RankBench) -> dict[str, str]:
    graphs = {
        name: str(work / f"{file}.onnx") for name, file in ((LITERAL, "literal"), (DIN, "din"), (BOOSTING, "boosting"))
    }
    peers = "benchmarks.jobs.rank_peers"
    literal = {"folder": str(work / f"log_{PRESETS[QIN]}"), "max_len": settings.max_len, "sizes": settings.sizes}
    measure(f"{peers}:literal", out=graphs[LITERAL], **literal)
    try:
        from benchmarks.jobs.rank_peers import install

        site = str(install(settings.site or DEFAULT_SITE))
    except ConfigError as error:
        say(f"{DIN} and {BOOSTING} are left out: {error}")
        return {LITERAL: graphs[LITERAL]}
    measure(f"{peers}:rechub_din", site=site, out=graphs[DIN], items=settings.items, max_len=settings.max_len)
    measure(f"{peers}:boosting", site=site, out=graphs[BOOSTING])
    return graphs
