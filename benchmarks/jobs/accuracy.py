"""What `benchmarks.bench_accuracy` measures: one training run, in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.measured import ROOT


def train(feature_set: str, model: dict[str, Any], training: dict[str, Any], seed: int, folder: str) -> dict[str, Any]:
    """Train conf/model/qin.yaml with these overrides; returns test metrics, the curve and rows a second.

    Test scores of the best look are left in `folder/scores.npy`.
    """
    import torch

    from ctr.config import load_preset
    from ctr.data.feature_tables import frozen_tables
    from ctr.evaluation.metrics import auc, log_loss
    from ctr.model.click_model import ClickModel
    from ctr.training.allocator import keep_freed_memory
    from ctr.training.loop import fit, predict
    from features.progress import silent
    from features.store.feature_set import FeatureSet

    keep_freed_memory()
    data = FeatureSet.open(Path(feature_set))
    overrides = {"model": model, "train": {**training, "seed": seed, "device": "cpu"}}
    preset = load_preset(ROOT / "conf/model/qin.yaml", ROOT / "conf/train.yaml", overrides)
    torch.manual_seed(seed)
    ranker = ClickModel(preset.model, data.schema)
    ranker.attach(frozen_tables(data))
    result = fit(ranker, data, preset.train, Path(folder), progress=silent)
    scores = predict(ranker, data, "test")
    labels = np.concatenate([part["label"] for part in data.rows("test")])
    np.save(Path(folder) / "scores.npy", scores)
    return {
        "auc": auc(labels, scores),
        "log_loss": log_loss(labels, scores),
        "rows_per_s": result.rows_per_second,
        "curve": [{"epoch": look.epoch, "auc": look.auc} for look in result.curve],
    }
