"""The bundles of a month on the rows of the day after: beside the one before, a fresh training and the optimum.

The rows are of the clean log, whatever the job saw. No bundle and no training has seen them.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.harness.measured import ROOT
from ctr.evaluation.bootstrap import Interval, auc_interval
from ctr.evaluation.metrics import auc
from ctr.evaluation.paired import paired_differences
from ctr.serving.bundle import open_bundle
from ctr.serving.ranker import Ranker
from features.build.build import build_feature_set
from features.contract.contract import load_contract
from features.encoding.encoder import Encoder
from features.progress import silent
from features.store.feature_set import FeatureSet
from pipelines.gate.fresh import FreshRows, fresh_rows, scores_from_log

CONTRACT = ROOT / "conf/data/simulated.yaml"
MOST_ROWS = 20_000


def score_nights(
    clean: str,
    work: str,
    nights: list[dict[str, Any]],
    window: int,
    fresh_every: int,
    settings: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """AUC of each night's champion on the next day; what a night promoted is compared with the champion before it.

    Args:
        clean: raw log of one file a day.
        work: folder for feature sets and trainings.
        nights: of each `next_day`, `champion` (folder of a bundle), and `before` (the one that a promotion replaced,
            else None).
        window: days of a feature set.
        fresh_every: every so many nights a model is trained from nothing on the clean window, too.
        settings: `data`, `model` and `train`, over the presets.

    Returns:
        For each night: `rows`, `auc`, `auc_low`, `auc_high`, `optimum`, `fresh` (AUC or None), and `beside`: of a
        promotion, difference, low and high of `auc` and `log_loss`; else None.
    """
    contract = load_contract(CONTRACT, settings["data"], root=clean)
    found = []
    for number, night in enumerate(nights):
        built = build_feature_set(contract, Path(work) / "feature_sets", as_of=night["next_day"], window=window)
        rows = fresh_rows(built.feature_set, MOST_ROWS)
        labels_N = rows.label_N.astype(float)
        scores_N = _scores(night["champion"], rows)
        interval = auc_interval(labels_N, scores_N, clusters=rows.user_N)
        found.append(
            {
                "rows": len(labels_N),
                **dict(zip(("auc", "auc_low", "auc_high"), map(float, interval), strict=True)),
                "optimum": _optimum(Path(clean), rows),
                "fresh": _fresh(built.feature_set, rows, Path(work), settings) if number % fresh_every == 0 else None,
                "beside": _beside(rows, scores_N, _scores(night["before"], rows)) if night["before"] else None,
            }
        )
    return found


def _scores(folder: str, rows: FreshRows) -> np.ndarray:
    return scores_from_log(Ranker.of(open_bundle(Path(folder))), rows)


def _beside(rows: FreshRows, ours_N: np.ndarray, theirs_N: np.ndarray) -> dict[str, list[float]]:
    found = paired_differences(rows.label_N.astype(float), ours_N, theirs_N, rows.groups, clusters=rows.user_N)
    return {name: _listed(found[name]) for name in ("auc", "log_loss")}


def _listed(interval: Interval) -> list[float]:
    return [float(interval.value), float(interval.low), float(interval.high)]


def _optimum(clean: Path, rows: FreshRows) -> float:
    """AUC of the true click probabilities of the same rows."""
    names = Encoder.load(rows.feature_set.path)
    asked = pl.DataFrame(
        {
            "user_id": [names.users.value(row) for row in rows.user_N.tolist()],
            "item_id": [names.items.value(row) for row in rows.item_N.tolist()],
            "timestamp": pl.Series(rows.time_N).cast(pl.Datetime("us", "UTC")),
            "label": rows.label_N,
        }
    )
    truth = pl.read_parquet(clean / "truth.parquet")
    known = asked.join(truth, on=["user_id", "item_id", "timestamp"], how="left", maintain_order="left")
    return auc(known["label"].to_numpy().astype(float), known["probability"].to_numpy().astype(float))


def _fresh(feature_set: FeatureSet, rows: FreshRows, work: Path, settings: Mapping[str, Mapping[str, Any]]) -> float:
    """AUC of a model trained from nothing on the clean days before."""
    from ctr.config import load_preset
    from ctr.training.loop import predict
    from pipelines.job.fitting import fit_and_calibrate, new_model

    overrides = {name: dict(settings[name]) for name in ("model", "train")}
    preset = load_preset(ROOT / "conf/model/qin.yaml", ROOT / "conf/train.yaml", overrides)
    model, run = new_model(preset.model, feature_set, preset.train.seed), work / "fresh"
    fit_and_calibrate(model, feature_set, preset.train, run, progress=silent)
    scores_N = predict(model, feature_set, rows.split)[rows.place_N]
    shutil.rmtree(run)
    return auc(rows.label_N.astype(float), scores_N)
