"""Labels and scores for tests of metrics."""

from __future__ import annotations

import numpy as np


def rows(count: int, seed: int = 0, ties: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn with the probabilities that are the scores; `ties` rounds them to so many steps."""
    draw = np.random.default_rng(seed)
    scores = draw.beta(1, 3, count)
    labels = (draw.random(count) < scores).astype(np.float32)
    return labels, scores if ties is None else np.round(scores * ties) / ties
