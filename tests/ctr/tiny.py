"""A stand-in model with the interface the trainer asks for: one embedding, the liked past, batch norm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ctr.config import ModelConfig
from ctr.data.batch import Batch
from ctr.data.feature_tables import FrozenTables, frozen_tables
from ctr.model.outputs import Outputs
from ctr.model.sparse_embedding import RowTable
from features.store.feature_set import FeatureSet

WIDTH = 8


class TinyModel(nn.Module):
    """logit = MLP([t ; p ; t * p]), t the embedded genre of the target, p its mean over the clicked past."""

    genre: Tensor

    def __init__(self, items: int, dropout: float = 0.2) -> None:
        super().__init__()
        self.config = ModelConfig(dropout=dropout)
        self.item = RowTable(items, WIDTH)
        self.hidden = nn.Sequential(
            nn.Linear(3 * WIDTH, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 1)
        )

    def attach(self, tables: FrozenTables) -> None:
        self.register_buffer("genre", tables.items["genre"], persistent=False)

    def regularized_parameters(self) -> list[nn.Parameter]:
        return [self.item.weight]

    def outputs(self, batch: Batch) -> Outputs:
        return Outputs(self(batch))

    def forward(self, batch: Batch) -> Tensor:
        x_UD = self.item(self.genre[batch.items_U])
        target_BD = x_UD[batch.target_B]
        liked_BS = (batch.events["label"] == 3).float()
        past_BD = (x_UD[batch.history_BS] * liked_BS[..., None]).sum(1) / (1 + liked_BS.sum(1, keepdim=True))
        return self.hidden(torch.cat([target_BD, past_BD, target_BD * past_BD], -1)).squeeze(-1)


def tiny_model(feature_set: FeatureSet, seed: int = 3, dropout: float = 0.2) -> TinyModel:
    torch.manual_seed(seed)
    model = TinyModel(feature_set.schema.items, dropout)
    model.attach(frozen_tables(feature_set))
    return model
