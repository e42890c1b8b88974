"""A bundle's ranker for logged rows, where item columns change over time: items as they were at a row's time.

A server reads the latest version of each item. For an old row that would be information from its future.

Shapes: V versions of all items, D width of a row of the item table.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ctr.data.loader import ItemVersions
from ctr.export.parity import item_inputs
from ctr.export.row_request import RowRequest
from ctr.serving.bundle import ITEM_DELTA, ITEMS
from ctr.serving.ranker import Ranker, open_session
from features.encoding.encoder import EncodedRequest
from features.store.feature_set import FeatureSet, SplitName
from features.store.versions import instants_of

ITEMS_PER_CHUNK = 16_384


@dataclass(frozen=True)
class RankerAsOf:
    """Scores requests with the items of their time.

    Args:
        ranker: of a bundle. If items change, it reads a row for each pair of item and version.
        versions: numbers the pairs; None if items do not change.
    """

    ranker: Ranker
    versions: ItemVersions | None

    def scores(self, encoded: EncodedRequest, time: int) -> np.ndarray:
        """Probabilities of a request with the items of one instant, float32 [N, 1 + tasks].

        Args:
            encoded: the request, of N candidates.
            time: µs since 1970, UTC.

        Raises:
            ConfigError, NumericalError: as `Ranker.scores`.
        """
        if self.versions is None:
            return self.ranker.scores(encoded)
        at = np.array(time)
        then = replace(
            encoded,
            history_item=self.versions.number(encoded.history_item, at).astype(np.int64),
            candidate_item=self.versions.number(encoded.candidate_item, at).astype(np.int64),
        )
        return self.ranker.scores(then)

    def row_scores(
        self, feature_set: FeatureSet, split: SplitName, part: int, rows: Iterable[int]
    ) -> Iterator[np.ndarray]:
        """Each logged row as one request: its context and history, and its item as the only candidate.

        Args:
            feature_set: that the bundle was trained on.
            split, part: where the rows lie.
            rows: their places in the part.

        Yields:
            Probabilities float32 [1 + tasks], row by row.
        """
        stored, events = feature_set.rows(split)[part], feature_set.events(split)[part]
        instant_R = instants_of(stored)
        users = feature_set.users_as_of(stored["user"], instant_R)
        for row in rows:
            own = stored["item"][row : row + 1].astype(np.int64)
            request = RowRequest.of_row(feature_set.schema, stored, events, row, own)
            # `users` holds the user of row i in row i.
            encoded = replace(request, user=row).encoded(feature_set.schema, users)
            yield self.scores(encoded, instant_R[row])[0]


@contextmanager
def ranker_as_of(ranker: Ranker, feature_set: FeatureSet) -> Iterator[RankerAsOf]:
    """A ranker for logged rows of the feature set that the bundle was trained on.

    If items change, a row for each earlier version, computed by the bundle's `items.onnx`, stands behind the item
    table, where items that were upserted stand in serving. They lie in a temporary folder, which is removed after the
    block.
    """
    if feature_set.item_versions is None:
        yield RankerAsOf(ranker, None)
        return
    versions = ItemVersions(feature_set.item_versions)
    with tempfile.TemporaryDirectory(prefix="quadrank-versions-") as folder:
        yield RankerAsOf(_with_all_versions(ranker, feature_set, versions, Path(folder)), versions)


def _with_all_versions(ranker: Ranker, feature_set: FeatureSet, versions: ItemVersions, folder: Path) -> Ranker:
    bundle, items = ranker.bundle.path, feature_set.schema.items
    session = open_session(bundle / ITEMS)
    inputs = [node.name for node in session.get_inputs()]
    path = folder / ITEM_DELTA
    with path.open("wb") as file:
        for start in range(items, versions.count, ITEMS_PER_CHUNK):
            rows, columns_at = versions.pairs(np.arange(start, min(start + ITEMS_PER_CHUNK, versions.count)))
            feed = item_inputs(feature_set, rows, columns_at)
            (row_VD,) = session.run(["row"], {name: feed[name] for name in inputs})
            file.write(row_VD.astype(np.float32).tobytes())
    if versions.count == items:
        return ranker
    later_VD = np.memmap(path, np.float32, mode="r", shape=(versions.count - items, ranker.row_width))
    schema = ranker.encoder.schema.model_copy(update={"items": versions.count})
    encoder = replace(ranker.encoder, schema=schema)
    return ranker.with_rows(encoder, later_VD)
