"""A request by rows of the feature set's tables, as parity checks, golden requests and explanations need it.

Shapes: H history items of one request, N candidates, S history positions of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ctr.data.batch import Batch
from features.encoding.encoder import EncodedRequest
from features.store.schema import Field, Schema


@dataclass(frozen=True)
class RowRequest:
    """One request that names its user and items by their rows in the feature set.

    An `EncodedRequest` holds the user's columns instead of the row: a server looks them up, the trained model does not.

    Args:
        user: row of the user.
        history_item: item rows, int64 [H], oldest first; never padding.
        candidate_item: item rows, int64 [N].
        context: encoded context columns, int64 or float32 [1] by field.
        history_events: encoded event columns, int64 or float32 [H] by field.
        candidate: numbers of each candidate, float32 [N] by field.
    """

    user: int
    history_item: np.ndarray
    candidate_item: np.ndarray
    context: dict[str, np.ndarray] = field(default_factory=dict)
    history_events: dict[str, np.ndarray] = field(default_factory=dict)
    candidate: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of_row(
        cls,
        schema: Schema,
        rows: Mapping[str, np.ndarray],
        events: Mapping[str, np.ndarray],
        index: int,
        candidate_item: np.ndarray,
    ) -> RowRequest:
        """The request that a logged row answers, with other candidates.

        The candidates' numbers are those of the logged item: the numbers of other items at that time were not logged.

        Args:
            schema: of the feature set.
            rows, events: columns of the row's part, as `FeatureSet.rows` and `FeatureSet.events` give them.
            index: of the row in the part.
            candidate_item: item rows, int64 [N].
        """
        end = int(rows["history_end"][index])
        past = slice(end - int(rows["history_len"][index]), end)
        here = slice(index, index + 1)
        return cls(
            user=int(rows["user"][index]),
            history_item=events["item"][past].astype(np.int64),
            candidate_item=candidate_item,
            context={field.name: as_input(field, rows[field.name][here]) for field in schema.context},
            history_events={field.name: as_input(field, events[field.name][past]) for field in schema.event},
            candidate={
                field.name: np.repeat(as_input(field, rows[field.name][here]), len(candidate_item))
                for field in schema.candidate
            },
        )

    @classmethod
    def of_encoded(cls, encoded: EncodedRequest, user: int) -> RowRequest:
        """An encoded request whose user has this row; the encoded user columns are left out."""
        return cls(
            user=user,
            history_item=encoded.history_item,
            candidate_item=encoded.candidate_item,
            context=encoded.context,
            history_events=encoded.history_events,
            candidate=encoded.candidate,
        )

    def batch(self, history_max_len: int) -> Batch:
        """The request as a batch of N rows for the trained model, labels 0 and weights 1, the history padded in front.

        Args:
            history_max_len: positions S of the batch's history, at least H.
        """
        rows = len(self.candidate_item)
        padded_S = _pad_in_front(self.history_item, history_max_len)
        items_U, places = np.unique(np.concatenate([[0], padded_S, self.candidate_item]), return_inverse=True)
        _, history_S, target_B = np.split(places, [1, 1 + history_max_len])
        return Batch(
            items_U=torch.from_numpy(items_U),
            target_B=torch.from_numpy(target_B),
            history_BS=_repeat(history_S, rows),
            user_B=torch.full((rows,), self.user),
            label_B=torch.zeros(rows),
            weight_B=torch.ones(rows),
            events={
                name: _repeat(_pad_in_front(values, history_max_len), rows)
                for name, values in self.history_events.items()
            },
            context={name: torch.from_numpy(values).repeat(rows) for name, values in self.context.items()},
            candidate={name: torch.from_numpy(values) for name, values in self.candidate.items()},
        )

    def encoded(self, schema: Schema, users: Mapping[str, np.ndarray]) -> EncodedRequest:
        """The request as the encoder gives it to the graph, no item of it counted as unknown.

        Args:
            schema: of the feature set.
            users: encoded columns of all users, a row each.
        """
        return EncodedRequest(
            user={f.name: as_input(f, users[f.name][[self.user]]) for f in schema.user},
            context=self.context,
            history_item=self.history_item,
            history_events=self.history_events,
            candidate_item=self.candidate_item,
            candidate=self.candidate,
            unknown_history=0,
            unknown_candidates=(),
        )


def as_input(field: Field, values: np.ndarray) -> np.ndarray:
    """Encoded column values in the type of graph inputs: float32 for numbers, int64 for indices."""
    return values.astype(np.float32 if field.kind == "numeric" else np.int64)


def _pad_in_front(values_H: np.ndarray, length: int) -> np.ndarray:
    padded_S = np.zeros(length, values_H.dtype)
    if len(values_H):
        padded_S[-len(values_H) :] = values_H
    return padded_S


def _repeat(values_S: np.ndarray, rows: int) -> Tensor:
    return torch.from_numpy(values_S).repeat(rows, 1)
