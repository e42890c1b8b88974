"""What was learned from vectors, kept: so that new items and later builds get vectors in the same space.

Shapes: V rows, W dimensions before and D after.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from features.errors import DataError

TRANSFORMS = "transforms"
BLOCK = 8192  # rows
SMALLEST = 1e-12  # norm below which a vector has no direction
LARGEST = 1e15  # size of a number beyond which squares, summed over a vector, near the end of float32


@dataclass(frozen=True)
class Projection:
    """`(v - mean) axes`: mean float32 [W], axes float32 [W, D]."""

    mean_W: np.ndarray
    axes_WD: np.ndarray

    def apply(self, vectors_VW: np.ndarray) -> np.ndarray:
        """Of every row, float32 [V, D], in blocks."""
        projected_VD = np.empty((len(vectors_VW), self.axes_WD.shape[1]), np.float32)
        for start in range(0, len(vectors_VW), BLOCK):
            rows = slice(start, start + BLOCK)
            np.matmul(vectors_VW[rows] - self.mean_W, self.axes_WD, out=projected_VD[rows])
        return projected_VD


@dataclass(frozen=True)
class SetTransform:
    """One set: centred, divided by its length, truncated and divided again, projected; each step only where declared.

    Args:
        width: of the vectors as they are given.
        centre_W: float32 [W], taken away.
        l2_normalize: divide by the Euclidean norm.
        truncate_to: first dimensions that are kept.
        projection: onto principal components.
    """

    width: int
    centre_W: np.ndarray | None = None
    l2_normalize: bool = False
    truncate_to: int | None = None
    projection: Projection | None = None

    def apply(self, vectors_VW: np.ndarray) -> np.ndarray:
        """Of every row, float32 [V, D]; the input may be overwritten."""
        if self.centre_W is not None:
            vectors_VW -= self.centre_W
        if self.l2_normalize:
            to_unit(vectors_VW)
        if self.truncate_to is not None:
            vectors_VW = to_unit(np.ascontiguousarray(vectors_VW[:, : self.truncate_to]))
        return vectors_VW if self.projection is None else self.projection.apply(vectors_VW)

    def save(self, folder: Path, name: str) -> None:
        """Write below the feature set's folder."""
        arrays = {} if self.centre_W is None else {"centre": self.centre_W}
        if self.projection is not None:
            arrays |= {"mean": self.projection.mean_W, "axes": self.projection.axes_WD}
        settings = {"width": self.width, "l2_normalize": self.l2_normalize, "truncate_to": self.truncate_to}
        _write(folder, name, settings, arrays)

    @classmethod
    def load(cls, folder: Path, name: str) -> SetTransform:
        """Read what `save` wrote. Raises DataError where there is none."""
        settings, arrays = _read(folder, name)
        projection = Projection(arrays["mean"], arrays["axes"]) if "axes" in arrays else None
        normalize, truncate_to = bool(settings["l2_normalize"]), settings["truncate_to"]
        return cls(int(settings["width"]), arrays.get("centre"), normalize, truncate_to, projection)


@dataclass(frozen=True)
class FusedTransform:
    """Several sets as one: the sum of their projections."""

    parts: Mapping[str, Projection]

    def apply(self, vectors: Mapping[str, np.ndarray], has: Mapping[str, np.ndarray]) -> np.ndarray:
        """Fused vectors, float32 [V, D].

        Args:
            vectors: transformed vectors of each part, float32 [V, W].
            has: which rows have one, bool [V].
        """
        each = [
            np.where(has[name][:, None], part.apply(vectors[name]), np.float32(0)) for name, part in self.parts.items()
        ]
        return np.asarray(np.add.reduce(each))

    def save(self, folder: Path, name: str) -> None:
        """Write below the feature set's folder."""
        arrays: dict[str, np.ndarray] = {}
        for place, part in enumerate(self.parts.values()):
            arrays |= {f"mean-{place}": part.mean_W, f"axes-{place}": part.axes_WD}
        _write(folder, name, {"parts": list(self.parts)}, arrays)

    @classmethod
    def load(cls, folder: Path, name: str) -> FusedTransform:
        """Read what `save` wrote. Raises DataError where there is none."""
        settings, arrays = _read(folder, name)
        parts = {
            part: Projection(arrays[f"mean-{place}"], arrays[f"axes-{place}"])
            for place, part in enumerate(settings["parts"])
        }
        return cls(parts)


def sound(vectors_VW: np.ndarray) -> np.ndarray:
    """Which rows hold numbers up to `LARGEST` in size alone, bool [V]: no NaN and no infinity."""
    # Not through |v|, a copy of everything; NaN is the greatest and the least of its row.
    return np.asarray((vectors_VW.max(axis=1, initial=0) <= LARGEST) & (vectors_VW.min(axis=1, initial=0) >= -LARGEST))


def to_unit(vectors_VW: np.ndarray) -> np.ndarray:
    """Divide each row by its Euclidean norm, in place; a row of zeros stays one."""
    norms_V = np.sqrt(np.einsum("vw,vw->v", vectors_VW, vectors_VW, dtype=np.float64))
    for start in range(0, len(vectors_VW), BLOCK):
        rows = slice(start, start + BLOCK)
        vectors_VW[rows] /= np.maximum(norms_V[rows], SMALLEST)[:, None].astype(np.float32)
    return vectors_VW


def _write(folder: Path, name: str, settings: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    target = folder / TRANSFORMS / name
    target.mkdir(parents=True, exist_ok=True)
    for key, values in arrays.items():
        np.save(target / f"{key}.npy", values)
    (target / "transform.json").write_text(json.dumps(settings | {"arrays": list(arrays)}), encoding="utf-8")


def _read(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    target = folder / TRANSFORMS / name
    try:
        settings = json.loads((target / "transform.json").read_text(encoding="utf-8"))
        return settings, {key: np.load(target / f"{key}.npy", allow_pickle=False) for key in settings["arrays"]}
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{target}: what was learned from vectors cannot be read: {error}. Build again.") from None
