"""What `quadrank bench score` measures, in a process of its own: a bundle, and two ways of scoring the same rows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.measured import peak_mib
from benchmarks.inputs.mmctr_shaped import LEVELS, START
from benchmarks.jobs.rank import model_of

LOG = "interactions.parquet"


def export(feature_set: str, out: str, preset: str, sizes: dict[str, Any]) -> None:
    """Export a model of a preset with the weights that it begins with, the graph of many requests too.

    Args:
        feature_set: folder.
        out: new folder of the bundle.
        preset: name of a file of conf/model.
        sizes: model settings over those of the paper.
    """
    from ctr.export.export_bundle import Extras, export_bundle
    from features.store.feature_set import FeatureSet

    data = FeatureSet.open(Path(feature_set))
    export_bundle(
        model_of(data, preset, sizes).eval(),
        data,
        Path(out),
        model_version=preset,
        architecture=preset,
        metrics={},
        controls={},
        git_revision="",
        extras=Extras(scorer=True),
    )


def times(
    bundle: str, raw: str, folder: str, requests: int, alone: int, items_a_user: int, threads: int
) -> dict[str, Any]:
    """Score the same rows with `quadrank score` and, some of them, as one request a user.

    A request is a user at a time of the later half of the log, with levels of its own, so no two are alike.

    Args:
        bundle: with the graph of many requests.
        raw: folder of the log, whose events both ways are given.
        folder: for the parquet files; made here.
        requests: that the rows belong to.
        alone: of them that are also scored one by one, from the request as JSON has it, after one that warms up.
        items_a_user: rows of a request.
        threads: of either way.

    Returns:
        `rows`; `score` and `one_request`, rows a second; `logit_difference`, largest of the rows scored both ways.
        `peak_mib` of the process.
    """
    import polars as pl
    from rich.console import Console

    from ctr.serving.agreement import logit_difference
    from ctr.serving.ranker import Ranker
    from features.encoding.request import Limits
    from pipelines.serving.score import score_file

    ranker = Ranker.load(Path(bundle), threads, Limits(max_candidates=items_a_user))
    log = pl.read_parquet(Path(raw) / LOG)
    rows = _rows(ranker.encoder, len(log), requests, items_a_user)
    Path(folder).mkdir()
    source, output = Path(folder) / "rows.parquet", Path(folder) / "scores.parquet"
    rows.write_parquet(source)
    summary = score_file(Path(bundle), source, output, Path(raw) / LOG, 32_768, threads, Console(quiet=True))
    asked = _as_requests(rows.head((alone + 1) * items_a_user), log, ranker.encoder, items_a_user)
    ranker.rank(asked[-1])
    started = time.perf_counter()
    answers = [ranker.rank(request) for request in asked[:-1]]
    seconds = time.perf_counter() - started
    found = [{one.item: one.score for one in answer.ranked} for answer in answers]
    one_by_one = [scores[item] for scores, request in zip(found, asked, strict=False) for item in request["candidates"]]
    together = pl.read_parquet(output)["score"].head(len(one_by_one)).to_numpy()
    return {
        "rows": len(rows),
        "score": summary["rows_per_s"],
        "one_request": len(one_by_one) / seconds,
        "logit_difference": logit_difference(together, np.array(one_by_one)),
        "peak_mib": peak_mib(),
    }


def _rows(encoder: Any, logged: int, requests: int, items_a_user: int) -> Any:
    """Rows to score, those of a request one after the other."""
    import polars as pl

    generator = np.random.default_rng(5)
    item_QN = np.stack(
        [generator.choice(encoder.items.values.to_numpy(), items_a_user, replace=False) for _ in range(requests)]
    )
    of_request = {
        "user": generator.choice(encoder.users.values.to_numpy(), requests),
        "time": START + generator.integers(logged // 2, logged, requests),
        "likes_level": generator.integers(1, LEVELS + 1, requests),
        "views_level": generator.integers(1, LEVELS + 1, requests),
    }
    repeated = {name: np.repeat(values, items_a_user) for name, values in of_request.items()}
    return pl.DataFrame(repeated | {"item": item_QN.ravel()})


def _as_requests(rows: Any, log: Any, encoder: Any, items_a_user: int) -> list[dict[str, Any]]:
    """The same rows as requests, each with the newest events that its user had before."""
    import polars as pl

    past = {int(user): part.sort("timestamp") for (user,), part in log.group_by("user_id")}
    found = []
    for start in range(0, len(rows), items_a_user):
        part = rows[start : start + items_a_user]
        first = part.row(0, named=True)
        events = past[first["user"]].filter(pl.col("timestamp") < first["time"]).tail(encoder.schema.history_max_len)
        history = events.select(pl.col("item_id").alias("item"), pl.col("timestamp").alias("time"), "label")
        found.append(
            {
                "user": first["user"],
                "time": first["time"],
                "context": {name: first[name] for name in ("likes_level", "views_level")},
                "history": history.to_dicts(),
                "candidates": part["item"].to_list(),
            }
        )
    return found
