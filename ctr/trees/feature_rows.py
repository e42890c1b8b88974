"""Rows of a feature set, or of a batch, as tabular features.

Shapes: B rows of a batch, N rows of a split, U distinct items of a batch, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ctr.data.batch import Batch
from ctr.data.feature_tables import TableBuffers, frozen_tables
from ctr.data.loader import Loader
from ctr.history.item_similarity import SimilaritySpaces
from ctr.history.target_history import BatchHistory
from ctr.trees.tabular_features import TabularFeatures
from features.store.feature_set import FeatureSet, SplitName

ROWS_PER_CHUNK = 1024


def batch_features(
    features: TabularFeatures,
    spaces: SimilaritySpaces | None,
    batch: Batch,
    tables: TableBuffers,
    user: Sequence[Tensor],
) -> Tensor:
    """The features of a batch, float32 [B, F].

    Args:
        features: which.
        spaces: of the items; None without past.
        batch: ids.
        tables: where these are looked up.
        user: user columns of the rows, the id left out.
    """
    columns = tables.item_columns(batch.items_U, batch.item_versions_U)
    block_UI = features.item_block(columns)
    history = None
    if spaces is not None:
        units, indices = spaces(columns, tables.vectors(batch.items_U))
        history = BatchHistory(
            features.item_numbers(block_UI),
            batch.target_B,
            batch.history_BS,
            [batch.events[field.name] for field in features.event_fields],
            None,
            [unit_UW.double() for unit_UW in units],
            [index_UT.double() for index_UT in indices],
        )
    context = [batch.context[field.name] for field in features.context_fields]
    candidate = [batch.candidate[field.name] for field in features.candidate_fields]
    found: Tensor = features(user, context, candidate, F.embedding(batch.target_B, block_UI), history)
    return found


@torch.inference_mode()
def feature_rows(
    feature_set: FeatureSet, split: SplitName, past: bool = True, advance: Callable[[int], None] | None = None
) -> np.ndarray:
    """The features of a split, float32 [N, F], in stored order.

    Args:
        feature_set: whose rows.
        split: which of them.
        past: whether features of the history are made.
        advance: called with the number of rows that were made since.
    """
    schema = feature_set.schema
    features = TabularFeatures(schema, past)
    spaces = SimilaritySpaces(schema) if past else None
    tables = TableBuffers(frozen_tables(feature_set), schema, features.user_fields, like=torch.zeros(()))
    loader = Loader(feature_set, split, ROWS_PER_CHUNK)
    rows_NF = np.empty((loader.rows, features.width), np.float32)
    start = 0
    with closing(loader.epoch(0)) as batches:
        for batch in batches:
            user = tables.user_columns(batch.user_B, batch.user_versions_B)
            found = batch_features(features, spaces, batch, tables, user)
            rows_NF[start : start + len(batch)] = found.numpy()
            start += len(batch)
            if advance is not None:
                advance(len(batch))
    return rows_NF
