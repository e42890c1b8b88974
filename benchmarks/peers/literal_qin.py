"""QIN as one would write it first from its equations (arXiv 2504.17699): the reference our speed is compared with.

Every history position is looked up, projected and attended to on its own; there is no identity and no trick in it, and
nothing that slows it down on purpose. Shapes: B rows, S history positions, T tags of an item, W vector width,
D item width, K attention width, X tower width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctr.config import ModelConfig, TrainConfig

INITIAL_STD = 1e-2  # of embeddings
PADDING = 0


class LiteralAttention(nn.Module):
    """`a_s = ReLU(m_s (W_q x_t)·(W_k x_s) / sqrt(K))`, `o = W_o Σ_s a_s W_v x_s + x_t`: adaptive sparse attention."""

    def __init__(self, item_dim: int, attention_dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(item_dim, attention_dim, bias=False)
        self.key = nn.Linear(item_dim, attention_dim, bias=False)
        self.value = nn.Linear(item_dim, attention_dim, bias=False)
        self.output = nn.Linear(attention_dim, item_dim, bias=False)

    def forward(self, target_BD: Tensor, history_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        """Target [B, D], history [B, S, D] and mask [B, S] (1 at an event) to the interest [B, D]."""
        query_B1K = self.query(target_BD).unsqueeze(1)
        key_BSK = self.key(history_BSD)
        value_BSK = self.value(history_BSD)
        scores_B1S = query_B1K @ key_BSK.transpose(1, 2) / math.sqrt(key_BSK.shape[-1])
        weights_B1S = torch.relu(mask_BS.unsqueeze(1) * scores_B1S)
        return self.output((weights_B1S @ value_BSK).squeeze(1)) + target_BD


class LiteralQuadraticLayer(nn.Module):
    """`h = Σ_r z ⊙ Drop(W_r z + b_r)`, `z <- z + Drop(PReLU(BN(h)))`: each of the R rows a linear layer."""

    def __init__(self, width: int, rows: int, dropout: float) -> None:
        super().__init__()
        self.rows = nn.ModuleList(nn.Linear(width, width) for _ in range(rows))
        self.row_dropouts = nn.ModuleList(nn.Dropout(dropout) for _ in range(rows))
        self.norm = nn.BatchNorm1d(width)
        self.activation = nn.PReLU()
        self.dropout = nn.Dropout(dropout)

    def forward(self, z_BX: Tensor) -> Tensor:
        """[B, X] to [B, X]."""
        h_BX = torch.zeros_like(z_BX)
        for row, drop in zip(self.rows, self.row_dropouts, strict=True):
            h_BX = h_BX + z_BX * drop(row(z_BX))
        return z_BX + self.dropout(self.activation(self.norm(h_BX)))


class LiteralQIN(nn.Module):
    """Logits of rows given by ids: an item is `[E_id ; mean of E_tags ; P v]`, context two levels.

    Args:
        config: sizes and dropout. The paper's model has a history, no user id and no merged rows, and so has this.
        tags_IT: tags of each item, int64 [items, T], 0 where it has fewer; item 0 is padding.
        vector_IW: frozen vector of each item, float32 [items, W].
        tags: size of the tag table, padding included.
        levels: size of both level tables, padding included.
    """

    tags_IT: Tensor
    vector_IW: Tensor

    def __init__(self, config: ModelConfig, tags_IT: Tensor, vector_IW: Tensor, tags: int, levels: int) -> None:
        super().__init__()
        self.register_buffer("tags_IT", tags_IT, persistent=False)
        self.register_buffer("vector_IW", vector_IW, persistent=False)
        width = config.embedding_dim
        self.item_id = _table(len(tags_IT), width)
        self.item_tags = _table(tags, width)
        self.projection = nn.Linear(vector_IW.shape[1], config.vector_dim, bias=False)
        self.likes_level = _table(levels, width)
        self.views_level = _table(levels, width)
        item_dim = 2 * width + config.vector_dim
        self.attention = LiteralAttention(item_dim, config.attention_dim)
        tower = 2 * width + 2 * item_dim
        self.layers = nn.ModuleList(
            LiteralQuadraticLayer(tower, config.rows, config.dropout) for _ in range(config.layers)
        )
        self.logit = nn.Linear(tower, 1)

    def forward(self, item_B: Tensor, history_BS: Tensor, likes_B: Tensor, views_B: Tensor) -> Tensor:
        """Ids, int64 [B] and [B, S] (0 is padding), to logits [B]."""
        target_BD = self.items(item_B)
        history_BSD = self.items(history_BS)
        mask_BS = (history_BS != PADDING).float()
        interest_BD = self.attention(target_BD, history_BSD, mask_BS)
        z_BX = torch.cat([self.likes_level(likes_B), self.views_level(views_B), target_BD, interest_BD], dim=-1)
        for layer in self.layers:
            z_BX = layer(z_BX)
        return self.logit(z_BX).squeeze(-1)

    def items(self, item: Tensor) -> Tensor:
        """Ids int64 [...] to items [..., D], each position looked up and projected for itself."""
        tags = self.tags_IT[item]
        real = (tags != PADDING).float().unsqueeze(-1)
        mean = (self.item_tags(tags) * real).sum(dim=-2) / real.sum(dim=-2).clamp(min=1)
        return torch.cat([self.item_id(item), mean, self.projection(self.vector_IW[item])], dim=-1)

    def l2(self) -> Tensor:
        """Half the sum of squares of all embedding tables and of the vector projection, a scalar."""
        tables = (self.item_id, self.item_tags, self.likes_level, self.views_level, self.projection)
        return torch.stack([table.weight.square().sum() for table in tables]).sum() / 2


class LiteralStep:
    """A training step of the paper: log loss plus full-table L2, gradient clipping, Adam over all parameters.

    Args:
        model: to be trained.
        config: `learning_rate`, `embedding_l2` and `clip_norm` of it.
    """

    def __init__(self, model: LiteralQIN, config: TrainConfig) -> None:
        self.model = model
        self.config = config
        self.optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)

    def __call__(self, batch: dict[str, Tensor]) -> float:
        """Take the step of a batch as `benchmarks.peers.literal_loader` makes them; returns its log loss."""
        self.optimizer.zero_grad()
        logit_B = self.model(batch["item_id"], batch["item_seq"], batch["likes_level"], batch["views_level"])
        log_loss = F.binary_cross_entropy_with_logits(logit_B, batch["label"])
        loss = log_loss + self.config.embedding_l2 * self.model.l2()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        return log_loss.item()


def _table(size: int, width: int) -> nn.Embedding:
    table = nn.Embedding(size, width, padding_idx=PADDING)
    with torch.no_grad():
        nn.init.normal_(table.weight, std=INITIAL_STD)
        table.weight[PADDING].zero_()
    return table
