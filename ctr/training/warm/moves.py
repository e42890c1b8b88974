"""Where each weight of a grown model comes from: which row of an old table, which pieces of an old curve.

Shapes: V rows of a table, I inputs of a matrix of numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ctr.model.click_model import ClickModel
from ctr.model.encoders import FieldEncoder
from ctr.model.numbers import PiecewiseNumbers
from features.encoding.base import ColumnEncoder
from features.encoding.category import CategoricalEncoder, HashedEncoder, TagsEncoder
from features.encoding.encoder import Encoder
from features.encoding.number import BucketsEncoder, NumericEncoder
from features.store.schema import FIRST_VALUE, UNKNOWN, Field

NEW = -1
CROSSES = "crosses.tables."  # tables of crossed pairs, by number: which pairs there are depends on their sizes


@dataclass(frozen=True)
class RowMove:
    """Rows of a table that go to other places.

    Args:
        source_V: for each row of the new table the row of the old one with the same raw value, int64; -1 for a new one.
        start_V: the row of the old table that a new one begins as, int64; elsewhere the same as `source_V`.
        table: parameter name of the old table, where it is another one.
    """

    source_V: Tensor
    start_V: Tensor
    table: str | None = None


@dataclass(frozen=True)
class CurveMove:
    """A matrix of numbers whose inputs were cut otherwise: its curves are read at the new cuts.

    Args:
        matrix_II: old inputs x new inputs; the new weight is the old one times it.
        same: whether nothing changes, so that moments go along.
    """

    matrix_II: Tensor
    same: bool


Move = RowMove | CurveMove


def moves(old: ClickModel, new: ClickModel, before: Encoder, now: Encoder) -> dict[str, Move]:
    """How weights come over that depend on what a feature set learned, by parameter name; all others are copied.

    Args:
        old, new: models of one kind.
        before, now: encoders of their feature sets.
    """
    found: dict[str, Move] = {}
    pairs = zip(_encoded(old, before), _encoded(new, now), strict=True)
    for (_, _, of_old), (prefix, module, of_new) in pairs:
        indexed = [
            (theirs.encoder, ours) for theirs, ours in zip(of_old, of_new, strict=True) if ours.field.kind != "numeric"
        ]
        for number, (theirs, ours) in enumerate(indexed):
            found[f"{prefix}.tables.{number}.weight"] = row_move(index_map(theirs, ours.encoder, ours.field.size))
        numbers = [(theirs, ours) for theirs, ours in zip(of_old, of_new, strict=True) if ours.field.kind == "numeric"]
        if numbers:
            piecewise = isinstance(getattr(module, "numeric", None), PiecewiseNumbers)
            move = curve_move(numbers) if piecewise else scale_move(numbers)
            found[f"{prefix}.numeric.weight"] = move
    return found | _crossed(old, new, before, now)


@dataclass(frozen=True)
class EncodedField:
    """A field that a model reads, and the encoder of its column; None for codes derived from vectors."""

    field: Field
    encoder: ColumnEncoder | None


def _encoded(model: ClickModel, encoder: Encoder) -> Iterator[tuple[str, nn.Module, list[EncodedField]]]:
    """The modules of a model that read columns: name, module, and its fields."""
    users = len(model.user_fields)
    item, context = model.item_encoder.columns, model.context_encoder
    yield "item_encoder.columns", item, [EncodedField(one, encoder.item.get(one.name)) for one in item.fields]
    sides = [encoder.user] * users + [encoder.context] * (len(context.fields) - users)
    yield (
        "context_encoder",
        context,
        [EncodedField(one, side.get(one.name)) for one, side in zip(context.fields, sides, strict=False)],
    )
    candidate = {**encoder.candidate, **encoder.relative}
    for prefix, module, columns in (
        ("candidate_encoder", model.candidate_encoder, candidate),
        ("event_encoder", model.event_encoder, encoder.event),
    ):
        assert isinstance(module, FieldEncoder)
        yield prefix, module, [EncodedField(one, columns.get(one.name)) for one in module.fields]
    if model.evidence is not None:
        fields = [EncodedField(one, encoder.event.get(one.name)) for one in model.evidence.fields]
        yield "evidence", model.evidence, fields


def index_map(before: ColumnEncoder | None, now: ColumnEncoder | None, size: int) -> np.ndarray:
    """For each index that `now` gives, the index that `before` gave the same raw value, int64 [V]; -1 where none.

    Padding and unknown are themselves. A bucket of numbers is the one that its lower edge fell into.

    Args:
        before, now: encoders of one column; None for codes of vectors, which are the same codes.
        size: V.
    """
    same = np.arange(size)
    if isinstance(now, CategoricalEncoder | TagsEncoder) and isinstance(before, CategoricalEncoder | TagsEncoder):
        value_V = before.vocabulary.encode(now.vocabulary.values).astype(np.int64)
    elif isinstance(now, BucketsEncoder) and isinstance(before, BucketsEncoder):
        value_V = before.encode_many([now.raw_value(index) for index in range(FIRST_VALUE, size)])
    elif isinstance(now, HashedEncoder) and isinstance(before, HashedEncoder):
        value_V = same[FIRST_VALUE:] if now.buckets == before.buckets else np.full(size - FIRST_VALUE, UNKNOWN)
    else:
        return same
    return np.concatenate([same[:FIRST_VALUE], np.where(value_V == UNKNOWN, NEW, value_V)])


def row_move(source_V: np.ndarray) -> RowMove:
    """Of the map that `index_map` gives: a new value begins as the unknown one."""
    return RowMove(torch.from_numpy(source_V), torch.from_numpy(np.where(source_V == NEW, UNKNOWN, source_V)))


def curve_move(columns: Sequence[tuple[EncodedField, EncodedField]]) -> CurveMove:
    """Of the columns of a `PiecewiseNumbers`, old and new: a piece gets what its old curve rises over it.

        w'_k = f(e'_{k+1}) - f(e'_k),   f(x) = Σ_j w_j clamp((x - e_j) / (e_{j+1} - e_j), 0, 1)

    for each column, its new edges e' read on the old scale. So a number means what it meant, but for a constant: the
    old curve's value at the first new edge. Being missing stays what it is.
    """
    most_old, most_new = (max(0, *(len(one.field.edges) - 1 for one in side)) for side in zip(*columns, strict=True))
    matrix_II = np.zeros((len(columns) * (most_old + 1), len(columns) * (most_new + 1)))
    for row, (theirs, ours) in enumerate(columns):
        old_0, new_0 = row * (most_old + 1), row * (most_new + 1)
        matrix_II[old_0 + most_old, new_0 + most_new] = 1
        old_E, new_E = np.array(theirs.field.edges), _on_the_scale_of(theirs, ours, np.array(ours.field.edges))
        if len(old_E) < 2 or len(new_E) < 2:
            continue
        reached_EJ = np.clip((new_E[:, None] - old_E[:-1]) / np.diff(old_E), 0, 1)
        matrix_II[old_0 : old_0 + len(old_E) - 1, new_0 : new_0 + len(new_E) - 1] = np.diff(reached_EJ, axis=0).T
    same = all(theirs.field.edges == ours.field.edges and _same_scale(theirs, ours) for theirs, ours in columns)
    return CurveMove(torch.from_numpy(matrix_II), same)


def scale_move(columns: Sequence[tuple[EncodedField, EncodedField]]) -> CurveMove:
    """Of numbers that are read straight: a weight times the new unit over the old one; being missing stays."""
    units = [_unit(ours) / _unit(theirs) for theirs, ours in columns]
    same = all(_same_scale(theirs, ours) for theirs, ours in columns)
    return CurveMove(torch.diag(torch.tensor([*units, *(1.0 for _ in units)], dtype=torch.float64)), same)


def _unit(one: EncodedField) -> float:
    return one.encoder.deviation if isinstance(one.encoder, NumericEncoder) else 1.0


def _same_scale(theirs: EncodedField, ours: EncodedField) -> bool:
    if not (isinstance(theirs.encoder, NumericEncoder) and isinstance(ours.encoder, NumericEncoder)):
        return True
    old, new = theirs.encoder, ours.encoder
    return (old.mean, old.deviation, old.transform, old.clip) == (new.mean, new.deviation, new.transform, new.clip)


def _on_the_scale_of(theirs: EncodedField, ours: EncodedField, edges_E: np.ndarray) -> np.ndarray:
    if _same_scale(theirs, ours):
        return edges_E
    assert isinstance(theirs.encoder, NumericEncoder) and isinstance(ours.encoder, NumericEncoder)
    return theirs.encoder.encode_many(ours.encoder.raw_values(edges_E)).astype(np.float64)


def _crossed(old: ClickModel, new: ClickModel, before: Encoder, now: Encoder) -> dict[str, Move]:
    """The tables of crossed pairs, where both models cross the pair; the others begin at 0."""
    if new.crosses is None:
        return {}
    theirs, known = crossed_pairs(old), dict[str, Move]()
    columns = {"user": (before.user, now.user), "context": (before.context, now.context)}
    for number, (side, left, right) in crossed_pairs(new).items():
        place = next((at for at, pair in theirs.items() if pair == (side, left, right)), None)
        if place is None:
            continue
        (of_left, ours_left), of_item = columns[side], before.item
        sizes = [_size(schema, side, left) for schema in (old.schema, new.schema)]
        widths = [_size(schema, "item", right) for schema in (old.schema, new.schema)]
        left_F = index_map(of_left.get(left), ours_left.get(left), sizes[1])
        right_G = index_map(of_item.get(right), now.item.get(right), widths[1])
        is_new = (left_F == NEW)[:, None] | (right_G == NEW)
        start = np.where(left_F == NEW, UNKNOWN, left_F)[:, None] * widths[0]
        start = start + np.where(right_G == NEW, UNKNOWN, right_G)
        source = np.where(is_new, NEW, start)
        known[f"{CROSSES}{number}.weight"] = RowMove(
            torch.from_numpy(source.ravel()), torch.from_numpy(start.ravel()), f"{CROSSES}{place}.weight"
        )
    return known


def crossed_pairs(model: ClickModel) -> dict[int, tuple[str, str, str]]:
    """The pairs that a model crosses, by the number of their table: side, its column, the item's column."""
    if model.crosses is None:
        return {}
    sides = [("user", one.name) for one in model.user_fields] + [("context", one.name) for one in model.context_fields]
    columns = model.crosses.columns
    return {
        number: (*sides[context], model.schema.item[columns[item]].name)
        for number, (context, item, _) in enumerate(model.crosses.pairs)
    }


def _size(schema: object, side: str, name: str) -> int:
    fields: Sequence[Field] = getattr(schema, side)
    return next(one.size for one in fields if one.name == name)
