"""What a way of training does to accuracy: variants of one preset on the simulated log, seed by seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.harness.measured import measure
from benchmarks.harness.report import Report
from ctr.reporting.figures import BLUE, GREEN, GREY, ORANGE
from features.errors import ConfigError

Settings = dict[str, Any]
Result = dict[str, Any]

COLUMNS = {
    "name": "variant",
    "auc": "test AUC",
    "auc_sd": "sd over seeds",
    "difference": "to the first",
    "largest_difference": "largest of a seed",
    "last_auc": "valid AUC at the end",
    "log_loss": "log loss",
}
COLOURS = (GREY, BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00")


@dataclass(frozen=True)
class Variant:
    """One way to train: overrides of the model's and of the training's settings."""

    model: Settings = field(default_factory=dict)
    train: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """Variants that are compared with the first of them, and what all of them share."""

    variants: Mapping[str, Variant]
    model: Settings = field(default_factory=dict)
    train: Settings = field(default_factory=dict)


STUDIES = {
    # As shipped, to the last digit that half precision and merged rows may change.
    "precision": Study(
        {
            "fp32": Variant(model={"merge_rows": False}),
            "bf16": Variant(model={"merge_rows": False}, train={"precision": "bf16"}),
            "fp32_merged": Variant(model={"merge_rows": True}),
            "bf16_merged": Variant(model={"merge_rows": True}, train={"precision": "bf16"}),
        }
    ),
    # Ids that can be learned by heart: the user's own, barely regularised, for many epochs.
    "epochs": Study(
        {
            "weak_l2": Variant(),
            "shipped_l2": Variant(train={"embedding_l2": 1e-3}),
            "lazy_adam": Variant(train={"table_optimizer": "lazy_adam"}),
            "lazy_adam_l2": Variant(train={"table_optimizer": "lazy_adam", "embedding_l2": 1e-3}),
            "reset_embeddings": Variant(train={"reset_embeddings": True}),
        },
        model={"use_user_id": True},
        train={"epochs": 5, "embedding_l2": 1e-6, "schedule": "constant", "learning_rate": 1e-3, "patience": 0},
    ),
}


def run(
    work: Path, say: Callable[[str], object], *, study: str, seeds: int, rows: int, users: int, items: int
) -> Report:
    """Train each variant with each seed, one after the other, each in a fresh process.

    Args:
        work: folder for the raw log, its feature set and the runs.
        say: told what goes on.
        study: precision or epochs.
        seeds: how many, from 1.
        rows: of the simulated log.
        users: of the simulated log.
        items: of the simulated log.

    Raises:
        ConfigError: no such study.
        RuntimeError: a run failed.
    """
    if study not in STUDIES:
        raise ConfigError(f"--study {study!r}: choose {' or '.join(STUDIES)}.")
    chosen = STUDIES[study]
    raw, out = str(work / "raw"), str(work / "feature_set")
    measure("benchmarks.jobs.feature_build:simulate", out=raw, rows=rows, users=users, items=items)
    feature_set = measure("benchmarks.jobs.feature_build:build", raw=raw, out=out, max_len=50).result["path"]
    runs: dict[str, list[Result]] = {name: [] for name in chosen.variants}
    for seed in range(1, seeds + 1):
        for name, variant in chosen.variants.items():
            done = measure(
                "benchmarks.jobs.accuracy:train",
                feature_set=feature_set,
                model={**chosen.model, **variant.model},
                training={**chosen.train, **variant.train},
                seed=seed,
                folder=str(work / f"{name}-{seed}"),
            ).result
            runs[name].append(done)
            say(f"seed {seed} {name}: test AUC {done['auc']:.4f}, valid at the end {done['curve'][-1]['auc']:.4f}")
    first = runs[next(iter(runs))]
    results = [_result(name, of_variant, first) for name, of_variant in runs.items()]
    ratios = {f"auc_{row['name']}_minus_{results[0]['name']}": row["difference"] for row in results[1:]}
    return Report(results, ratios, COLUMNS, {"curves": curves(runs)})


def curves(runs: Mapping[str, Sequence[Result]]) -> Figure:
    """Validation AUC over epochs, the mean of the seeds of each variant."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for (name, of_variant), colour in zip(runs.items(), COLOURS, strict=False):
        looks = min(len(one["curve"]) for one in of_variant)
        epochs = [look["epoch"] for look in of_variant[0]["curve"][:looks]]
        values = np.mean([[look["auc"] for look in one["curve"][:looks]] for one in of_variant], axis=0)
        axes.plot(epochs, values, "o-", markersize=3, color=colour, label=name)
    axes.set(xlabel="epochs", ylabel="AUC on the validation rows")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#e5e5e5", linewidth=0.8)
    axes.legend(frameon=False, fontsize=9)
    return figure


def _result(name: str, runs: Sequence[Result], first: Sequence[Result]) -> Result:
    aucs = [one["auc"] for one in runs]
    differences = [one["auc"] - other["auc"] for one, other in zip(runs, first, strict=True)]
    return {
        "name": name,
        "auc": round(mean(aucs), 4),
        "auc_sd": round(stdev(aucs), 5) if len(aucs) > 1 else None,
        "difference": round(mean(differences), 5),
        "largest_difference": round(max(differences, key=lambda difference: abs(difference)), 5),
        "last_auc": round(mean(one["curve"][-1]["auc"] for one in runs), 4),
        "log_loss": round(mean(one["log_loss"] for one in runs), 4),
        "rows_per_s": mean(one["rows_per_s"] for one in runs),
        "all_auc": [round(value, 5) for value in aucs],
    }
