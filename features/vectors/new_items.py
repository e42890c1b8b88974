"""Raw vectors of items that came after the build, as a model of that build reads them: the inputs of `items.onnx`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from features.contract.contract import Contract
from features.errors import DataError
from features.store.schema import Schema
from features.vectors.projections import FusedTransform, SetTransform

Encoded = dict[str, tuple[np.ndarray, np.ndarray]]


def encode_vectors(folder: Path, contract: Contract, schema: Schema, raw: Mapping[str, np.ndarray]) -> Encoded:
    """Normalise, reduce and fuse with what the build learned.

    An item without a vector gets zeros and is not present: it has no clicks that `missing` could fill it by.

    Args:
        folder: a feature set, or a bundle.
        contract, schema: its own.
        raw: for each declared set, vectors as the encoder made them, float [M, width]; a row of NaN is missing. A set
            that is left out is missing for all.

    Returns:
        For each set of the schema, `vector_<set>` float32 [M, width] and `present_<set>` bool [M].

    Raises:
        DataError: vectors of another width than the build's, or sets of unequal length; a transform is missing.
    """
    rows = {len(vectors) for vectors in raw.values()}
    if len(rows) != 1:
        raise DataError(f"vectors of new items: sets of {sorted(rows)} rows; give one row an item in each.")
    items = rows.pop()
    own: Encoded = {}
    for name in contract.embeddings:
        if name in raw:
            own[name] = _of_one(folder, name, np.array(raw[name], np.float32))
    fused: Encoded = {}
    for name, spec in contract.vectors.fusion.items():
        there = {part: own[part] for part in spec.sets if part in own}
        learned = FusedTransform.load(folder, name)
        learned = FusedTransform({part: learned.parts[part] for part in there})
        if there:
            vectors = learned.apply(
                {part: vectors_VW for part, (vectors_VW, _) in there.items()},
                {part: has for part, (_, has) in there.items()},
            )
            fused[name] = (vectors, np.logical_or.reduce([has for _, has in there.values()]))
    known = own | fused
    missing = {
        vector_set.name: (np.zeros((items, vector_set.width), np.float32), np.zeros(items, bool))
        for vector_set in schema.vectors
    }
    return {name: known.get(name, nothing) for name, nothing in missing.items()}


def _of_one(folder: Path, name: str, vectors_MW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    present_M = ~np.isnan(vectors_MW).any(axis=1)
    vectors_MW[~present_M] = 0
    learned = SetTransform.load(folder, name)
    if vectors_MW.shape[1] != learned.width:
        raise DataError(f"vectors of new items: set {name!r} is {vectors_MW.shape[1]} wide, not {learned.width}.")
    made = learned.apply(vectors_MW)
    made[~present_M] = 0
    return made, present_M
