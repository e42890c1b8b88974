"""Parity of the scoring graph: batches of random requests get the probabilities of the trained torch model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ctr.export.parity import check_parity
from ctr.export.row_request import RowRequest
from ctr.model.click_model import ClickModel
from ctr.serving.bundle import SCORER
from ctr.serving.ranker import graph_inputs
from ctr.serving.scoring.scorer import Scorer, padded

TOGETHER = 8


def check_scorer_parity(
    model: ClickModel, users: Mapping[str, np.ndarray], folder: Path, requests: Sequence[RowRequest]
) -> float:
    """Largest difference in logits between `scorer.onnx` and the trained model, over requests scored several at once.

    Args:
        model: the trained model, its tables attached.
        users: the encoded user columns of its feature set.
        folder: of the bundle.
        requests: of any lengths; both histories and candidates are padded.

    Raises:
        NumericalError: their logits differ by more than `TOLERANCE`, or a score is not a number.
    """
    scorer = Scorer.open(folder)

    def scores() -> Iterator[np.ndarray]:
        for first in range(0, len(requests), TOGETHER):
            some = requests[first : first + TOGETHER]
            got_UNH = scorer.scores(padded([graph_inputs(one.encoded(model.schema, users)) for one in some]))
            yield from (got_NH[: len(one.candidate_item)] for one, got_NH in zip(some, got_UNH, strict=True))

    found = scores()
    return check_parity(model, users, lambda _: next(found), requests, SCORER).logit
