"""The trees of a model: beside its network, or alone.

Shapes: B rows of a batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ctr.config import ModelConfig
from ctr.data.batch import Batch
from ctr.data.feature_tables import TableBuffers
from ctr.history.item_similarity import SimilaritySpaces
from ctr.trees.ensemble import Ensemble
from ctr.trees.feature_rows import batch_features
from ctr.trees.tabular_features import TabularFeatures
from features.store.schema import Schema


class ModelTrees(nn.Module):
    """Tabular features of a batch, the trees that read them, and their share of the click's logit.

        logit = (1 - share) · network + share · trees

    The network trains as if there were no trees; the validation rows then choose the share. Measured against a network
    that starts from the trees' logit: docs/models.md.

    Args:
        config: sizes; `use_history: false` leaves out features of the past.
        schema: the fields of the feature set.
        spaces: of the items; None without past.
    """

    share: Tensor

    def __init__(self, config: ModelConfig, schema: Schema, spaces: SimilaritySpaces | None) -> None:
        super().__init__()
        self.features = TabularFeatures(schema, past=config.use_history)
        self.ensemble = Ensemble(config.trees, config.tree_leaves)
        self.spaces = spaces if config.use_history else None
        self.reads_user_id = config.use_user_id
        self.alone = config.tower == "none"
        self.register_buffer("share", torch.tensor(1.0 if self.alone else 0.0))

    def forward(self, batch: Batch, tables: TableBuffers) -> Tensor:
        """Logits [B]."""
        # The trees read no user id, which stands first in the tables of a model that does.
        user = tables.user_columns(batch.user_B, batch.user_versions_B)[int(self.reads_user_id) :]
        logit_B: Tensor = self.ensemble(batch_features(self.features, self.spaces, batch, tables, user))
        return logit_B

    def speak(self, training: bool) -> bool:
        """Whether the trees have a say: not in training, nor before they are grown beside a network."""
        return self.alone or (not training and bool(self.ensemble.used))


def mixed(logits: list[Tensor], of_trees: Tensor, share: Tensor) -> list[Tensor]:
    """A network's logits, the click's first, with the trees' share of it; theirs alone without a network."""
    if not logits:
        return [of_trees]
    return [(1 - share) * logits[0] + share * of_trees, *logits[1:]]
