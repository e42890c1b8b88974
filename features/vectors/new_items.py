"""Raw vectors of items that came after the build, as a model of that build reads them: the inputs of `items.onnx`.

Shapes: M new items, W dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from features.contract.contract import Contract
from features.contract.settings import unknown_key
from features.contract.vectors import FillFromNeighbours
from features.errors import NewItemsError
from features.store.schema import UNKNOWN, Schema
from features.store.vector_files import Dtype, decoded, encoded
from features.vectors.filling import BY_CLICKS, Lenders, has_direction
from features.vectors.projections import LARGEST, FusedTransform, SetTransform, sound
from features.vectors.semantic_ids import SEMANTIC_IDS, SemanticCoder


@dataclass(frozen=True)
class EncodedVectors:
    """What the vectors of new items became.

    Args:
        sets: those of the schema by name, vectors float32 [M, W] and whether the item has one of its own, bool [M].
        columns: semantic ids by name, int32 [M]: 1 without a vector or for a prefix that training does not know.
    """

    sets: dict[str, tuple[np.ndarray, np.ndarray]]
    columns: dict[str, np.ndarray]


@dataclass
class _Set:
    """One set as the build has it in memory: transformed, filled, not yet rounded to its type on disk."""

    vectors_MW: np.ndarray
    present_M: np.ndarray
    filled_M: np.ndarray


def encode_vectors(
    folder: Path, contract: Contract, schema: Schema, raw: Mapping[str, np.ndarray], items: int
) -> EncodedVectors:
    """Normalise, reduce, fill, fuse and code with what the build learned, as the build did with its own items.

    Nothing is filled by clicks, of which a new item has none.

    Args:
        folder: a feature set, or a bundle.
        contract, schema: its own.
        raw: for each declared set, vectors as the encoder made them, float [M, width]; a row of NaN is missing. A set
            that is left out is missing for all.
        items: M.

    Raises:
        NewItemsError: a set that the contract does not declare, vectors of another width than the build's, of another
            number of rows than `items`, beyond `LARGEST`, or with NaN or infinity in only some of their numbers.
        DataError: what the build learned is missing.
    """
    _check(contract, raw, items)
    own = {name: _transformed(folder, name, raw.get(name), items) for name in contract.embeddings}
    for name, spec in contract.embeddings.items():
        if spec.missing != "zero":
            by = spec.missing.by if isinstance(spec.missing, FillFromNeighbours) else None
            if by != BY_CLICKS:
                _fill(own[name], Lenders.load(folder, name), own.get(by) if by else None)
    fused = {
        name: _fused(FusedTransform.load(folder, name), {part: own[part] for part in spec.sets})
        for name, spec in contract.vectors.fusion.items()
    }
    known = own | fused
    columns: dict[str, np.ndarray] = {}
    for name in contract.vectors.semantic_ids:
        coder = SemanticCoder.load(folder / SEMANTIC_IDS / name)
        coded = known[coder.set]
        for column, index_P in coder.encode(coded.vectors_MW[coded.present_M]).items():
            columns[column] = np.full(items, UNKNOWN, np.int32)
            columns[column][coded.present_M] = index_P
    dtypes: dict[str, Dtype] = {name: spec.dtype for name, spec in contract.embeddings.items()}
    dtypes |= {name: spec.dtype for name, spec in contract.vectors.fusion.items()}
    sets = {
        one.name: (
            decoded(*encoded(one.name, known[one.name].vectors_MW, dtypes[one.name])),
            known[one.name].present_M,
        )
        for one in schema.vectors
    }
    return EncodedVectors(sets, columns)


def _check(contract: Contract, raw: Mapping[str, np.ndarray], items: int) -> None:
    for name, vectors in raw.items():
        if name not in contract.embeddings:
            hint = unknown_key(name, list(contract.embeddings)) if contract.embeddings else "It has none."
            raise NewItemsError(f"vectors of new items: the model has no set {name!r}. {hint}")
        if len(vectors) != items:
            raise NewItemsError(f"vectors of new items: set {name!r} has {len(vectors)} rows for {items} items.")
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity
            single_MW = np.asarray(vectors, np.float32)
        broken_M = ~sound(single_MW) & ~np.isnan(single_MW).all(axis=1)
        if broken_M.any():
            raise NewItemsError(
                f"vectors of new items: set {name!r}: {int(broken_M.sum())} of {items} vectors hold NaN or infinity, "
                f"or numbers beyond {LARGEST:g}, the first of them that of item number {int(np.argmax(broken_M))}. "
                "Leave such vectors out: a missing one is handled, a broken one is not."
            )


def _transformed(folder: Path, name: str, raw_MW: np.ndarray | None, items: int) -> _Set:
    learned = SetTransform.load(folder, name)
    vectors_MW = np.full((items, learned.width), np.nan, np.float32) if raw_MW is None else np.array(raw_MW, np.float32)
    if vectors_MW.shape[1] != learned.width:
        raise NewItemsError(f"vectors of new items: set {name!r} is {vectors_MW.shape[1]} wide, not {learned.width}.")
    present_M = np.logical_not(np.isnan(vectors_MW).any(axis=1))
    vectors_MW[~present_M] = 0
    made_MW = learned.apply(vectors_MW)
    made_MW[~present_M] = 0
    return _Set(made_MW, present_M, np.zeros(items, bool))


def _fill(one: _Set, lenders: Lenders, other: _Set | None) -> None:
    asking_M = np.logical_not(one.present_M)
    if other is not None:
        asking_M &= has_direction(other.vectors_MW, other.present_M)
    borrowed_QW = np.zeros((int(asking_M.sum()), one.vectors_MW.shape[1]), np.float32)
    one.filled_M[asking_M] = lenders.lend(borrowed_QW, None if other is None else other.vectors_MW[asking_M])
    one.vectors_MW[asking_M] = borrowed_QW


def _fused(learned: FusedTransform, parts: Mapping[str, _Set]) -> _Set:
    has = {name: part.present_M | part.filled_M for name, part in parts.items()}
    vectors_MW = learned.apply({name: part.vectors_MW for name, part in parts.items()}, has)
    present_M = np.logical_or.reduce([part.present_M for part in parts.values()])
    any_M = np.logical_or.reduce(list(has.values()))
    return _Set(vectors_MW, present_M, np.greater(any_M, present_M))
