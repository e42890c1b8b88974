"""The typed data contract (`conf/data/*.yaml`): what the raw tables are and how they become features."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from features.errors import ConfigError
from features.settings import Settings, load_yaml, merge, validate

# Names that the feature set itself uses for row and event columns.
RESERVED_COLUMNS = frozenset(
    {"user", "item", "label", "time", "weight", "request", "history_end", "history_len", "present"}
)


class Categorical(Settings):
    """One value out of a vocabulary. Values rarer than `min_count` in training share index 1."""

    type: Literal["categorical"]
    min_count: PositiveInt = 1
    max_size: PositiveInt | None = None
    default: str | int | bool | None = Field(None, description="context only: value where a request gives none")


class Tags(Settings):
    """A list of values out of one vocabulary; the first `max_len` known ones are kept and mean-pooled."""

    type: Literal["tags"]
    max_len: PositiveInt = 5
    min_count: PositiveInt = 1
    max_size: PositiveInt | None = None


class Numeric(Settings):
    """A number, standardised with the training window's mean and deviation; missing stays NaN on disk."""

    type: Literal["numeric"]
    transform: Literal["none", "log1p"] = "none"
    default: float | None = Field(None, description="context only: value where a request gives none")


Column = Annotated[Categorical | Tags | Numeric, Field(discriminator="type")]
ScalarColumn = Annotated[Categorical | Numeric, Field(discriminator="type")]


class Interactions(Settings):
    """The behaviour log: one row an impression (or rating, or click)."""

    path: str
    user: str
    item: str
    time: str
    label: str = Field(description="a 0/1 column or a polars SQL expression such as `rating >= 4`")
    time_unit: Literal["s", "ms", "us"] = Field("s", description="unit of an integer time column")
    weight: str | None = None
    request: str | None = Field(None, description="impression or request id, for grouped metrics")
    context: dict[str, ScalarColumn] = {}
    user_min_count: PositiveInt = Field(2, description="training rows below which a user id is unknown")
    item_min_count: PositiveInt = Field(2, description="training rows below which an item id is unknown")


class Table(Settings):
    """Optional table of users or items: an id and typed columns."""

    path: str
    id: str
    columns: dict[str, Column] = {}


class Pca(Settings):
    """Reduce a vector set by principal components fitted on items of the training window."""

    method: Literal["pca"]
    dim: PositiveInt


class Embedding(Settings):
    """One named set of precomputed item vectors: a table of id + vector, or a `.npy` with an id table."""

    path: str
    id: str = "item_id"
    vector: str = Field("vector", description="column of vectors; ignored for a .npy file")
    ids: str | None = Field(None, description="for a .npy file: table whose rows name its items in order")
    normalize: Literal["none", "l2", "standardize"] = "l2"
    reduce: Pca | None = None
    version: str = Field("unversioned", description="of the encoder that made the vectors; recorded")


class History(Settings):
    """What a row sees of the past: the newest `max_len` events strictly before its own time."""

    max_len: PositiveInt = 50
    events: str = Field("all", description="`all`, or a polars SQL expression such as `label == 1`")
    columns: dict[str, Categorical] = Field({}, description="event columns carried along, e.g. label")


class Split(Settings):
    """How rows become train, valid and test. By time: the last shares of the log, ties on one side."""

    by: Literal["time", "user"] = "time"
    valid: float = Field(0.1, gt=0, lt=1)
    test: float = Field(0.1, gt=0, lt=1)

    @model_validator(mode="after")
    def _leave_something_to_train_on(self) -> Split:
        if self.valid + self.test >= 1:
            raise ValueError(f"valid + test must stay below 1, got {self.valid} + {self.test}")
        return self


class Truth(Settings):
    """Known click probabilities of a simulated log, read by evaluation alone, never by the pipeline."""

    path: str
    probability: str = "probability"


class Contract(Settings):
    """Everything the pipeline knows about the raw data. See `conf/data/` for worked examples."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_-]*$")
    root: str = Field(".", description="folder that relative paths start from; `--root` overrides it")
    interactions: Interactions
    items: Table | None = None
    users: Table | None = None
    embeddings: dict[str, Embedding] = {}
    history: History = History()
    split: Split = Split()
    truth: Truth | None = None

    @field_validator("embeddings")
    @classmethod
    def _names_are_file_names(cls, value: dict[str, Embedding]) -> dict[str, Embedding]:
        for name in value:
            if not name.isidentifier():
                raise ValueError(f"embedding set {name!r}: use letters, digits and underscores")
        return value

    @model_validator(mode="after")
    def _column_names_are_free(self) -> Contract:
        sections = {
            "interactions.context": set(self.interactions.context),
            "history.columns": set(self.history.columns),
            "items.columns": set(self.items.columns) if self.items else set(),
            "users.columns": set(self.users.columns) if self.users else set(),
        }
        for section, names in sections.items():
            # An event column may be the label itself; rows keep theirs apart.
            taken = (RESERVED_COLUMNS - {"label"}) if section == "history.columns" else RESERVED_COLUMNS
            clash = sorted(names & taken)
            if clash:
                raise ValueError(f"{section}: {clash[0]!r} is a name the feature set uses itself; rename the column")
        item_id = self.items.id if self.items else self.interactions.item
        user_id = self.users.id if self.users else self.interactions.user
        if item_id in sections["items.columns"] or user_id in sections["users.columns"]:
            raise ValueError("the id column is embedded by itself; do not list it under columns")
        return self

    @property
    def item_field(self) -> str:
        """Name of the item id field, as the item table (or else the log) calls it."""
        return self.items.id if self.items else self.interactions.item

    @property
    def user_field(self) -> str:
        """Name of the user id field, as the user table (or else the log) calls it."""
        return self.users.id if self.users else self.interactions.user

    def fingerprint(self) -> str:
        """sha256 of the canonical JSON. `root` and `truth` are left out: they say where, not what."""
        content = self.model_dump(mode="json", exclude={"root", "truth"})
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def resolve(self, path: str) -> str:
        """`path` as it stands if absolute or a URL, else below `root`."""
        if "://" in path or Path(path).is_absolute():
            return path
        return str(Path(self.root) / path)


def load_contract(path: Path, overrides: dict[str, Any] | None = None, root: str | None = None) -> Contract:
    """Read and validate a contract. `overrides` come from `--set data.…`, `root` from `--root`.

    Raises:
        ConfigError: missing file, unknown key (nearest valid one named), impossible value.
    """
    content = merge(load_yaml(path), overrides or {})
    if root is not None:
        content["root"] = root
    if not content:
        raise ConfigError(f"{path}: the contract is empty. Start from conf/data/movielens.yaml.")
    return validate(Contract, content, str(path))
