"""`scorer.onnx` in ONNX Runtime: batches of requests to scores, no torch.

Shapes: U requests of up to N candidates, H outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from ctr.serving.bundle import ITEM_DELTA, SCORE, SCORER, Bundle, GoldenRequest
from ctr.serving.items.delta import ItemDelta
from ctr.serving.ranker import delta_width, graph_inputs, load_graph
from features.encoding.encoder import Encoder
from features.encoding.request import Limits, parse_request
from features.errors import ConfigError, NumericalError
from features.requests.past_columns import RequestEncoder


class Scorer:
    """Scores batches of encoded requests.

    Args:
        session: of `scorer.onnx`.
        later: items that were upserted since the export.
    """

    def __init__(self, session: Any, later: ItemDelta | None = None) -> None:
        self._session = session
        self.later = later
        self._later = {} if later is None else {ITEM_DELTA: later.rows_KD}
        self.inputs = tuple(node.name for node in session.get_inputs())
        self.outputs = tuple(node.name for node in session.get_outputs())

    @classmethod
    def open(cls, folder: Path, threads: int = 1) -> Scorer:
        """Open the graph of a bundle whose files were compared with their hashes.

        Args:
            folder: of the bundle.
            threads: that compute one batch.

        Raises:
            ConfigError: the bundle was exported without it.
        """
        if not (folder / SCORER).is_file():
            raise ConfigError(
                f"{folder.name} was exported without {SCORER}. Export the run again with `quadrank export --scorer`."
            )
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # it warns of each graph that has a default for an input, as ours for the delta
        session = load_graph(folder / SCORER, options)
        return cls(session, ItemDelta.load(folder, delta_width(session)))

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

    def replay(self, bundle: Bundle, exported: Encoder) -> float:
        """Score the golden requests in one batch; the largest `logit_difference` from their recorded scores.

        Args:
            bundle: of the graph.
            exported: its encoder, with the items as they were when the scores were recorded.

        Raises:
            NumericalError: it exceeds the tolerance that `golden.json` states.
        """
        requests = RequestEncoder(exported)

        def score(cases: Sequence[GoldenRequest]) -> list[np.ndarray]:
            parsed = [parse_request(case.request, exported.contract, Limits()) for case in cases]
            scores_UNH = self.scores(padded([graph_inputs(requests.encode(one)) for one in parsed]))
            return [scores_NH[: len(one.candidates)] for scores_NH, one in zip(scores_UNH, parsed, strict=True)]

        return bundle.replay(tuple(name.removeprefix(f"{SCORE}_") for name in self.outputs[1:]), score)


def padded(requests: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Inputs of several requests as those of the scoring graph: histories padded in front, candidates behind."""

    def together(name: str) -> np.ndarray:
        values = [one[name] for one in requests]
        if not name.startswith(("history_", "candidate_")):
            return np.concatenate(values)
        longest = max(1, *map(len, values))
        sides = [(longest - len(one), 0) if name.startswith("history_") else (0, longest - len(one)) for one in values]
        return np.stack([np.pad(one, side) for one, side in zip(values, sides, strict=True)])

    return {name: together(name) for name in requests[0]}
