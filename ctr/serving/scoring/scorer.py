"""`scorer.onnx` in ONNX Runtime: batches of requests to scores, no torch.

Shapes: U requests of up to N candidates, H outputs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from ctr.serving.bundle import ITEM_DELTA, SCORER
from ctr.serving.items.delta import ItemDelta
from ctr.serving.ranker import delta_width
from features.errors import NumericalError


class Scorer:
    """Scores batches of encoded requests.

    Args:
        session: of `scorer.onnx`.
        later_KD: rows of items behind those of the item table, float32 [K, D]; default none.
    """

    def __init__(self, session: Any, later_KD: np.ndarray | None = None) -> None:
        self._session = session
        self._later = {} if later_KD is None else {ITEM_DELTA: later_KD}
        self.inputs = tuple(node.name for node in session.get_inputs())
        self.outputs = tuple(node.name for node in session.get_outputs())

    @classmethod
    def open(cls, folder: Path, threads: int = 1) -> Scorer:
        """Open the graph of a bundle whose files were compared with their hashes.

        Args:
            folder: of the bundle.
            threads: that compute one batch.
        """
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # it warns of each graph that has a default for an input, as ours for the delta
        session = ort.InferenceSession(folder / SCORER, options, providers=["CPUExecutionProvider"])
        later = ItemDelta.load(folder, delta_width(session))
        return cls(session, None if later is None else later.rows_KD)

    def scores(self, feed: dict[str, np.ndarray]) -> np.ndarray:
        """Probabilities float32 [U, N, H] of a click and of further labels; those of padding mean nothing.

        Args:
            feed: inputs by name, at least those of the graph; item rows lie inside the item table.

        Raises:
            NumericalError: a score is not finite.
        """
        outputs = self._session.run(None, {name: feed[name] for name in self.inputs} | self._later)
        scores_UNH = np.stack(outputs, axis=-1)
        if not np.isfinite(scores_UNH).all():
            raise NumericalError(
                f"{int((~np.isfinite(scores_UNH)).sum())} of {scores_UNH.size} scores are not finite. Score with the "
                "bundle before this one."
            )
        return scores_UNH
