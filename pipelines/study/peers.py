"""Public libraries as peers of a study, each in its own environment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from features.contract.contract import Contract
from features.errors import ConfigError
from features.store.feature_set import FeatureSet, SplitName
from pipelines.checkout import checkout
from pipelines.study.study import Peer

MODULE = "peers/fuxictr_rows"  # of benchmarks
MODELS: dict[Peer, str] = {"fuxictr_din": "DIN", "fuxictr_dcnv2": "DCNv2", "fuxictr_finalmlp": "FinalMLP"}


def require_peers(peers: Sequence[Peer], contract: Contract, folder: Path) -> None:
    """Make the environment of a study's peers, if it has any, so that a failure comes before the first training.

    Args:
        peers: of the study.
        contract: of the data that they are trained on.
        folder: of the study.

    Raises:
        ConfigError: this is no checkout, the environment cannot be made, or a table has versions.
    """
    if not peers:
        return
    if contract.has_versions:
        raise ConfigError(
            f"peers {', '.join(peers)}: {contract.name} has tables with `valid_from`, and FuxiCTR's loader takes "
            "one row an item and user. Take the peers out of the study, or `valid_from` out of its data."
        )
    checkout(MODULE, f"peers {', '.join(peers)}")
    from benchmarks.peers.fuxictr_peer import environment
    from benchmarks.peers.fuxictr_rows import environment_of

    environment(environment_of(_work(folder)))


def peer_scores(
    peer: Peer, feature_set: FeatureSet, splits: Sequence[SplitName], seeds: int, folder: Path
) -> tuple[dict[SplitName, np.ndarray], dict[str, float]]:
    """Probabilities by split [seeds, rows] of a peer trained on the same rows, and its rows a second and parameters.

    Args:
        peer: which one.
        feature_set: whose rows it is trained on.
        splits: whose rows it scores.
        seeds: 1 to this number.
        folder: of the study.

    Raises:
        ConfigError: this is no checkout, or the environment cannot be made.
    """
    checkout(MODULE, f"peer {peer}")
    from benchmarks.peers.fuxictr_rows import train_peer

    found = train_peer(feature_set.path, MODELS[peer], range(1, seeds + 1), _work(folder))
    facts = {
        name: float(np.median([trained.facts[name] for trained in found])) for name in ("rows_per_second", "parameters")
    }
    return {split: np.stack([trained.scores[split] for trained in found]) for split in splits}, facts


def _work(folder: Path) -> Path:
    """The folder of the peers' environment, files and scores."""
    return folder / "fuxictr"
