"""Semantic ids: residual k-means codes of item vectors, and their prefixes as categorical item columns.

Level 1 tells which of `size` centres an item's vector is nearest to, level 2 the same of what that centre leaves of it,
and so on (residual quantisation, Juang and Gray 1982; as item ids: Rajput et al. 2023, arXiv 2305.05065). Items that
are alike share a prefix, so a new item shares learned embeddings with old ones. Column `<name>_12` is the prefix of
levels 1 and 2 (prefix n-grams, Zheng et al. 2025, arXiv 2504.02137).

Shapes: V vectors, W dimensions, L levels, K codes a level, F vectors that are fitted on.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from features.contract.vectors import SemanticIds
from features.errors import DataError, require_format
from features.store.schema import FIRST_VALUE, UNKNOWN, Field
from features.vectors.projections import BLOCK
from features.vectors.transforms import blocks

SEMANTIC_IDS = "semantic_ids"
FORMAT = 1
SAMPLE_A_CODE = 256  # training vectors a code that centres are fitted on: more move them no further
SEEDS_A_CODE = 16  # of these, what the best of several first centres is found on
STARTS = 4  # from k-means++: one alone often splits a group and joins two others
ROUNDS = 25  # of k-means


@dataclass(frozen=True)
class SemanticCoder:
    """Codebooks and known prefixes: all it takes to give a vector its codes, now and for items that come later.

    Args:
        name: of the columns.
        set: the vector set; vectors to encode are those of it, normalised and reduced.
        codebooks_LKW: centres, float32 [levels, size, width].
        prefixes: for each level, sorted keys of the prefixes seen in training, int64. The key of a prefix is the place
            of its parent in the level above times `size`, plus its last code.
    """

    name: str
    set: str
    codebooks_LKW: np.ndarray
    prefixes: tuple[np.ndarray, ...]

    @classmethod
    def fit(cls, name: str, spec: SemanticIds, vectors_FW: np.ndarray) -> SemanticCoder:
        """Learn centres and prefixes from vectors of training items; the same again for the same seed.

        Raises:
            DataError: fewer vectors than codes.
        """
        if len(vectors_FW) < spec.size:
            raise DataError(
                f"vectors.semantic_ids.{name}: size {spec.size} is more than the {len(vectors_FW)} items in training "
                f"with a vector in {spec.set!r}. Lower it."
            )
        random = np.random.default_rng(spec.seed)
        chosen = random.permutation(len(vectors_FW))[: spec.size * SAMPLE_A_CODE]
        residuals_SW = vectors_FW[np.sort(chosen)]
        books = []
        for level in range(spec.levels):
            books.append(_centres(residuals_SW, spec.size, spec.seed + level))
            residuals_SW -= books[-1][_nearest(residuals_SW, books[-1])]
        coder = cls(name, spec.set, np.stack(books), ())
        codes_FL = coder.codes(vectors_FW)
        prefixes: list[np.ndarray] = []
        place_F = np.zeros(len(vectors_FW), np.int64)
        for level in range(spec.levels):
            known, place_F = np.unique(place_F * spec.size + codes_FL[:, level], return_inverse=True)
            prefixes.append(known)
        return cls(name, spec.set, coder.codebooks_LKW, tuple(prefixes))

    @property
    def levels(self) -> int:
        """How many codes make a full one."""
        return len(self.codebooks_LKW)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the item columns."""
        return column_names(self.name, self.levels)

    @property
    def fields(self) -> tuple[Field, ...]:
        """The columns as a model sees them."""
        return tuple(
            Field(name=name, kind="categorical", size=len(known) + FIRST_VALUE)
            for name, known in zip(self.columns, self.prefixes, strict=True)
        )

    def codes(self, vectors_VW: np.ndarray) -> np.ndarray:
        """The code of each vector at each level, int32 [V, levels], 0 to size - 1."""
        codes_VL = np.empty((len(vectors_VW), self.levels), np.int32)
        for rows in blocks(len(vectors_VW)):
            residuals_BW = np.array(vectors_VW[rows], np.float32)
            for level, book_KW in enumerate(self.codebooks_LKW):
                codes_VL[rows, level] = _nearest(residuals_BW, book_KW)
                residuals_BW -= book_KW[codes_VL[rows, level]]
        return codes_VL

    def encode(self, vectors_VW: np.ndarray) -> dict[str, np.ndarray]:
        """Indices of each vector in every column, int32 [V]; a prefix that no training item has is 1."""
        return self.indices(self.codes(vectors_VW))

    def indices(self, codes_VL: np.ndarray) -> dict[str, np.ndarray]:
        """As `encode`, from the codes."""
        size = self.codebooks_LKW.shape[1]
        place_V = np.zeros(len(codes_VL), np.int64)
        is_known_V = np.ones(len(codes_VL), bool)
        result = {}
        for level, (column, known) in enumerate(zip(self.columns, self.prefixes, strict=True)):
            key_V = place_V * size + codes_VL[:, level]
            place_V = np.minimum(np.searchsorted(known, key_V), len(known) - 1)
            is_known_V = is_known_V & (known[place_V] == key_V)
            result[column] = np.where(is_known_V, place_V + FIRST_VALUE, UNKNOWN).astype(np.int32)
        return result

    def report(self, vectors_VW: np.ndarray, codes_VL: np.ndarray) -> dict[str, float | list[float]]:
        """How well the codes tell these items apart.

        - `perplexity`, a level: exp of the entropy of its codes; `size` where all are used alike.
        - `collisions`: share of items that share their full code with another.
        - `reconstruction_error`, a level: `sum |v - sum of centres up to it|^2 / sum |v - mean|^2`, the share of the
          vectors' variance that the codes leave unexplained.
        """
        perplexity = []
        for code_V in codes_VL.T:
            share = np.bincount(code_V)[np.unique(code_V)] / len(code_V)
            perplexity.append(float(np.exp(-(share * np.log(share)).sum())))
        _, count = np.unique(codes_VL, axis=0, return_counts=True)
        mean_W = vectors_VW.mean(axis=0, dtype=np.float64).astype(np.float32)
        spread, left_L = 0.0, np.zeros(self.levels)
        for rows in blocks(len(vectors_VW)):
            residuals_BW = np.array(vectors_VW[rows], np.float32)
            spread += float(np.square(residuals_BW - mean_W).sum(dtype=np.float64))
            for level, book_KW in enumerate(self.codebooks_LKW):
                residuals_BW -= book_KW[codes_VL[rows, level]]
                left_L[level] += np.square(residuals_BW).sum(dtype=np.float64)
        return {
            "perplexity": perplexity,
            "collisions": float(count[count > 1].sum() / len(codes_VL)),
            "reconstruction_error": (left_L / spread if spread else left_L).tolist(),
        }

    def save(self, folder: Path) -> None:
        """Write `codebooks.npy`, `prefixes-<level>.npy` and `coder.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / "codebooks.npy", self.codebooks_LKW)
        for level, known in enumerate(self.prefixes, start=1):
            np.save(folder / f"prefixes-{level}.npy", known)
        record = {"format": FORMAT, "name": self.name, "set": self.set, "levels": self.levels}
        (folder / "coder.json").write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> SemanticCoder:
        """Read what `save` wrote. Raises DataError: no coder there, a broken one, or one of another format."""
        try:
            content = (folder / "coder.json").read_bytes()
            require_format(folder / "coder.json", content, FORMAT)
            record = json.loads(content)
            prefixes = tuple(np.load(folder / f"prefixes-{level + 1}.npy") for level in range(record["levels"]))
            return cls(record["name"], record["set"], np.load(folder / "codebooks.npy"), prefixes)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{folder}: no coder of semantic ids: {error}. Build the feature set again.") from None


def column_names(name: str, levels: int) -> tuple[str, ...]:
    """`<name>_1`, `<name>_12`, `<name>_123`, …: the levels whose codes a column is made of."""
    numbers = [str(level) for level in range(1, levels + 1)]
    return tuple(f"{name}_{''.join(numbers[:level])}" for level in range(1, levels + 1))


def _centres(vectors_SW: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Centres of k-means, float32 [size, width]."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    random = np.random.RandomState(seed)
    seeds = np.sort(random.permutation(len(vectors_SW))[: size * SEEDS_A_CODE])
    # On several threads k-means adds its sums in whatever order they end in, and no build would be like the last.
    with threadpool_limits(1), warnings.catch_warnings():
        # Fewer distinct residuals than codes leave codes unused: the report's perplexity says so.
        warnings.simplefilter("ignore", ConvergenceWarning)
        first = KMeans(size, n_init=STARTS, max_iter=ROUNDS, random_state=seed).fit(vectors_SW[seeds])
        means = KMeans(size, init=first.cluster_centers_, n_init=1, max_iter=ROUNDS).fit(vectors_SW)
    return np.asarray(means.cluster_centers_, np.float32)


def _nearest(vectors_VW: np.ndarray, book_KW: np.ndarray) -> np.ndarray:
    """The nearest centre of each vector, int [V]; of equally near ones the first."""
    half_K = np.square(book_KW).sum(axis=1) / 2
    nearest_V = np.empty(len(vectors_VW), np.int64)
    for start in range(0, len(vectors_VW), BLOCK):
        block_BW = vectors_VW[start : start + BLOCK]
        nearest_V[start : start + BLOCK] = np.argmax(block_BW @ book_KW.T - half_K, axis=1)
    return nearest_V
