"""Precomputed item vectors: read from their file, checked, and laid onto the rows of the catalogue."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features.contract.contract import Contract
from features.contract.vectors import Embedding
from features.encoding.vocabulary import Vocabulary
from features.errors import DataError, error_prefix
from features.sources.files import find_files, is_url, read_bytes
from features.sources.tables import read
from features.store.schema import FIRST_VALUE, UNKNOWN
from features.store.vector_files import ItemVectors
from features.vectors.projections import LARGEST, sound

LEARNED = "learned"  # below a feature set: learned sets, each a file as of one that is read


def learned_file(folder: Path, name: str) -> Path:
    """Where the vectors of a learned set stand below the folder of a feature set."""
    return folder / LEARNED / f"{name}.parquet"


def read_vectors(name: str, contract: Contract, items: Vocabulary, folder: Path) -> ItemVectors:
    """The vectors of `contract.embeddings[name]` as their file holds them; those of no catalogue item are left out.

    Args:
        name: of the set.
        contract: that declares it.
        items: the catalogue.
        folder: of the feature set, which holds the files of learned sets.

    Raises:
        DataError: vectors of unequal width, not finite or beyond `LARGEST`, duplicate or null ids, or none for any
            catalogue item.
    """
    spec = contract.embeddings[name]
    path = str(learned_file(folder, name)) if spec.path is None else contract.resolve(spec.path)
    ids, vectors_VW = _read(contract, spec, path)
    _check(path, ids, vectors_VW)
    with error_prefix(path):
        row_V = items.encode(ids)
    known_V = row_V != UNKNOWN
    if not known_V.any():
        raise DataError(
            f"{path}: none of its {len(ids)} ids (e.g. {ids[0]!r}) is an item of the catalogue (e.g. "
            f"{items.values[0]!r}). Check embeddings.{name}.id and the type of the ids."
        )
    vectors_IW = np.zeros((items.size, vectors_VW.shape[1]), np.float32)
    vectors_IW[row_V[known_V]] = vectors_VW if known_V.all() else vectors_VW[known_V]
    present_I = np.zeros(items.size, bool)
    present_I[row_V[known_V]] = True
    return ItemVectors(name, vectors_IW, present_I, np.zeros(items.size, bool))


def read_new_vectors(path: str, spec: Embedding, ids: pl.Series) -> np.ndarray:
    """Vectors of items that came after the build, float32 [M, width] in the order of `ids`; NaN where there is none.

    Args:
        path: a table with the columns that the declaration names, or a `.npy` whose rows are the items in their order.
        spec: declaration of the set.
        ids: of the items, distinct, as keys.

    Raises:
        DataError: as `read_vectors`, or a `.npy` of another number of rows.
    """
    if path.endswith(".npy"):
        array = _array(path)
        if array.ndim != 2 or len(array) != len(ids):
            raise DataError(f"{path}: shape {array.shape} does not fit the {len(ids)} items. Give one row an item.")
        with np.errstate(over="ignore"):
            of, vectors_VW = ids, np.asarray(array, np.float32)
    else:
        table = read(path, [spec.id, spec.vector])
        of, vectors_VW = table[spec.id], _matrix(path, table[spec.id], table[spec.vector])
    _check(path, of, vectors_VW)
    items = Vocabulary(ids)
    with error_prefix(path):
        place_V = items.encode(of) - FIRST_VALUE
    ours_V = place_V >= 0
    if not ours_V.any():
        raise DataError(f"{path}: none of its {len(of)} ids (e.g. {of[0]!r}) is one of the items (e.g. {ids[0]!r}).")
    found_MW = np.full((len(ids), vectors_VW.shape[1]), np.nan, np.float32)
    found_MW[place_V[ours_V]] = vectors_VW[ours_V]
    return found_MW


def _read(contract: Contract, spec: Embedding, path: str) -> tuple[pl.Series, np.ndarray]:
    if path.endswith(".npy"):
        if spec.ids is None:
            raise DataError(f"{path}: a .npy file has no ids. Name the table of its ids under `ids`.")
        vectors = _array(path)
        ids_path = contract.resolve(spec.ids)
        ids = read(ids_path, [spec.id], spec.format)[spec.id]
        if vectors.ndim != 2 or len(ids) != len(vectors):
            raise DataError(f"{path}: shape {vectors.shape} does not fit the {len(ids)} ids of {ids_path}.")
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity, which the check names
            return ids, np.asarray(vectors, np.float32)
    table = read(path, [spec.id, spec.vector], spec.format)
    return table[spec.id], _matrix(path, table[spec.id], table[spec.vector])


def _array(path: str) -> np.ndarray:
    files = find_files(path)
    if len(files) > 1:
        raise DataError(
            f"{path}: names {len(files)} files, e.g. {files[1]}. Write the vectors as one .npy, or as tables."
        )
    file = str(files[0])
    try:
        array: Any = np.load(
            io.BytesIO(read_bytes(file)) if is_url(file) else file,
            mmap_mode=None if is_url(file) else "r",
            allow_pickle=False,
        )
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: cannot be read as npy: {error}. Write the file again.") from None
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path}: cannot be read as npy: it is a .npz of several arrays. Write one with numpy.save.")
    if array.dtype.kind not in "fiu":
        raise DataError(f"{path}: holds {array.dtype}, expected numbers.")
    return array


def _matrix(path: str, ids: pl.Series, vectors: pl.Series) -> np.ndarray:
    if not len(vectors):
        return np.empty((0, 0), np.float32)
    if not isinstance(vectors.dtype, pl.List | pl.Array) or not vectors.dtype.inner.is_numeric():
        raise DataError(f"{path}: column {vectors.name!r} holds {vectors.dtype}, expected lists of numbers.")
    if vectors.null_count():
        at = ids[int(vectors.is_null().arg_max() or 0)]
        raise DataError(
            f"{path}: {vectors.null_count()} of {len(vectors)} vectors are null, e.g. of id {at!r}. Leave them out."
        )
    if isinstance(vectors.dtype, pl.List):
        widths = vectors.list.len()
        usual = int(widths.mode()[0])
        wrong = (widths != usual).to_numpy()
        if wrong.any():
            first = int(np.argmax(wrong))
            raise DataError(
                f"{path}: column {vectors.name!r}: {int(wrong.sum())} of {len(widths)} vectors have another width than "
                f"{usual}, e.g. {widths[first]} for id {ids[first]!r}. Write all vectors with one encoder."
            )
    flat = vectors.explode(empty_as_null=False).cast(pl.Float32)
    return flat.fill_null(float("nan")).to_numpy().reshape(len(vectors), -1)


def _check(path: str, ids: pl.Series, vectors_VW: np.ndarray) -> None:
    if not vectors_VW.size:
        raise DataError(f"{path}: holds no vectors. Take the set out of the contract or write the file again.")
    if ids.null_count():
        raise DataError(f"{path}: {ids.null_count()} of {len(ids)} ids are null. Leave such rows out.")
    twice = ids.filter(ids.is_duplicated())
    if len(twice):
        raise DataError(
            f"{path}: {twice.n_unique()} ids appear more than once, e.g. {twice[0]!r}. Keep one vector each."
        )
    broken = ~sound(vectors_VW)
    if broken.any():
        raise DataError(
            f"{path}: {int(broken.sum())} of {len(ids)} vectors hold NaN or infinity, or numbers beyond {LARGEST:g}, "
            f"e.g. that of id {ids[int(np.argmax(broken))]!r}. Leave such items out: a missing vector is handled, a "
            "broken one is not."
        )
