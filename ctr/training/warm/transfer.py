"""Gives a new model the weights and moments of its parent, each where its raw value stands now."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ctr.config import WarmStartConfig
from ctr.model.click_model import ClickModel
from ctr.training.checkpoint import FITTED_AFTER
from ctr.training.train_step import Moments, TrainStep
from ctr.training.warm.content import rows_from_content
from ctr.training.warm.moves import CROSSES, NEW, CurveMove, Move, RowMove, moves
from ctr.training.warm.parent import Parent
from features.encoding.encoder import Encoder
from features.store.feature_set import FeatureSet
from features.store.schema import FIRST_VALUE

ID_TABLE = "item_encoder.columns.tables.0.weight"
DECAY = 0.5  # of second moments and sums, under `accumulators: decay`
SUMS = ("exp_avg_sq", "sum")  # what is never below 0: the mean over rows says how large it is


@dataclass(frozen=True)
class Began:
    """What a warm start gave a model.

    Args:
        known: item ids that kept their row.
        new: item ids that had none.
        from_content: of them, those that begin with what their vectors say.
        moments: whether the optimisers go on.
    """

    known: int
    new: int
    from_content: int
    moments: bool


def begin_from(
    parent: Parent, model: ClickModel, take_step: TrainStep, feature_set: FeatureSet, config: WarmStartConfig
) -> Began:
    """Put the parent's weights and moments into a model and its optimisers.

    Every row of a table goes where its raw value has its index now, with its moments; rows of values that are gone are
    dropped, and an index that another value has taken over keeps nothing of the old one. A new value begins as the
    unknown one, new items with `new_rows: content` as their vectors say. All that depends on no vocabulary is copied.
    What the parent did not have begins as in a full training: pairs of columns that it did not cross, and what stands
    for the vector of items without one where its items all had one.

    Args:
        parent: of the same kind (`ctr.training.warm.agreement`).
        model: fresh, on its device.
        take_step: its optimisers.
        feature_set: the model trains on.
        config: what becomes of moments, and how new rows begin.
    """
    encoder = Encoder.load(feature_set.path)
    plan = moves(parent.model, model, parent.encoder, encoder)
    found = {}
    for name in model.state_dict():
        source = _source(name, plan)
        if source in parent.weights and not name.startswith(FITTED_AFTER):
            found[name] = _moved_weight(plan.get(name), parent.weights[source])
    ids = plan[ID_TABLE]
    assert isinstance(ids, RowMove)
    is_new_V = (ids.source_V == NEW).numpy()
    begun: dict[int, np.ndarray] = {}
    if config.new_rows == "content":
        begun = rows_from_content(feature_set, found[ID_TABLE].numpy(), is_new_V)
        for index, row_E in begun.items():
            found[ID_TABLE][index] = torch.from_numpy(row_E)
    model.load_state_dict(found, strict=False)
    goes_on = parent.moments is not None and config.accumulators != "reset"
    if parent.moments is not None and goes_on:
        names = [name for name, _ in model.named_parameters()]
        take_step.load_moments(_moved_moments(parent.moments, names, plan, config))
    new = int(is_new_V.sum())
    return Began(len(is_new_V) - FIRST_VALUE - new, new, len(begun), goes_on)


def rows_to_train(feature_set: FeatureSet, newest: int, replay: float, seed: int) -> np.ndarray:
    """Numbers of the training rows of a warm start, ascending: those after `newest`, and a share of the older ones.

    Args:
        feature_set: whose rows have times; of one without, all are new.
        newest: time of the newest row that the parent was trained on, µs.
        replay: chance of each older row, drawn anew with every window of rows.
        seed: of the draw.
    """
    parts = feature_set.rows("train")
    if "time" not in parts[0]:
        return np.arange(sum(len(part["item"]) for part in parts))
    end = feature_set.manifest.windows["train"].last_time
    draw = np.random.default_rng([seed % 2**32, abs(end)])
    taken = [(part["time"] > newest) | (draw.random(len(part["time"])) < replay) for part in parts]
    return np.flatnonzero(np.concatenate(taken))


def _source(name: str, plan: dict[str, Move]) -> str | None:
    """The parent's name of a weight; None where it may have none."""
    move = plan.get(name)
    if isinstance(move, RowMove) and move.table is not None:
        return move.table
    return None if move is None and name.startswith(CROSSES) else name


def _moved_weight(move: Move | None, old: Tensor) -> Tensor:
    if isinstance(move, RowMove):
        return old[move.start_V]
    if isinstance(move, CurveMove) and not move.same:
        return (old.double() @ move.matrix_II).to(old.dtype)
    return old.clone()


def _moved_moments(moments: Moments, names: list[str], plan: dict[str, Move], config: WarmStartConfig) -> Moments:
    moved: Moments = {}
    for name in names:
        move, source = plan.get(name), _source(name, plan)
        if source not in moments or (isinstance(move, CurveMove) and not move.same):
            continue  # moments of a curve that was cut otherwise begin anew
        state = moments[source]
        kept = state if move is None or isinstance(move, CurveMove) else _moved_rows(state, move, config)
        if config.accumulators == "decay":
            kept = {what: tensor * DECAY if what in SUMS else tensor for what, tensor in kept.items()}
        moved[name] = kept
    return moved


def _moved_rows(state: dict[str, Tensor], move: RowMove, config: WarmStartConfig) -> dict[str, Tensor]:
    found = {}
    is_new_V = move.source_V == NEW
    for what, old in state.items():
        if not old.ndim:
            found[what] = old  # the count of steps
            continue
        rows = old[move.start_V]
        rows[is_new_V] = _of_a_new_row(old) if what in SUMS and config.new_accumulators == "mean" else 0
        found[what] = rows
    return found


def _of_a_new_row(old: Tensor) -> Tensor:
    """The mean over the rows that were ever touched; 0 where none was."""
    values = old[FIRST_VALUE:]
    touched = values.flatten(1).any(dim=1) if values.ndim > 1 else values != 0
    return values[touched].mean(dim=0) if touched.any() else torch.zeros_like(old[0])
