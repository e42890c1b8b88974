"""Public libraries as opponents of a study, each in an environment of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from features.feature_set import FeatureSet, SplitName
from pipelines.study import Peer

MODELS: dict[Peer, str] = {"fuxictr_din": "DIN", "fuxictr_dcnv2": "DCNv2"}


def peer_scores(
    peer: Peer, feature_set: FeatureSet, split: SplitName, seeds: int, folder: Path
) -> tuple[np.ndarray, dict[str, float]]:
    """Probabilities [seeds, rows] of a peer trained on the same rows, and its rows a second and parameters.

    Raises:
        ConfigError: its environment cannot be made.
    """
    # From the source tree: benchmarks are no part of the installed package.
    from benchmarks.fuxictr_rows import train_peer

    found = [train_peer(feature_set.path, MODELS[peer], seed, folder / "fuxictr") for seed in range(1, seeds + 1)]
    facts = {name: float(np.median([one.facts[name] for one in found])) for name in ("rows_per_second", "parameters")}
    return np.stack([one.scores[split] for one in found]), facts
