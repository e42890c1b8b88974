"""What `benchmarks.bench_warm` measures: one policy of daily training over some days, in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.measured import ROOT
from benchmarks.jobs.daily import write_days
from features.build.build import build_feature_set
from features.contract.contract import load_contract
from features.store.feature_set import FeatureSet

CONTRACT = ROOT / "conf/data/simulated.yaml"


def simulate_days(out: str, rows: int, users: int, items: int, drift: float) -> list[str]:
    """Write a raw log of one file a day, in which tastes change and new items come; returns the days that are whole."""
    from features.simulator.simulate import simulate

    simulate(Path(out), rows=rows, users=users, items=items, seed=1, drift=drift)
    return write_days(Path(out))


def build(raw: str, out: str, days: list[str], window: int) -> list[str]:
    """Build the feature set of the window that ends with each of these days; returns their folders.

    All but the last two days of a window train; then one validates and the newest one judges.
    """
    over = {"interactions": {"path": "log/*.parquet"}, "split": {"by": "days", "valid": 1, "test": 1}, "truth": None}
    contract = load_contract(CONTRACT, over, root=raw)
    built = [build_feature_set(contract, Path(out), as_of=day, window=window) for day in days]
    return [str(one.feature_set.path) for one in built]


def start(feature_set: str, folder: str, model: dict[str, Any], training: dict[str, Any], seed: int) -> None:
    """The full training that every policy goes on from."""
    _train(FeatureSet.open(Path(feature_set)), Path(folder), None, model, {**training, "seed": seed})


def follow(
    feature_sets: list[str],
    folder: str,
    first: str,
    model: dict[str, Any],
    training: dict[str, Any],
    warm: bool,
    full_every: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Train day after day by one policy; returns quality and cost of each day.

    Scores, labels and raw user ids of the day's test rows are left in `folder/<number>/test.npz`.

    Args:
        feature_sets: of the first run, then one a day.
        folder: of the runs.
        first: folder of the run that a warm start on the first day goes on from.
        model, training: overrides of the preset.
        warm: whether a day goes on from the day before.
        full_every: every so many days are full trainings all the same; 0 for none.
        seed: of weights, orders and draws.
    """
    from ctr.training.warm.parent import Parent

    found = []
    before, before_on = Path(first), FeatureSet.open(Path(feature_sets[0]))
    settings = {**training, "seed": seed}
    for number, path in enumerate(feature_sets[1:], 1):
        feature_set, run = FeatureSet.open(Path(path)), Path(folder) / str(number)
        parent = None
        if warm and not (full_every and number % full_every == 0):
            parent = Parent.read(before, _preset(model, settings), before_on)
        found.append(_train(feature_set, run, parent, model, settings))
        before, before_on = run, feature_set
    return found


def _preset(model: dict[str, Any], training: dict[str, Any]) -> Any:
    from ctr.config import load_preset

    overrides = {"model": model, "train": {**training, "device": "cpu"}}
    return load_preset(ROOT / "conf/model/qin.yaml", ROOT / "conf/train.yaml", overrides)


def _train(
    feature_set: FeatureSet, run: Path, parent: Any, model: dict[str, Any], training: dict[str, Any]
) -> dict[str, Any]:
    from ctr.evaluation.metrics import auc, log_loss
    from ctr.training.allocator import keep_freed_memory
    from ctr.training.loop import predict
    from ctr.training.warm.transfer import rows_to_train
    from features.encoding.encoder import Encoder
    from features.progress import silent
    from pipelines.job.fitting import fit_and_calibrate, new_model

    keep_freed_memory()
    preset = _preset(model, training)
    ranker = new_model(preset.model, feature_set, preset.train.seed)
    result, _ = fit_and_calibrate(ranker, feature_set, preset.train, run, progress=silent, warm=parent)
    rows = feature_set.manifest.windows["train"].rows
    if parent is not None:
        rows = len(rows_to_train(feature_set, parent.newest, preset.train.warm_start.replay, preset.train.seed))
    scores = predict(ranker, feature_set, "test")
    parts = feature_set.rows("test")
    labels, users = (np.concatenate([part[name] for part in parts]) for name in ("label", "user"))
    ids = Encoder.load(feature_set.path).users.values.to_numpy()[users - 2]
    np.savez(run / "test.npz", scores=scores, labels=labels, users=ids)
    return {
        "auc": auc(labels, scores),
        "log_loss": log_loss(labels, scores),
        "row_passes": round(rows * result.epochs_run),
        "seconds": result.seconds,
    }
