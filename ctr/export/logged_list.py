"""The list of candidates that a logged row was ranked in, for feature sets whose columns compare candidates.

Shapes: N candidates of one request.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ctr.export.row_request import RowRequest, as_input
from features.calendar import DAY
from features.encoding.encoder import Encoder
from features.encoding.request import Limits
from features.point_in_time.relative import encoded_relative
from features.store.feature_set import FeatureSet, read_arrow


@dataclass(frozen=True)
class LoggedRow:
    """A row of the test window: the part it lies in, and its index there."""

    part: int
    index: int


def logged_list(feature_set: FeatureSet, row: LoggedRow, encoder: Encoder) -> RowRequest:
    """The request of a row of the test window with all candidates of its request, its own first.

    Their request-relative columns are those that the feature set holds. A list longer than any request may be is cut,
    and what is left of it is compared anew; so are item columns that changed, which a server reads as they are now.

    Args:
        feature_set: holds the row.
        row: of the test window.
        encoder: of the feature set.
    """
    schema = feature_set.schema
    rows, events = feature_set.rows("test")[row.part], feature_set.events("test")[row.part]
    own = rows["item"][row.index : row.index + 1].astype(np.int64)
    alone = RowRequest.of_row(schema, rows, events, row.index, own)
    if rows["request"][row.index] < 0:
        return alone
    items, numbers = [own], {name: [values] for name, values in alone.candidate.items()}
    for number, others in enumerate(_beside(feature_set, row.part)):
        same = (others["user"] == rows["user"][row.index]) & (others["request"] == rows["request"][row.index])
        if feature_set.contract.split.by == "days":
            same &= others["time"] // DAY == rows["time"][row.index] // DAY
        if number == 0:
            same[row.index] = False
        items.append(others["item"][same].astype(np.int64))
        for field in schema.candidate:
            numbers[field.name].append(as_input(field, others[field.name][same]))
    most = Limits().max_candidates
    item_N = np.concatenate(items)
    number_N = {name: np.concatenate(values)[:most] for name, values in numbers.items()}
    whole = replace(alone, candidate_item=item_N[:most], candidate=number_N)
    changing = bool(encoder.item_numbers) and feature_set.item_versions is not None
    return compared_anew(whole, encoder) if changing or len(item_N) > most else whole


def compared_anew(request: RowRequest, encoder: Encoder) -> RowRequest:
    """The request with the request-relative columns that its candidates have among each other."""
    if not encoder.relative:
        return request
    one_list_N = np.zeros(len(request.candidate_item), np.int64)
    found = encoded_relative(encoder, request.candidate, request.candidate_item, one_list_N)
    return replace(request, candidate=request.candidate | found)


def _beside(feature_set: FeatureSet, part: int) -> list[dict[str, np.ndarray]]:
    """Rows of a part of the test window, then those of other windows in which its requests may have candidates too.

    A request may lie on both sides of the instant that a window begins at. Files and days have requests of their own.
    """
    parts = feature_set.manifest.parts
    own = [entry for entry in parts if entry.split == "test"][part]
    found = [entry for entry in parts if entry.events == own.events and entry.split != "test"]
    if feature_set.contract.split.by in ("files", "days"):
        found = []
    return [read_arrow(feature_set.path / entry.rows) for entry in (own, *found)]
