"""Tunes a model of FuxiCTR as the networks of a study are tuned; prints its settings for `fuxictr/settings.yaml`.

    python -m benchmarks.peers.fuxictr_search --feature-set FOLDER --folder FOLDER --model DIN --trials 16

Trials are the present settings and those drawn at random from `fuxictr/space.yaml`, with a seed. Each is trained on
the rows of a quarter of the training users, with a look at the validation rows each epoch; then the best two and the
present settings on all of them. The highest AUC of the validation rows wins; test rows are scored and not read. A
stopped search goes on.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from sklearn.metrics import roc_auc_score

from benchmarks.peers.fuxictr_peer import HERE
from benchmarks.peers.fuxictr_rows import MODELS, Failed, settings_of, train_rows
from ctr.data.columns import column
from features.contract.settings import load_yaml
from features.store.feature_set import FeatureSet
from pipelines.tune.share import TrainingShare

SPACE = HERE / "space.yaml"
DIGITS = 3  # of a drawn number


@dataclass(frozen=True)
class Search:
    """What is tuned, and how.

    Args:
        feature_set: whose rows.
        model: one of FuxiCTR's.
        folder: gets the environment, FuxiCTR's files and the trainings.
        trials: number of settings that are drawn.
        share: of the training users, in a trial.
        best: trials that are trained on all rows; 0: none, and the best trial wins as it is.
        seed: of what is drawn; trainings have seed 1.
    """

    feature_set: FeatureSet
    model: str
    folder: Path
    trials: int
    share: float = 0.25
    best: int = 2
    seed: int = 1


@dataclass(frozen=True)
class Trained:
    """One training of a search.

    Args:
        settings: what differs from the shared ones.
        auc: of the validation rows; NaN if the training failed.
        seconds: that it took.
    """

    settings: dict[str, Any]
    auc: float
    seconds: float


def drawn(space: Mapping[str, Mapping[str, Any]], seed: int, trial: int) -> dict[str, Any]:
    """The settings of one trial.

    Args:
        space: by setting `choices`, or `low` and `high`; with `log` even in its logarithm. Whole bounds give whole
            numbers.
        seed: of the search.
        trial: its number; the same for each model, so that all have the same settings to choose from.
    """
    rng = np.random.default_rng([seed, trial])
    return {name: _one(rng, spec) for name, spec in space.items()}


def _one(rng: np.random.Generator, spec: Mapping[str, Any]) -> Any:
    if "choices" in spec:
        return spec["choices"][rng.integers(len(spec["choices"]))]
    low, high = spec["low"], spec["high"]
    if isinstance(low, int) and isinstance(high, int):
        return int(rng.integers(low, high + 1))
    value = math.exp(rng.uniform(math.log(low), math.log(high))) if spec.get("log") else rng.uniform(low, high)
    return float(f"{value:.{DIGITS}g}")


def search(asked: Search, say: Callable[[str], object]) -> Trained:
    """Train all trials, then the finalists on all rows; the best of these by validation AUC.

    Args:
        asked: what is tuned.
        say: prints a line for each training.

    Raises:
        ConfigError: the environment cannot be made, or a training was killed.
        RuntimeError: every training failed.
    """
    space = load_yaml(SPACE)["space"]
    part = TrainingShare(asked.feature_set, asked.share)
    present = {name: settings_of(asked.model)[name] for name in space}
    drawn_ones = {f"trial-{number:02}": drawn(space, asked.seed, number) for number in range(asked.trials)}
    # Half as many rows are looked at as are trained on: a second look an epoch would cost as much as it does.
    trials = _ranked(_trained(asked, part, {"trial-present": present, **drawn_ones}, {"looks": 1}, say))
    if not asked.best:
        return trials[0]
    finals = {f"best-{place}": one.settings for place, one in enumerate(trials[: asked.best], start=1)}
    return _ranked(_trained(asked, asked.feature_set, {**finals, "present": present}, {}, say))[0]


def _ranked(found: Sequence[Trained]) -> list[Trained]:
    """Those that ended well, the best first."""
    done = [one for one in found if not math.isnan(one.auc)]
    if not done:
        raise RuntimeError("FuxiCTR ended no training well: error.txt in the folder of each says why.")
    return sorted(done, key=lambda one: -one.auc)


def _trained(
    asked: Search,
    rows: FeatureSet,
    settings: Mapping[str, dict[str, Any]],
    changes: dict[str, Any],
    say: Callable[[str], object],
) -> list[Trained]:
    """A training for each name, on these rows; the AUC is NaN where FuxiCTR failed."""
    whole = settings_of(asked.model) | changes | {"model": asked.model, "seed": 1}
    folder = asked.folder / "search" / asked.model
    outs = {folder / name: {**whole, **one} for name, one in settings.items()}
    labels = column(asked.feature_set, "valid", "label")
    found = []
    for (name, one), peer in zip(settings.items(), train_rows(rows, outs, asked.folder), strict=True):
        if isinstance(peer, Failed):
            found.append(Trained(one, math.nan, math.nan))
        else:
            found.append(Trained(one, float(roc_auc_score(labels, peer.scores["valid"])), peer.facts["seconds"]))
        say(_line(name, found[-1]))
    return found


def _line(name: str, found: Trained) -> str:
    return f"{name}: AUC {found.auc:.4f}, {found.seconds:.0f} s, {json.dumps(found.settings)}"


def main() -> None:
    """Search as the command line says."""
    parser = argparse.ArgumentParser(description="Tune a model of FuxiCTR on a feature set.")
    parser.add_argument("--feature-set", type=Path, required=True, help="its folder")
    parser.add_argument("--folder", type=Path, required=True, help="gets the environment and all trainings")
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--share", type=float, default=0.25, help="of the training users, in a trial")
    parser.add_argument("--best", type=int, default=2, help="trials that are trained on all rows; 0: none")
    parser.add_argument("--seed", type=int, default=1, help="of what is drawn")
    asked = vars(parser.parse_args())
    feature_set = FeatureSet.open(asked.pop("feature_set"))
    found = search(Search(feature_set=feature_set, **asked), lambda line: print(line, flush=True))
    print(yaml.safe_dump({asked["model"]: found.settings}, sort_keys=False, default_flow_style=None), end="")


if __name__ == "__main__":
    main()
