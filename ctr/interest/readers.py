"""Which attention reads the history, by the config."""

from __future__ import annotations

from ctr.config import ModelConfig
from ctr.interest.din import DinAttention
from ctr.interest.evidence import EvidenceHeads
from ctr.interest.match import MatchFeatures
from ctr.interest.mean import MeanPooling
from ctr.interest.softmax import SoftmaxTargetAttention
from ctr.interest.sparse import SparseTargetAttention
from ctr.interest.transformer import TargetTransformer

Attention = SparseTargetAttention | SoftmaxTargetAttention | DinAttention | MeanPooling | TargetTransformer
Reader = Attention | EvidenceHeads | MatchFeatures


def make_attention(config: ModelConfig, item_dim: int, event_dim: int, spaces: int, max_len: int) -> Attention | None:
    """A fresh reader, `forward(past) -> [R, width]`; None without history.

    Args:
        config: its kind and sizes.
        item_dim: width of an item.
        event_dim: width of an embedded event; 0 for none.
        spaces: similarity spaces that there are.
        max_len: longest history.
    """
    if not config.use_history:
        return None
    match config.attention:
        case "sparse":
            return SparseTargetAttention(
                item_dim, event_dim, config.attention_dim, config.attention_heads, spaces, config.similarity_bias
            )
        case "softmax":
            return SoftmaxTargetAttention(item_dim, event_dim, config.attention_dim)
        case "din":
            return DinAttention(item_dim, event_dim)
        case "mean":
            return MeanPooling(item_dim, event_dim)
        case "transformer":
            return TargetTransformer(item_dim, event_dim, config.attention_dim, max_len, config.dropout)
        case "none":
            return None
