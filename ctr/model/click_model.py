"""The click model: item encoder, readers of the history, tower. Every architecture is a choice of these parts.

Shapes: B rows, S history positions, U distinct items of a batch, D item width, C context width, X tower width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctr.config import ModelConfig
from ctr.data.batch import Batch
from ctr.data.feature_tables import FrozenTables, TableBuffers
from ctr.history.item_similarity import SimilaritySpaces
from ctr.history.kernel_attention import EvidenceHeads
from ctr.history.readers import Reader, make_attention
from ctr.history.similarity_features import MatchFeatures
from ctr.history.target_history import BatchHistory, TargetHistory
from ctr.model.calibrator import Calibrator
from ctr.model.encoders import FieldEncoder, ItemEncoder
from ctr.model.event_encoder import EventEncoder
from ctr.model.outputs import Outputs
from ctr.towers import make_tower
from ctr.towers.cross_tables import WideCrosses
from ctr.trees.model_trees import ModelTrees, mixed
from features.errors import ConfigError
from features.store.schema import PADDING, UNKNOWN, Schema


class ClickModel(nn.Module):
    """Click logits from a user's context, the target item and the user's history.

        x_i = item columns and projected vectors;  o = attention(x_t, history);
        logits = tower([context ; numbers of the target ; x_t ; o ; evidence ; match features]) + crosses

    With the defaults it is the Quadratic Interest Network (arXiv 2504.17699): sparse target attention and a quadratic
    tower. A batch names items by row; `attach` gives the model the tables to look them up in. Each distinct item of a
    batch is encoded once, however often it is a target or in a history. Further labels of a row (`tasks`: like, long
    view) share all but the last linear function, each with a logit and a calibration of its own. With `base: boosting`
    a share of the click's logit is that of trees, which the network does not know of while it trains; with
    `tower: none` it is theirs alone.

    Args:
        config: sizes and parts. `use_history: false` leaves out all that reads the history.
        schema: the fields of the feature set, which has the labels of `tasks`. All item columns apply to target and
            history alike; the user id (the first user field) is read only with `use_user_id`.

    Raises:
        ConfigError: a task that the feature set has no label for.
    """

    tables: TableBuffers

    def __init__(self, config: ModelConfig, schema: Schema) -> None:
        super().__init__()
        if missing := [name for name in config.tasks if name not in schema.labels]:
            known = ", ".join(schema.labels) or "none"
            raise ConfigError(
                f"model.tasks: the feature set has no label {missing[0]!r} (it has: {known}). Declare it under "
                "`interactions.labels` of the data contract."
            )
        self.config = config
        self.schema = schema
        self.user_fields = schema.user if config.use_user_id else schema.user[1:]
        self.context_fields = schema.context
        self.event_fields = schema.event if config.use_history else ()
        width = config.embedding_dim
        # Trees alone read no embedding.
        tower = config.tower != "none"
        self.item_encoder = ItemEncoder(schema.item if tower else (), schema.vectors if tower else (), config)
        self.context_encoder = FieldEncoder([*self.user_fields, *self.context_fields] if tower else (), width)
        self.candidate_encoder = FieldEncoder(schema.candidate if tower else (), width)
        read = tower and config.attention != "none"
        self.event_encoder = EventEncoder(self.event_fields if read else (), width)
        self.spaces = SimilaritySpaces(schema) if config.compares else None
        kinds = len(self.spaces.names) if self.spaces is not None else 0
        item, event = self.item_encoder.width, self.event_encoder.width
        self.attention = make_attention(config, item, event, schema.history_max_len) if tower else None
        self.evidence = (
            EvidenceHeads(self.event_fields, kinds, item, config.evidence_heads, config.evidence_values, width)
            if tower and config.use_history and config.evidence_heads
            else None
        )
        # Without anything to compare by, what needs it is left out.
        compares = tower and config.use_history and kinds > 0
        self.match = MatchFeatures(kinds) if compares and config.match_features else None
        widths = [*self.context_encoder.widths, *self.candidate_encoder.widths, *self.item_encoder.widths]
        widths += [reader.width for reader in self.readers()]
        self.network = make_tower(config, widths) if tower else None
        cells = config.cross_cells if tower else 0
        crosses = WideCrosses([*self.user_fields, *self.context_fields], schema.item, cells, 1 + len(config.tasks))
        self.crosses = crosses if crosses.width else None
        self.trees = ModelTrees(config, schema, self.spaces) if config.base == "boosting" else None
        self.calibrator = Calibrator()
        self.task_calibrators = nn.ModuleList(Calibrator() for _ in config.tasks)

    def readers(self) -> list[Reader]:
        """What reads the history, in the order of the tower's input."""
        return [one for one in (self.attention, self.evidence, self.match) if one is not None]

    @property
    def reads_history(self) -> bool:
        """Whether a score depends on the user's past."""
        return bool(self.readers()) or (self.trees is not None and self.trees.features.past)

    def attach(self, tables: FrozenTables) -> None:
        """Give the model its frozen tables, on its own device; they are not part of its `state_dict`.

        Raises:
            DataError: a table is missing or has another number of rows than the schema says.
        """
        self.tables = TableBuffers(tables, self.schema, self.user_fields, self.calibrator.slope)

    def forward(self, batch: Batch) -> Tensor:
        """Click logits [B], calibrated in evaluation. Raises ConfigError for a training batch of one row."""
        return self.outputs(batch).click_B

    def outputs(self, batch: Batch) -> Outputs:
        """All logits, calibrated in evaluation. Raises ConfigError as `forward`."""
        logits = [] if self.network is None else list(self._tower_logits(self.network, batch).unbind(dim=-1))
        if self.trees is not None and self.trees.speak(self.training):
            logits = mixed(logits, self.trees(batch, self.tables), self.trees.share)
        click_B, *others = logits
        if self.training:
            return Outputs(click_B, dict(zip(self.config.tasks, others, strict=True)))
        tasks = zip(self.calibrators().items(), others, strict=True)
        return Outputs(self.calibrator(click_B), {name: calibrate(logit_B) for (name, calibrate), logit_B in tasks})

    def _tower_logits(self, network: nn.Module, batch: Batch) -> Tensor:
        history = self.history(batch)
        blocks = [self._context(batch)] if self.context_encoder.width else []
        if self.candidate_encoder.width:
            blocks.append(self.candidate_encoder([batch.candidate[field.name] for field in self.schema.candidate]))
        logits_BH: Tensor = network(torch.cat([*blocks, history.target_RD, *self.read(history)], dim=-1))
        return logits_BH if self.crosses is None else logits_BH + self._crossed(batch)

    def calibrators(self) -> dict[str, Calibrator]:
        """The calibration of each further label, by name."""
        found = [one for one in self.task_calibrators if isinstance(one, Calibrator)]
        return dict(zip(self.config.tasks, found, strict=True))

    def history(self, batch: Batch) -> BatchHistory:
        """The targets of a batch and the events before each."""
        columns = self.tables.item_columns(batch.items_U, batch.item_versions_U)
        vectors = self.tables.vectors(batch.items_U)
        x_UD = self.item_encoder(self._with_unknown_ids(columns), vectors, self.tables.present(batch.items_U))
        raw = [batch.events[field.name] for field in self.event_fields]
        events = self.event_encoder.events(raw) if self.event_encoder.width else None
        unit_vectors, indices = self.spaces(columns, vectors) if self.spaces is not None else ([], [])
        return BatchHistory(x_UD, batch.target_B, batch.history_BS, raw, events, unit_vectors, indices)

    def read(self, history: TargetHistory) -> list[Tensor]:
        """The output of each reader, [R, its width], in the order of `readers`."""
        return [reader(history) for reader in self.readers()]

    def item_rows(self, rows_U: Tensor) -> Tensor:
        """Rows [U, D + W] of the item table: x, similarity spaces, crossed columns, what trees read; padding: zeros."""
        columns, vectors = self.tables.item_columns(rows_U), self.tables.vectors(rows_U)
        found = self.encoded_items(columns, vectors, self.tables.present(rows_U))
        return found.masked_fill((rows_U == PADDING).unsqueeze(-1), 0)

    def encoded_items(self, columns: Sequence[Tensor], vectors: Sequence[Tensor], present: Sequence[Tensor]) -> Tensor:
        """Item columns, vectors and their presence to rows of the item table, [U, D + W]."""
        blocks = [self.item_encoder(columns, vectors, present)] if self.network is not None else []
        blocks += self.spaces(columns, vectors).columns if self.spaces is not None else []
        blocks += [self.crosses.indices(columns, blocks[0])] if self.crosses is not None else []
        blocks += [self.trees.features.item_block(columns)] if self.trees is not None else []
        return torch.cat(blocks, dim=-1)

    def gates(self, rows_U: Tensor) -> Tensor | None:
        """How much each vector set counts for these items, [U, sets] from 0 to 2; None without `vector_gate`."""
        return self.item_encoder.gates(self.tables.vectors(rows_U), self.tables.present(rows_U))

    def regularized_parameters(self) -> list[nn.Parameter]:
        """What takes `train.embedding_l2`: all embedding tables, crosses and vector projections."""
        encoders = (self.item_encoder.columns, self.context_encoder, self.candidate_encoder, self.event_encoder)
        tables = [weight for encoder in encoders for weight in encoder.embedding_weights()]
        crosses = [] if self.crosses is None else list(self.crosses.parameters())
        return tables + self.item_encoder.projection_weights() + crosses

    def _with_unknown_ids(self, columns: Sequence[Tensor]) -> Sequence[Tensor]:
        """In training, a share of ids is unknown: so the row of items that training never saw is trained too."""
        if not (self.training and self.config.id_dropout):
            return columns
        id_U, *others = columns
        hidden_U = torch.rand(id_U.shape, device=id_U.device) < self.config.id_dropout
        return [id_U.masked_fill(hidden_U & (id_U != PADDING), UNKNOWN), *others]

    def _crossed(self, batch: Batch) -> Tensor:
        assert self.crosses is not None
        columns = self.tables.item_columns(batch.items_U, batch.item_versions_U)
        index_UF = self.crosses.indices(columns, self.calibrator.slope)
        user = self.tables.user_columns(batch.user_B, batch.user_versions_B)
        context = [*user, *(batch.context[one.name] for one in self.context_fields)]
        crossed_BH: Tensor = self.crosses(context, F.embedding(batch.target_B, index_UF))
        return crossed_BH

    def _context(self, batch: Batch) -> Tensor:
        columns = [batch.context[field.name] for field in self.context_fields]
        user = self.tables.user_columns(batch.user_B, batch.user_versions_B)
        context_BC: Tensor = self.context_encoder([*user, *columns])
        return context_BC
