"""Vector sets on disk, as float32, float16 or int8 with a scale a vector, and which items are present in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from features.errors import DataError
from features.store.schema import FIRST_VALUE

EMBEDDINGS = "embeddings"
LARGEST_INT8 = 127
Dtype = Literal["float32", "float16", "int8"]


@dataclass(frozen=True)
class ItemVectors:
    """One vector set on the rows of the catalogue (I items, W dimensions).

    Args:
        name: of the set.
        vectors_IW: float32 [items, width], zeros where there is nothing.
        present_I: bool [items], items that have a vector of their own.
        filled_I: bool [items], items that borrowed one from their neighbours.
    """

    name: str
    vectors_IW: np.ndarray
    present_I: np.ndarray
    filled_I: np.ndarray

    @property
    def width(self) -> int:
        """Dimensions of a vector."""
        return int(self.vectors_IW.shape[1])

    @property
    def coverage(self) -> float:
        """Share of catalogue items that have a vector of their own."""
        return float(self.present_I[FIRST_VALUE:].mean())


def write_vectors(folder: Path, vector_set: ItemVectors, dtype: Dtype) -> None:
    """Write `<set>.npy` [items, width], `<set>.present.npy` (bool [items]) and, for int8, `<set>.scale.npy`.

    float16 keeps 11 binary digits: a number is off by at most 2^-11 of its size (or 2^-25, if it is smaller than
    6e-5). int8 is symmetric, v = q * scale with scale = max |v| / 127 of its vector: off by at most max |v| / 254.

    Raises:
        DataError: a number is beyond float16.
    """
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{vector_set.name}.present.npy", vector_set.present_I)
    stored_IW, scale_I = encoded(vector_set.name, vector_set.vectors_IW, dtype)
    if scale_I is not None:
        np.save(folder / f"{vector_set.name}.scale.npy", scale_I)
    np.save(folder / f"{vector_set.name}.npy", stored_IW)


def encoded(name: str, vectors_IW: np.ndarray, dtype: Dtype) -> tuple[np.ndarray, np.ndarray | None]:
    """Vectors float32 [items, width] as they are stored, and float32 [items] scales for int8. `decoded` reads them.

    Raises:
        DataError: a number is beyond float16; `name` is that of the set.
    """
    if dtype == "float16":
        _check_float16(name, vectors_IW)
        return vectors_IW.astype(np.float16), None
    if dtype == "int8":
        scale_I = np.maximum(vectors_IW.max(axis=1), -vectors_IW.min(axis=1)) / np.float32(LARGEST_INT8)
        divisor_I = np.where(scale_I > 0, scale_I, np.float32(1))
        return np.rint(vectors_IW / divisor_I[:, None]).astype(np.int8), scale_I
    return vectors_IW, None


def read_stored(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """The stored array [items, width], memory-mapped, and float32 [items] scales where it is int8."""
    stored_IW = np.load(folder / f"{name}.npy", mmap_mode="r")
    return stored_IW, np.load(folder / f"{name}.scale.npy") if stored_IW.dtype == np.int8 else None


def decoded(stored_IW: np.ndarray, scale_I: np.ndarray | None) -> np.ndarray:
    """float32 [items, width] of a stored array; one of float32 is returned as it is, on its memory map."""
    if stored_IW.dtype == np.float32:
        return stored_IW
    vectors_IW = stored_IW.astype(np.float32)
    if scale_I is not None:
        vectors_IW *= scale_I[:, None]
    return vectors_IW


def _check_float16(name: str, vectors_IW: np.ndarray) -> None:
    largest = float(np.finfo(np.float16).max)
    # Not through |v|, a copy of everything.
    beyond_I = (vectors_IW.max(axis=1) > largest) | (vectors_IW.min(axis=1) < -largest)
    if beyond_I.any():
        example = float(np.abs(vectors_IW[int(np.argmax(beyond_I))]).max())
        raise DataError(
            f"vector set {name!r}: {int(beyond_I.sum())} of {int(vectors_IW.any(axis=1).sum())} vectors hold "
            f"numbers that float16 does not, e.g. {example:g} (its largest is {largest:g}). Normalise them, or choose "
            "float32."
        )
