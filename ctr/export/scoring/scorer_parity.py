"""Parity of the scoring graph: batches of random requests get the probabilities of the trained torch model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ctr.export.parity import expected
from ctr.export.row_request import RowRequest
from ctr.model.click_model import ClickModel
from ctr.serving.agreement import TOLERANCE, logit_difference
from ctr.serving.bundle import SCORER
from ctr.serving.ranker import graph_inputs
from ctr.serving.scoring.scorer import Scorer, padded
from features.errors import NumericalError

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
    scorer, worst = Scorer.open(folder), 0.0
    for first in range(0, len(requests), TOGETHER):
        some = requests[first : first + TOGETHER]
        got_UNH = scorer.scores(padded([graph_inputs(one.encoded(model.schema, users)) for one in some]))
        for request, got_NH in zip(some, got_UNH, strict=True):
            wanted_NH = expected(model, request)
            difference = logit_difference(got_NH[: len(wanted_NH)], wanted_NH)
            # Written so that NaN fails too.
            if not difference <= TOLERANCE:
                raise NumericalError(
                    f"parity: {SCORER} and the trained model differ by {difference:.2e} in logits (at most "
                    f"{TOLERANCE} is allowed) on a request of {len(request.history_item)} history items and "
                    f"{len(wanted_NH)} candidates, user row {request.user}. The bundle is not published."
                )
            worst = max(worst, difference)
    return worst
