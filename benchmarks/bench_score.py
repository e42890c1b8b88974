"""Rows a second of `quadrank score`, beside the same rows as requests of the ranker, by how many items a user has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.bench_rank import USERS_A_LOG
from benchmarks.harness.measured import measure
from benchmarks.harness.report import Report
from benchmarks.inputs.presets import shipped_sizes
from ctr.serving.agreement import TOLERANCE

PRESET = "qin"
SCORE, ALONE = "quadrank score", "a request a user"
COLUMNS = {
    "name": "scoring",
    "items_a_user": "items a user",
    "threads": "threads",
    "rows": "rows",
    "rows_per_s": "rows/s",
    "over_one_request": "over one request",
}


@dataclass(frozen=True)
class ScoreBench:
    """What is measured.

    Args:
        rows, items, max_len: of the log, in the shape of MM-CTR (`benchmarks.inputs.mmctr_shaped`).
        scored: rows that are scored, for each number of items; as many requests as they make.
        alone: requests of them that are scored one by one too.
        items_a_user: numbers of rows of a request.
        threads: of the model, either way.
        paper: the widths of the paper; false: those of conf/model/qin.yaml.
        sizes: model settings over those.
    """

    rows: int
    items: int
    max_len: int
    scored: int
    alone: int
    items_a_user: tuple[int, ...]
    threads: int
    paper: bool
    sizes: dict[str, Any] = field(default_factory=dict)


def run(work: Path, say: Callable[[str], object], settings: ScoreBench) -> Report:
    """Export a bundle and score with it, one process for each number of items.

    Raises:
        ConfigError: too few rows for the items; a process was killed.
        RuntimeError: a call failed, or the two ways give different scores.
    """
    say(f"simulating {settings.rows:,} rows of {settings.items:,} items, histories of up to {settings.max_len}")
    log = measure(
        "benchmarks.inputs.mmctr_shaped:build",
        out=str(work / "log"),
        rows=settings.rows,
        users=USERS_A_LOG,
        items=settings.items,
        max_len=settings.max_len,
    ).result
    bundle = str(work / "bundle")
    measure(
        "benchmarks.jobs.score:export",
        feature_set=log["feature_set"],
        out=bundle,
        preset=PRESET,
        sizes=({} if settings.paper else shipped_sizes(PRESET)) | settings.sizes,
    )
    results: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    for each in settings.items_a_user:
        done = measure(
            "benchmarks.jobs.score:times",
            bundle=bundle,
            raw=log["raw"],
            folder=str(work / f"rows_{each}"),
            requests=settings.scored // each,
            alone=settings.alone,
            items_a_user=each,
            threads=settings.threads,
        ).result
        if not done["logit_difference"] <= TOLERANCE:
            raise RuntimeError(f"{each} items a user: both ways differ by {done['logit_difference']:.1e} in logits")
        ratio = done["score"] / done["one_request"]
        sizes = {"items_a_user": each, "threads": settings.threads}
        results += [
            {"name": SCORE, **sizes, "rows": done["rows"], "rows_per_s": done["score"], "over_one_request": ratio},
            {
                "name": ALONE,
                **sizes,
                "rows": each * settings.alone,
                "rows_per_s": done["one_request"],
                "over_one_request": 1.0,
            },
        ]
        ratios[f"score_over_one_request_{each}_items"] = round(ratio, 3)
        say(f"{each} items a user: {done['score']:,.0f} rows/s, {done['one_request']:,.0f} one by one")
    return Report(results, ratios, COLUMNS)
