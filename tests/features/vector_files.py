"""Vector sets on disk for the tests of vectors: written from arrays, built, and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features.contract.contract import Contract
from features.encoding.vocabulary import Vocabulary
from features.store.vector_files import EMBEDDINGS, decoded, read_stored
from features.vectors.build import VectorResult, build_vectors
from features.vectors.coclicks import Clicks

LOG = {"path": "log.csv", "user": "u", "item": "i", "time": "t", "label": "y"}


def contract_of(folder: Path, embeddings: dict[str, Any], vectors: dict[str, Any] | None = None) -> Contract:
    """A contract of these sets, each in `<set>.parquet` unless it says otherwise."""
    sets = {name: {"path": f"{name}.parquet", **spec} for name, spec in embeddings.items()}
    content = {"name": "c", "root": str(folder), "interactions": LOG, "embeddings": sets, "vectors": vectors or {}}
    return Contract.model_validate(content)


def write_set(folder: Path, name: str, vectors_VW: np.ndarray, ids: Any) -> None:
    """One parquet file of id and vector."""
    table = {"item_id": list(ids), "vector": pl.Series(np.asarray(vectors_VW).tolist(), dtype=pl.List(pl.Float64))}
    pl.DataFrame(table).write_parquet(folder / f"{name}.parquet")


class VectorFiles:
    """A catalogue of items 0, 1, … (catalogue row = id + 2) with vector sets that tests change and build.

    Args:
        folder: an empty one.
        sets: float arrays [items, width] by name; a row of NaN is an item without a vector.
        trained: items of the training window, bool [items]; default all.
    """

    def __init__(self, folder: Path, sets: dict[str, Any], trained: Any = None) -> None:
        self.folder = folder
        self.sets = {name: np.array(vectors, np.float64) for name, vectors in sets.items()}
        self.count = len(next(iter(self.sets.values())))
        self.trained_I = np.zeros(self.count + 2, bool)
        self.trained_I[2:] = True if trained is None else trained

    def build(
        self,
        embeddings: dict[str, Any] | None = None,
        vectors: dict[str, Any] | None = None,
        clicks: Clicks | None = None,
        columns: dict[str, np.ndarray] | None = None,
    ) -> VectorResult:
        """Write the sets as they are now, and build them; sets without options are stored as they were given."""
        for name, values in self.sets.items():
            has = ~np.isnan(values).any(axis=1)
            write_set(self.folder, name, values[has], np.flatnonzero(has))
        contract = contract_of(self.folder, embeddings or {name: {"normalize": "none"} for name in self.sets}, vectors)
        items = Vocabulary(pl.Series(np.arange(self.count)))
        return build_vectors(contract, items, self.trained_I, columns or {}, clicks, self.folder / "out")

    def stored(self, name: str) -> tuple[np.ndarray, np.ndarray | None]:
        """The array of the last build, and its scales."""
        return read_stored(self.folder / "out" / EMBEDDINGS, name)

    def vectors(self, name: str) -> np.ndarray:
        """float32 [items, width] of the last build, padding and unknown left out; a copy."""
        return np.array(decoded(*self.stored(name))[2:])

    def present(self, name: str) -> list[bool]:
        """Which items had a vector of their own, padding and unknown left out."""
        present_I = np.load(self.folder / "out" / EMBEDDINGS / f"{name}.present.npy")
        assert not present_I[:2].any()
        return present_I[2:].tolist()
