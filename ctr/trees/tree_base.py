"""The trees of a model: the logit that its network starts from, or that stands alone.

Shapes: B rows of a batch.
"""

from __future__ import annotations

from torch import Tensor, nn

from ctr.config import ModelConfig
from ctr.data.batch import Batch
from ctr.data.feature_tables import TableBuffers
from ctr.history.item_similarity import SimilaritySpaces
from ctr.trees.ensemble import Ensemble
from ctr.trees.feature_rows import batch_features
from ctr.trees.tabular_features import TabularFeatures
from features.store.schema import Schema


class TreeBase(nn.Module):
    """Tabular features of a batch, and the trees that read them.

    Args:
        config: sizes; `use_history: false` leaves out features of the past.
        schema: the fields of the feature set.
        spaces: of the items; None without past.
    """

    def __init__(self, config: ModelConfig, schema: Schema, spaces: SimilaritySpaces | None) -> None:
        super().__init__()
        self.features = TabularFeatures(schema, past=config.use_history)
        self.ensemble = Ensemble(config.trees, config.tree_leaves)
        self.spaces = spaces if config.use_history else None
        self.reads_user_id = config.use_user_id

    def forward(self, batch: Batch, tables: TableBuffers) -> Tensor:
        """Logits [B]; those that the batch brings, where it does."""
        if batch.base_B is not None:
            return batch.base_B
        # The trees read no user id, which stands first in the tables of a model that does.
        user = tables.user_columns(batch.user_B, batch.user_versions_B)[int(self.reads_user_id) :]
        logit_B: Tensor = self.ensemble(batch_features(self.features, self.spaces, batch, tables, user))
        return logit_B
