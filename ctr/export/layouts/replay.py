"""What was published, held to its bundle: the golden requests, and items that were upserted since the export."""

from __future__ import annotations

from typing import Any

import polars as pl

from ctr.serving.agreement import TOLERANCE, logit_difference
from ctr.serving.bundle import Bundle
from ctr.serving.items.delta import ID, ItemDelta
from ctr.serving.ranker import Ranker
from features.encoding.encoder import Encoder
from features.encoding.request import Limits, parse_request
from features.errors import NumericalError

LATER_ITEMS = 200  # upserted items that are compared, of the last ones


def replay_published(bundle: Bundle, published: Any) -> float:
    """Replay the golden requests with what was published; the largest `logit_difference` from their recorded scores.

    Golden requests know no item that came after the export, so such items are compared with the bundle's own scores.

    Args:
        bundle: that it was made of.
        published: runs the published graph as a session of ONNX Runtime does; it reads no other inputs than it names.

    Raises:
        NumericalError: a score differs by more than the golden requests allow.
    """
    ours = Ranker.of(bundle)
    theirs = Ranker(bundle, ours.encoder, published, Limits(), exported=Encoder.load(bundle.path))
    worst = theirs.replay()
    later = ItemDelta.load(bundle.path, ours.row_width)
    if later is not None:
        ids = pl.concat([later.new.rename(ID), later.changed.rename(ID)]).to_list()[-LATER_ITEMS:]
        encoded = ours.encode(parse_request({"candidates": ids}, ours.encoder.contract, Limits()))
        difference = logit_difference(theirs.scores(encoded), ours.scores(encoded))
        # Written so that NaN fails too.
        if not difference <= TOLERANCE:
            raise NumericalError(
                f"{bundle.path}: upserted items score {difference:.2e} in logits away from what the bundle gives them "
                f"(at most {TOLERANCE} is allowed)."
            )
        worst = max(worst, difference)
    return worst
