"""FuxiCTR's DIN, DCNv2 and FinalMLP on any feature set's own rows and split: the public opponents of a study.

They are given what ours are given, in FuxiCTR's own terms: item id, item columns and vectors (first 32 principal
components) of the target and of as many past items, what each past event said, user columns, context and counters of
the row, and whether a number is missing (`benchmarks.peers.fuxictr_data`). Layers are FuxiCTR's defaults for DIN (512,
128, 64 units; 64 with Dice in the attention), the same for DCNv2 beside its three cross layers and for both perceptrons
of FinalMLP, with batch norm. Training stops as FuxiCTR's own `fit` does: by validation AUC each half epoch, patience 2;
the learning rate falls on a plateau. Settings are those of `fuxictr/settings.yaml`, which says whether
`benchmarks.peers.fuxictr_search` found them.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.fuxictr_data import FEATURE_MAP, HISTORIES, write_data
from benchmarks.peers.fuxictr_peer import HERE, environment
from ctr.training.allocator import KEEPING
from features.contract.settings import load_yaml
from features.errors import ConfigError
from features.store.feature_set import FeatureSet

SCRIPT = HERE / "train_rows.py"
SETTINGS = HERE / "settings.yaml"
DONE = "done.json"  # beside the scores, written last: what they were trained from
ERROR = "error.txt"
MODELS = ("DIN", "DCNv2", "FinalMLP")


@dataclass(frozen=True)
class PeerScores:
    """What one training gave.

    Args:
        scores: probabilities by split in stored row order, float32 [rows].
        facts: rows_per_second (looks at validation rows included), seconds and parameters.
    """

    scores: dict[str, np.ndarray]
    facts: dict[str, float]


@dataclass(frozen=True)
class Failed:
    """A training that FuxiCTR could not end. `why`: what it said."""

    why: str


def settings_of(model: str) -> dict[str, Any]:
    """The settings of a model: the shared ones of `fuxictr/settings.yaml` with the model's own on top.

    Args:
        model: one of `MODELS`.
    """
    content = load_yaml(SETTINGS)
    return {**content["shared"], **content["models"].get(model, {})}


def train_peer(feature_set: Path, model: str, seeds: Sequence[int], folder: Path, **changes: Any) -> list[PeerScores]:
    """Train one of FuxiCTR's models; a training of the same feature set with the same settings is read again.

    Args:
        feature_set: its folder.
        model: one of `MODELS`.
        seeds: of weights and shuffling, a training each.
        folder: gets the environment, FuxiCTR's files and the results.
        changes: of the model's settings.

    Raises:
        ConfigError: the environment cannot be made, or training was killed, as a rule for want of memory.
        RuntimeError: training failed.
    """
    settings = settings_of(model) | changes | {"model": model}
    outs = {folder / f"{model}-{seed}": settings | {"seed": seed} for seed in seeds}
    found = train_rows(FeatureSet.open(feature_set), outs, folder)
    for one in found:
        if isinstance(one, Failed):
            raise RuntimeError(f"FuxiCTR's {model} failed:\n{one.why}")
    return [one for one in found if isinstance(one, PeerScores)]


def train_rows(
    feature_set: FeatureSet, trainings: Mapping[Path, dict[str, Any]], folder: Path
) -> list[PeerScores | Failed]:
    """Train on the rows of a feature set, one after the other in one process; what was trained before is read again.

    Args:
        feature_set: whose rows; it may be a share of another.
        trainings: by the folder that gets its results: the settings of `fuxictr/settings.yaml`, `model` and `seed`.
        folder: gets the environment and FuxiCTR's files.

    Raises:
        ConfigError: as `train_peer`, or no such history.
        RuntimeError: the process failed before its first training.
    """
    manifest = feature_set.manifest
    rows = manifest.windows["train"].rows
    asked = {
        out: {**settings, "feature_set": f"{manifest.name}/{manifest.version}", "rows": rows}
        for out, settings in trainings.items()
    }
    waiting = []
    for out, wanted in asked.items():
        if _is_done(out, wanted):
            continue
        # What lies there is of other rows or settings, and must never pass for these.
        out.mkdir(parents=True, exist_ok=True)
        for old in (DONE, ERROR):
            (out / old).unlink(missing_ok=True)
        data = _data(feature_set, wanted["history"], folder / "data" / f"{manifest.version}-{rows}")
        places = {"folder": str(data.resolve()), "out": str(out.resolve())}
        waiting.append({**wanted, **places, "max_len": feature_set.schema.history_max_len, "asked": wanted})
    if waiting:
        _train(environment(environment_of(folder)), waiting)
    return [_read(out, wanted) for out, wanted in asked.items()]


def _data(feature_set: FeatureSet, history: str, folder: Path) -> Path:
    """The folder of what FuxiCTR reads, which is written once."""
    if history not in HISTORIES:
        raise ConfigError(f"history: {history!r} must be one of {', '.join(HISTORIES)}, in {SETTINGS}.")
    data = folder.with_name(f"{folder.name}-{history}")
    if not (data / FEATURE_MAP).is_file():
        write_data(feature_set, history, data)
    return data


def _is_done(out: Path, wanted: dict[str, Any]) -> bool:
    done = out / DONE
    return done.is_file() and json.loads(done.read_text(encoding="utf-8")) == wanted


def _read(out: Path, wanted: dict[str, Any]) -> PeerScores | Failed:
    if not _is_done(out, wanted):
        return Failed((out / ERROR).read_text(encoding="utf-8"))
    scores = {split: np.load(out / f"{split}.npy", allow_pickle=False) for split in ("valid", "test")}
    return PeerScores(scores, json.loads((out / "facts.json").read_text(encoding="utf-8")))


def environment_of(folder: Path) -> Path:
    """Where the environment of peers that work in a folder lies."""
    return (folder / "venv").absolute()


def _train(python: Path, trainings: list[dict[str, Any]]) -> None:
    command = [str(python), str(SCRIPT), json.dumps(trainings)]
    # The allocator of our own trainings.
    environ = os.environ | KEEPING
    done = subprocess.run(command, capture_output=True, text=True, cwd=trainings[0]["folder"], env=environ)
    if done.returncode < 0:
        largest = max(trainings, key=lambda one: one["batch_size"])
        raise ConfigError(
            f"FuxiCTR's {largest['model']} was killed by signal {-done.returncode}, as a rule for want of memory. "
            f"Lower the batch size ({largest['batch_size']:,})."
        )
    if done.returncode:
        raise RuntimeError(f"FuxiCTR failed:\n{done.stderr}")
