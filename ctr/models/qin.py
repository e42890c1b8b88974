"""Quadratic Interest Network (arXiv 2504.17699): sparse target attention, then a quadratic network.

Shapes: B rows, S history positions, U distinct items of a batch, D item width, C context width, X = C + 2 D.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ctr.attention import SparseTargetAttention
from ctr.batch import Batch
from ctr.config import ModelConfig
from ctr.embedding import FieldEncoder, ItemEncoder
from ctr.quadratic import QuadraticNetwork
from ctr.row_bags import RowBags
from ctr.tables import FrozenTables, TableBuffers
from features.schema import PADDING, Schema


class QIN(nn.Module):
    """Click logits from a user's context, the target item and the user's history.

        x_i = item columns and projected vectors;  o = attention(x_t, history);
        logit = quadratic network([context ; numbers of the target ; x_t ; o])

    A batch names items by row; `attach` gives the model the tables to look them up in. Each distinct item of
    a batch is encoded once, however often it is a target or in a history.

    Args:
        config: sizes and parts. `use_history: false` leaves out `o` and all attention parameters.
        schema: the fields of the feature set. All item columns apply to target and history alike; the user id
            (the first user field) is read only with `use_user_id`.
    """

    tables: TableBuffers

    def __init__(self, config: ModelConfig, schema: Schema) -> None:
        super().__init__()
        self.config = config
        self.schema = schema
        self.user_fields = schema.user if config.use_user_id else schema.user[1:]
        self.context_fields = schema.context
        self.event_fields = schema.event if config.use_history else ()
        width = config.embedding_dim
        self.item_encoder = ItemEncoder(schema.item, schema.vectors, width, config.vector_dim)
        self.context_encoder = FieldEncoder([*self.user_fields, *self.context_fields], width)
        self.candidate_encoder = FieldEncoder(schema.candidate, width)
        self.event_encoder = FieldEncoder(self.event_fields, width)
        self.attention = self._attention() if config.use_history else None
        item_blocks = 2 if config.use_history else 1
        self.network = QuadraticNetwork(
            self.context_encoder.width + self.candidate_encoder.width + item_blocks * self.item_encoder.width,
            config.layers,
            config.rows,
            config.dropout,
            config.fold_rows,
        )

    def attach(self, tables: FrozenTables) -> None:
        """Give the model its frozen tables, on its own device; they are not part of its `state_dict`.

        Raises:
            DataError: a table is missing or has another number of rows than the schema says.
        """
        self.tables = TableBuffers(tables, self.schema, self.user_fields, like=self.network.logit.weight)

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B]. Raises ConfigError for a training batch of one row."""
        x_UD = self._encode_items(batch.items_U)
        target_BD = RowBags(x_UD, batch.target_B.unsqueeze(1)).sums(x_UD.new_ones(len(batch), 1))
        blocks = [self._context(batch)] if self.context_encoder.width else []
        if self.candidate_encoder.width:
            blocks.append(self.candidate_encoder([batch.candidate[field.name] for field in self.schema.candidate]))
        blocks.append(target_BD)
        if self.attention is not None:
            blocks.append(self._interest(self.attention, batch, x_UD, target_BD))
        return self.network(torch.cat(blocks, dim=-1))

    def item_rows(self, rows_U: Tensor) -> Tensor:
        """Representations x [U, D] of these item rows; the padding row is zeros."""
        return self._encode_items(rows_U).masked_fill((rows_U == PADDING).unsqueeze(-1), 0)

    def regularized_parameters(self) -> list[nn.Parameter]:
        """What takes `train.embedding_l2`: all embedding tables and the vector projections."""
        encoders = (self.item_encoder.columns, self.context_encoder, self.candidate_encoder, self.event_encoder)
        tables = [weight for encoder in encoders for weight in encoder.embedding_weights()]
        return tables + self.item_encoder.projection_weights()

    def _encode_items(self, rows_U: Tensor) -> Tensor:
        """The same, whatever the padding row is: attention masks it."""
        return self.item_encoder(
            self.tables.item_columns(rows_U), self.tables.vectors(rows_U), self.tables.present(rows_U)
        )

    def _attention(self) -> SparseTargetAttention:
        return SparseTargetAttention(self.item_encoder.width, self.event_encoder.width, self.config.attention_dim)

    def _context(self, batch: Batch) -> Tensor:
        columns = [batch.context[field.name] for field in self.context_fields]
        return self.context_encoder([*self.tables.user_columns(batch.user_B), *columns])

    def _interest(self, attention: SparseTargetAttention, batch: Batch, x_UD: Tensor, target_BD: Tensor) -> Tensor:
        events_BSE = None
        if self.event_fields:
            events_BSE = self.event_encoder([batch.events[field.name] for field in self.event_fields])
        mask_BS = (batch.history_BS != PADDING).to(x_UD.dtype)
        return attention(target_BD, RowBags(x_UD, batch.history_BS), events_BSE, mask_BS)
