"""The one entry to item vectors: every set of a contract and all that is derived from them, written and described."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from features.contract.contract import Contract
from features.contract.vectors import FillFromNeighbours
from features.encoding.vocabulary import Vocabulary
from features.errors import ConfigError
from features.store.schema import FIRST_VALUE, PADDING, UNKNOWN, Field, VectorSet
from features.store.vector_files import EMBEDDINGS, Dtype, ItemVectors, write_vectors
from features.vectors.coclicks import Clicks, CoClicks
from features.vectors.filling import BY_CLICKS, fill_missing
from features.vectors.fusion import fuse
from features.vectors.projections import FusedTransform, SetTransform
from features.vectors.read import read_vectors
from features.vectors.semantic_ids import SEMANTIC_IDS, SemanticCoder, column_names
from features.vectors.transforms import transform


@dataclass(frozen=True)
class VectorResult:
    """What the vectors of a contract became.

    Args:
        sets: those that a model sees, in the contract's order, fused ones last; exactly these are stored.
        coverage: share of catalogue items with a vector of their own, of every set, stored or not.
        item_fields: the columns of semantic ids, as a model sees them.
        item_columns: their values, int32 [items]: 0 padding, 1 no vector or a prefix that training does not know.
        report: for JSON, sections without entries left out: `filled` (items that borrowed a vector, by set) and
            `semantic_ids` (`SemanticCoder.report`).
    """

    sets: tuple[VectorSet, ...]
    coverage: dict[str, float]
    item_fields: tuple[Field, ...]
    item_columns: dict[str, np.ndarray]
    report: dict[str, Any]


def needs_clicks(contract: Contract) -> bool:
    """Whether anything about the vectors depends on who clicked what."""
    return any(
        isinstance(spec.missing, FillFromNeighbours) and spec.missing.by == BY_CLICKS
        for spec in contract.embeddings.values()
    )


def build_vectors(
    contract: Contract,
    items: Vocabulary,
    trained_I: np.ndarray,
    item_columns: Collection[str],
    clicks: Clicks | None,
    folder: Path,
    prior: Path | None = None,
) -> VectorResult:
    """Read, transform, fill, fuse and store vectors, and derive semantic ids.

    Everything that is learned (means, components, centres, which items' vectors fill which) comes from items of the
    training window: another vector of any other item changes nothing but what that item itself gets.

    Args:
        contract: whose `embeddings` and `vectors` say what to do.
        items: the catalogue; row i of every result is catalogue row i.
        trained_I: bool [items], items of the training window.
        item_columns: names of the item table's columns.
        clicks: positive rows of the training window, where `needs_clicks` says so.
        folder: of the feature set, with the files of learned sets (`features.vectors.covisits`): `embeddings/`,
            `semantic_ids/` and `transforms/` are written below it.
        prior: an earlier feature set of the contract, whose transforms and codes are used instead of learning new ones:
            its items keep their vectors, and a model trained on it goes on. Not those of learned sets, which lie in
            another space after each build.

    Raises:
        ConfigError: `missing.by` names what is not there, or a derived column's name is taken.
        DataError: vectors that break their contract, or too few in training for what is asked of them.
    """
    _check(contract, item_columns)
    coclicks = None
    if needs_clicks(contract):
        if clicks is None:
            raise TypeError("build_vectors: this contract needs the clicks of the training window")
        coclicks = CoClicks(clicks, items.size)
    build = _VectorBuild(contract, items, trained_I, coclicks, folder, prior)
    build.sets()
    build.semantic_ids()
    return build.result()


class _VectorBuild:
    """One call of `build_vectors`: holds the sets that something is derived from, and gathers the result."""

    def __init__(
        self,
        contract: Contract,
        items: Vocabulary,
        trained_I: np.ndarray,
        coclicks: CoClicks | None,
        folder: Path,
        prior: Path | None,
    ) -> None:
        self.contract = contract
        self.items = items
        self.trained_I = trained_I
        self.coclicks = coclicks
        self.folder = folder
        self.prior = prior
        self.kept: dict[str, ItemVectors] = {}
        self.stored: dict[str, VectorSet] = {}
        self.coverage: dict[str, float] = {}
        self.fields: tuple[Field, ...] = ()
        self.columns: dict[str, np.ndarray] = {}
        self.report: dict[str, Any] = {"filled": {}, "semantic_ids": {}}

    def sets(self) -> None:
        """Every declared set and every fused one. Sets that nothing is derived from leave memory once stored."""
        needed = _needed(self.contract)
        for name in (name for name in self.contract.embeddings if name in needed):
            self.kept[name] = self._transformed(name)
        for name, vector_set in self.kept.items():
            self._finish(name, vector_set)
        for name in (name for name in self.contract.embeddings if name not in needed):
            self._finish(name, self._transformed(name))
        for name, spec in self.contract.vectors.fusion.items():
            earlier = self._prior_of(name)
            prior = FusedTransform.load(earlier, name) if earlier else None
            fused, learned = fuse(name, spec, [self.kept[part] for part in spec.sets], self.trained_I, prior)
            learned.save(self.folder, name)
            self._store(fused, spec.dtype)
            if name in needed:
                self.kept[name] = fused

    def semantic_ids(self) -> None:
        """Codes of each declared coder, as item columns."""
        for name, spec in self.contract.vectors.semantic_ids.items():
            vector_set = self.kept[spec.set]
            rows_P = np.flatnonzero(vector_set.present_I)
            if earlier := self._prior_of(spec.set):
                coder = SemanticCoder.load(earlier / SEMANTIC_IDS / name)
            else:
                coder = SemanticCoder.fit(name, spec, vector_set.vectors_IW[vector_set.present_I & self.trained_I])
            coder.save(self.folder / SEMANTIC_IDS / name)
            vectors_PW = vector_set.vectors_IW[rows_P]
            codes_PL = coder.codes(vectors_PW)
            for column, index_P in coder.indices(codes_PL).items():
                index_I = np.full(self.items.size, UNKNOWN, np.int32)
                index_I[:UNKNOWN] = PADDING
                index_I[rows_P] = index_P
                self.columns[column] = index_I
            self.fields += coder.fields
            self.report["semantic_ids"][name] = coder.report(vectors_PW, codes_PL)

    def result(self) -> VectorResult:
        """All that was gathered, in the contract's order."""
        order = (*self.contract.embeddings, *self.contract.vectors.fusion)
        return VectorResult(
            sets=tuple(self.stored[name] for name in order if name in self.stored),
            coverage={name: self.coverage[name] for name in order},
            item_fields=self.fields,
            item_columns=self.columns,
            report={section: entries for section, entries in self.report.items() if entries},
        )

    def _transformed(self, name: str) -> ItemVectors:
        spec = self.contract.embeddings[name]
        vector_set = read_vectors(name, self.contract, self.items, self.folder)
        earlier = self._prior_of(name)
        prior = SetTransform.load(earlier, name) if earlier else None
        origin = f"embeddings.{name}" if spec.path is None else self.contract.resolve(spec.path)
        made, learned = transform(vector_set, spec, self.trained_I, origin, prior)
        learned.save(self.folder, name)
        return made

    def _prior_of(self, name: str) -> Path | None:
        """The earlier feature set, where what it learned of a set of vectors is used again."""
        return None if name in self.contract.made_of_learned else self.prior

    def _finish(self, name: str, vector_set: ItemVectors) -> None:
        spec = self.contract.embeddings[name]
        lenders = fill_missing(vector_set, spec, self.trained_I, self.kept, self.coclicks)
        if lenders is not None:
            lenders.save(self.folder, name)
        self.report["filled"][name] = int(vector_set.filled_I.sum())
        self.coverage[name] = vector_set.coverage
        if _is_seen(self.contract, name):
            self._store(vector_set, spec.dtype)

    def _store(self, vector_set: ItemVectors, dtype: Dtype) -> None:
        write_vectors(self.folder / EMBEDDINGS, vector_set, dtype)
        complete = bool(vector_set.present_I[FIRST_VALUE:].all())
        self.stored[vector_set.name] = VectorSet(name=vector_set.name, width=vector_set.width, complete=complete)
        self.coverage[vector_set.name] = vector_set.coverage


def _needed(contract: Contract) -> set[str]:
    """Sets that another set, or a column of codes, is derived from."""
    needed = {spec.set for spec in contract.vectors.semantic_ids.values()}
    needed |= {part for spec in contract.vectors.fusion.values() for part in spec.sets}
    return needed | {
        spec.missing.by for spec in contract.embeddings.values() if isinstance(spec.missing, FillFromNeighbours)
    }


def _is_seen(contract: Contract, name: str) -> bool:
    """Whether a model sees a set: unless it is a part of fused sets alone, none of which keeps its parts."""
    fusions = [spec for spec in contract.vectors.fusion.values() if name in spec.sets]
    return not fusions or any(spec.keep_parts for spec in fusions)


def _check(contract: Contract, item_columns: Collection[str]) -> None:
    for name, spec in contract.embeddings.items():
        if isinstance(spec.missing, FillFromNeighbours):
            choices = [BY_CLICKS, *(other for other in contract.embeddings if other != name)]
            if spec.missing.by not in choices:
                raise ConfigError(
                    f"embeddings.{name}.missing.by: {spec.missing.by!r} is no other vector set. Choose one of "
                    f"{', '.join(choices)}."
                )
    taken = set(item_columns)
    for name, ids in contract.vectors.semantic_ids.items():
        for column in column_names(name, ids.levels):
            if column in taken:
                raise ConfigError(f"vectors.semantic_ids.{name}: {column!r} is an item column already. Rename one.")
            taken.add(column)
