"""Item vectors: read, check, align to the catalogue, normalise, reduce, store. Fitted on training items."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from features.contract import Contract
from features.contract_vectors import Embedding
from features.errors import DataError, named
from features.schema import FIRST_VALUE, UNKNOWN, VectorSet
from features.sources import find_files, read
from features.vocabulary import Vocabulary


def build_embedding(
    name: str, contract: Contract, items: Vocabulary, trained_I: np.ndarray, folder: Path
) -> tuple[VectorSet, float]:
    """Write `<name>.npy` (float32 [items, width], zeros where missing) and `<name>.present.npy` (bool [items]).

    Args:
        name: of the set.
        contract: whose `embeddings[name]` says where and how.
        items: the catalogue; row i of the result is catalogue row i.
        trained_I: bool [items], rows seen in the training window: scalers and PCA are fitted on these alone.
        folder: where to write.

    Returns:
        The set as a model sees it, and the share of catalogue items that have a vector.

    Raises:
        DataError: vectors of unequal width, not finite, duplicate or null ids, or none for any known item.
    """
    spec = contract.embeddings[name]
    path = contract.resolve(spec.path)
    ids, vectors_VW = _read(contract, spec, path)
    _check(path, ids, vectors_VW)
    with named(path):
        row_V = items.encode(ids)
    known = row_V != UNKNOWN
    if not known.any():
        raise DataError(
            f"{path}: none of its {len(ids)} ids (e.g. {ids[0]!r}) is an item of the catalogue (e.g. "
            f"{items.values[0]!r}). Check embeddings.{name}.id and the type of the ids."
        )
    row_V, vectors_VW = row_V[known], vectors_VW[known]
    vectors_VW = _reduce(_normalise(vectors_VW, spec, trained_I[row_V]), spec, trained_I[row_V], path)
    present_I = np.zeros(items.size, bool)
    present_I[row_V] = True
    folder.mkdir(parents=True, exist_ok=True)
    shape = (items.size, vectors_VW.shape[1])
    aligned = np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.float32, shape=shape)
    aligned[row_V] = vectors_VW
    aligned.flush()
    np.save(folder / f"{name}.present.npy", present_I)
    covered = present_I[FIRST_VALUE:]
    return VectorSet(name=name, width=shape[1], complete=bool(covered.all())), float(covered.mean())


def _read(contract: Contract, spec: Embedding, path: str) -> tuple[pl.Series, np.ndarray]:
    if path.endswith(".npy"):
        if spec.ids is None:
            raise DataError(f"{path}: a .npy file has no ids. Name the table of its ids under `ids`.")
        try:
            vectors = np.load(find_files(path)[0], mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError) as error:
            raise DataError(f"{path}: cannot be read as npy: {error}. Write the file again.") from None
        if vectors.dtype.kind not in "fiu":
            raise DataError(f"{path}: holds {vectors.dtype}, expected numbers.")
        ids_path = contract.resolve(spec.ids)
        ids = read(ids_path, [spec.id])[spec.id]
        if vectors.ndim != 2 or len(ids) != len(vectors):
            raise DataError(f"{path}: shape {vectors.shape} does not fit the {len(ids)} ids of {ids_path}.")
        return ids, np.asarray(vectors, np.float32)
    table = read(path, [spec.id, spec.vector])
    return table[spec.id], _matrix(path, table[spec.id], table[spec.vector])


def _matrix(path: str, ids: pl.Series, vectors: pl.Series) -> np.ndarray:
    if not isinstance(vectors.dtype, pl.List | pl.Array) or not vectors.dtype.inner.is_numeric():
        raise DataError(f"{path}: column {vectors.name!r} holds {vectors.dtype}, expected lists of numbers.")
    if vectors.null_count():
        at = ids[int(vectors.is_null().arg_max() or 0)]
        raise DataError(
            f"{path}: {vectors.null_count()} of {len(vectors)} vectors are null, e.g. of id {at!r}. Leave them out."
        )
    if isinstance(vectors.dtype, pl.List):
        widths = vectors.list.len()
        usual = int(widths.mode()[0]) if len(widths) else 0
        wrong = (widths != usual).to_numpy()
        if wrong.any():
            first = int(np.argmax(wrong))
            raise DataError(
                f"{path}: column {vectors.name!r}: {int(wrong.sum())} of {len(widths)} vectors have another width than "
                f"{usual}, e.g. {widths[first]} for id {ids[first]!r}. Write all vectors with one encoder."
            )
    if not len(vectors):
        return np.empty((0, 0), np.float32)
    flat = vectors.explode().cast(pl.Float32)
    return flat.fill_null(float("nan")).to_numpy().reshape(len(vectors), -1)


def _check(path: str, ids: pl.Series, vectors_VW: np.ndarray) -> None:
    if not len(ids):
        raise DataError(f"{path}: holds no vectors. Take the set out of the contract or write the file again.")
    if ids.null_count():
        raise DataError(f"{path}: {ids.null_count()} of {len(ids)} ids are null. Leave such rows out.")
    twice = ids.filter(ids.is_duplicated())
    if len(twice):
        raise DataError(
            f"{path}: {twice.n_unique()} ids appear more than once, e.g. {twice[0]!r}. Keep one vector each."
        )
    broken = ~np.isfinite(vectors_VW).all(axis=1)
    if broken.any():
        raise DataError(
            f"{path}: {int(broken.sum())} of {len(ids)} vectors hold NaN or infinity, e.g. that of id "
            f"{ids[int(np.argmax(broken))]!r}. Leave such items out: a missing vector is handled, a broken one is not."
        )


def _normalise(vectors_VW: np.ndarray, spec: Embedding, trained_V: np.ndarray) -> np.ndarray:
    if spec.normalize == "l2":
        norms = np.linalg.norm(vectors_VW, axis=1, keepdims=True)
        return vectors_VW / np.maximum(norms, 1e-12)
    if spec.normalize == "standardize":
        sample = vectors_VW[trained_V] if trained_V.any() else vectors_VW
        # float64 sums: those of a million float32 rows are off in the third digit.
        mean, deviation = sample.mean(axis=0, dtype=np.float64), sample.std(axis=0, dtype=np.float64)
        deviation[sample.min(axis=0) == sample.max(axis=0)] = 1.0
        return (vectors_VW - mean.astype(np.float32)) / deviation.astype(np.float32)
    return vectors_VW


def _reduce(vectors_VW: np.ndarray, spec: Embedding, trained_V: np.ndarray, path: str) -> np.ndarray:
    if spec.reduce is None:
        return vectors_VW
    from sklearn.decomposition import PCA

    most = min(int(trained_V.sum()), vectors_VW.shape[1])
    if spec.reduce.dim > most:
        raise DataError(
            f"{path}: reduce.dim {spec.reduce.dim} is more than {most}, the smaller of its width and its items in "
            "training. Lower it."
        )
    pca = PCA(spec.reduce.dim, svd_solver="full").fit(vectors_VW[trained_V])
    return pca.transform(vectors_VW).astype(np.float32)
