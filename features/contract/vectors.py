"""How item vectors are declared: the sets, what is done to them, and the columns derived from them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from features.contract.log import Format
from features.contract.settings import Settings


class Pca(Settings):
    """Principal components fitted on items of the training window."""

    method: Literal["pca"]
    dim: PositiveInt


class Truncation(Settings):
    """The first `dim` numbers of a vector (Matryoshka encoders), normalised again."""

    method: Literal["truncate"]
    dim: PositiveInt


Reduction = Annotated[Pca | Truncation, Field(discriminator="method")]


class FillFromNeighbours(Settings):
    """A missing vector becomes the mean of those of the item's `k` nearest items by another signal."""

    by: str = Field(description="`clicks` (items clicked by the same users) or the name of another vector set")
    k: PositiveInt = 10


class Embedding(Settings):
    """One named set of item vectors: read from a table of id + vector or a `.npy` with an id table, or learned."""

    path: str | None = Field(None, description="of the vectors; none where they are learned")
    learn: Literal["history", "tables"] | None = Field(
        None,
        description="anew by each build, from which items stand near each other in users' pasts; history: up to the "
        "end of the training window; tables: in `history.tables`, before that window begins",
    )
    width: PositiveInt = Field(32, description="learn: numbers of a vector")
    shift: float = Field(1.0, ge=1, description="learn: how many times as often as by chance items must meet to count")
    format: Format = Format()
    id: str = "item_id"
    vector: str = Field("vector", description="column of vectors; ignored for a .npy file")
    ids: str | None = Field(None, description="for a .npy file: table whose rows name its items in order")
    normalize: Literal["none", "l2", "centre"] = "l2"
    reduce: Reduction | None = None
    dtype: Literal["float32", "float16", "int8"] = Field("float32", description="on disk; int8 with a scale a vector")
    missing: Literal["zero", "mean"] | FillFromNeighbours = Field(
        "zero", description="a presence flag is kept in any case"
    )
    version: str = Field("unversioned", description="of the encoder that made the vectors; recorded")

    @model_validator(mode="after")
    def _vectors_come_from_somewhere(self) -> Embedding:
        if self.learn is None and self.path is None:
            raise ValueError("path: name the file of the vectors, or `learn: history` in its place")
        fields = type(self).model_fields
        foreign = ("width", "shift") if self.learn is None else ("path", "ids", "format")
        for name in foreign:
            if getattr(self, name) != fields[name].default:
                raise ValueError(
                    f"{name}: says how vectors are learned, but these are read from a file; remove it, or replace path "
                    "by `learn: history`"
                    if self.learn is None
                    else f"{name}: says where vectors are read, but these are learned; remove it, or `learn`"
                )
        return self


class Fusion(Settings):
    """Several sets as one: their vectors side by side, then PCA."""

    sets: tuple[str, ...] = Field(min_length=2)
    dim: PositiveInt = Field(description="width of the fused set")
    dtype: Literal["float32", "float16", "int8"] = "float32"
    keep_parts: bool = Field(False, description="whether the model sees the parts beside the fused set")


class SemanticIds(Settings):
    """Residual k-means codes of a vector set, as categorical item columns `<name>_1`, `<name>_12`, …: code prefixes."""

    set: str = Field(description="an embedding set, or a fused one")
    levels: PositiveInt = 3
    size: PositiveInt = Field(256, description="codes a level")
    seed: int = 1


class Vectors(Settings):
    """All that a contract says of vectors beyond the sets themselves."""

    fusion: dict[str, Fusion] = {}
    semantic_ids: dict[str, SemanticIds] = {}

    @field_validator("fusion", "semantic_ids")
    @classmethod
    def _names_are_file_names(cls, value: dict[str, object]) -> dict[str, object]:
        for name in value:
            if not name.isidentifier():
                raise ValueError(f"{name!r}: use letters, digits and underscores")
        return value
