"""Which attention reads the history, by the config."""

from __future__ import annotations

from ctr.config import ModelConfig
from ctr.history.behavior_transformer import TargetTransformer
from ctr.history.din_attention import DinAttention
from ctr.history.kernel_attention import EvidenceHeads
from ctr.history.mean_pooling import MeanPooling
from ctr.history.similarity_features import MatchFeatures
from ctr.history.sparse_attention import SparseTargetAttention

Attention = SparseTargetAttention | DinAttention | MeanPooling | TargetTransformer
Reader = Attention | EvidenceHeads | MatchFeatures


def make_attention(config: ModelConfig, item_dim: int, event_dim: int, max_len: int) -> Attention | None:
    """A fresh reader, `forward(past) -> [R, width]`; None without history.

    Args:
        config: its kind and sizes.
        item_dim: width of an item.
        event_dim: width of an embedded event; 0 for none.
        max_len: longest history.
    """
    if not config.use_history:
        return None
    match config.attention:
        case "sparse":
            return SparseTargetAttention(item_dim, event_dim, config.attention_dim)
        case "din":
            return DinAttention(item_dim, event_dim)
        case "mean":
            return MeanPooling(item_dim, event_dim)
        case "transformer":
            return TargetTransformer(item_dim, event_dim, config.attention_dim, max_len, config.dropout)
        case "none":
            return None
