"""The typed data contract (`conf/data/*.yaml`): what the raw tables are and how they become features."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from features.contract.columns import Column, ColumnSpec, Residual, is_pattern
from features.contract.counter_keys import SECTIONS, Side, by_half_life, sides
from features.contract.labels import label_features
from features.contract.log import Checks, Counter, Format, History, Interactions, Split
from features.contract.relative import RelativeColumn, refused_relative, relative_columns
from features.contract.settings import Settings, load_yaml, merge, validate
from features.contract.vectors import Embedding, Vectors
from features.errors import ConfigError

NAME = r"^[a-z][a-z0-9_-]*$"  # of a contract: it names folders
# Names that the feature set itself uses for row and event columns.
RESERVED_COLUMNS = frozenset(
    {"user", "item", "label", "time", "weight", "request", "history_end", "history_len", "present"}
)
# Row columns of further targets: label.<name>.
LABEL_PREFIX = "label."
RESERVED_PREFIXES = ("_", LABEL_PREFIX)
# What to do about a name that is taken, where no column has it.
WAY_OUT = {
    "interactions.labels": "give the target another name, here and in `model.tasks`",
    "counters": "give the counter another name",
}


class Table(Settings):
    """Optional table of users or items: an id and typed columns.

    One row an id; with `valid_from` any number of them, each what was known of the id from that instant on.
    """

    path: str
    format: Format = Format()
    id: str
    columns: dict[str, Column] = {}
    valid_from: str | None = Field(None, description="time column: when a row begins to hold, for columns that change")
    time_unit: Literal["s", "ms", "us"] = Field("s", description="unit of a whole-number `valid_from`")
    time_format: str | None = Field(None, description="of a text `valid_from`, e.g. `%Y-%m-%d %H:%M:%S`")

    @model_validator(mode="after")
    def _something_can_change(self) -> Table:
        if self.valid_from is not None and not self.columns:
            raise ValueError("valid_from: the table declares no columns that could change; remove it")
        return self


class Truth(Settings):
    """Known click probabilities of a simulated log, read by evaluation alone, never by the pipeline."""

    path: str
    probability: str = "probability"


class Contract(Settings):
    """Everything the pipeline knows about the raw data. See `conf/data/` for worked examples."""

    name: str = Field(pattern=NAME)
    root: str = Field(".", description="folder that relative paths start from; `--root` overrides it")
    interactions: Interactions
    items: Table | None = None
    users: Table | None = None
    embeddings: dict[str, Embedding] = {}
    vectors: Vectors = Vectors()
    history: History = History()
    counters: dict[str, Counter] = Field({}, description="by name; each becomes a column of the row")
    split: Split = Split()
    checks: Checks = Checks()
    truth: Truth | None = None

    @field_validator("counters", mode="before")
    @classmethod
    def _one_counter_a_half_life(cls, value: Any) -> Any:
        return by_half_life(value)

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
            "counters": set(self.counters),
            "interactions.labels": set(self.interactions.labels),
        }
        log = self.interactions
        if patterns := [name for name in (log.user, log.item, log.time, log.request) if name and is_pattern(name)]:
            raise ValueError(
                f"interactions: {patterns[0]!r} would be read as a pattern of column names; rename the column in the "
                "export"
            )
        for section, names in sections.items():
            # An event column may be the label itself; rows keep theirs apart.
            taken = (RESERVED_COLUMNS - {"label"}) if section == "history.columns" else RESERVED_COLUMNS
            clash = sorted(name for name in names if name in taken or name.startswith(RESERVED_PREFIXES))
            way_out = WAY_OUT.get(section, "rename the column: what the data calls it can be its `source`")
            if clash:
                raise ValueError(
                    f"{section}: {clash[0]!r} is a name the feature set uses itself (so is any that begins with `_` or "
                    f"`label.`); {way_out}"
                )
            if patterns := sorted(filter(is_pattern, names)):
                raise ValueError(f"{section}: {patterns[0]!r} would be read as a pattern of column names; {way_out}")
        shared = sections["interactions.context"] & sections["counters"]
        if shared:
            raise ValueError(f"counters: {min(shared)!r} is a context column too; rename one of them")
        item_id = self.items.id if self.items else self.interactions.item
        user_id = self.users.id if self.users else self.interactions.user
        if item_id in sections["items.columns"] or user_id in sections["users.columns"]:
            raise ValueError("the id column is embedded by itself; do not list it under columns")
        return self

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Contract:
        if self.interactions.time is None and (self.history.given is None or self.split.by != "files"):
            raise ValueError("interactions.time: may be null only with `history.given` and `split.by: files`")
        if self.interactions.served is not None and self.split.by == "files":
            raise ValueError("split.by: a served log is not split by files; choose time, days or user")
        if self.history.given is not None and self.learned_sets:
            raise ValueError(
                f"embeddings.{min(self.learned_sets)}.learn: needs the log's own events in time, which a given history "
                "does not show. Remove the set, or `history.given`"
            )
        for name, learned in self.learned_sets.items():
            if learned.learn == "tables" and not self.history.tables:
                raise ValueError(
                    f"embeddings.{name}.learn: `tables` reads the events of `history.tables`, and none is named. Name "
                    "one, or say `learn: history`"
                )
        if self.history.given is not None and self.counters:
            raise ValueError("counters: need the log's own events in time, which a given history does not show")
        for section, table in (("items", self.items), ("users", self.users)):
            if table and table.valid_from is not None and self.interactions.time is None:
                raise ValueError(f"{section}.valid_from: a log without interactions.time has no instant to read it at")
        for name, column in self.history.columns.items():
            if isinstance(column, Residual):
                counter = self.counters.get(column.counter)
                if counter is None or (counter.of, counter.value, counter.label) != ("item", "rate", None):
                    raise ValueError(
                        f"history.columns.{name}: counter {column.counter!r} is no item rate declared under `counters`"
                    )
        if self.interactions.label is None and not self.interactions.tells_clicks:
            rates = sorted(
                name for name, counter in self.counters.items() if counter.value == "rate" and counter.label is None
            )
            if rates:
                raise ValueError(
                    f"counters.{rates[0]}: every row of a log without `interactions.label` is a positive, so that each "
                    "rate is 1. Count instead (`value: count`), or declare the label"
                )
        sets = {*self.embeddings, *self.vectors.fusion}
        if twice := set(self.embeddings) & set(self.vectors.fusion):
            raise ValueError(f"vectors.fusion: {min(twice)!r} is the name of an embedding set; choose another")
        named = {f"vectors.fusion.{name}": set(fusion.sets) for name, fusion in self.vectors.fusion.items()}
        allowed = {where: set(self.embeddings) for where in named}
        for name, spec in self.vectors.semantic_ids.items():
            named[f"vectors.semantic_ids.{name}"] = {spec.set}
            allowed[f"vectors.semantic_ids.{name}"] = sets
        for where, names in named.items():
            if missing := names - allowed[where]:
                raise ValueError(f"{where}: no vector set {min(missing)!r}; there are {sorted(allowed[where])}")
        return self

    @model_validator(mode="after")
    def _counters_have_keys(self) -> Contract:
        assert self.counter_sides
        return self

    @model_validator(mode="after")
    def _no_feature_reads_a_label(self) -> Contract:
        sections: dict[str, dict[str, ColumnSpec]] = {"interactions.context": dict(self.interactions.context)}
        for name, table in (("items", self.items), ("users", self.users)):
            if table is not None and table.path == self.interactions.path:
                sections[f"{name}.columns"] = dict(table.columns)
        if wrong := list(label_features(self.interactions, sections)):
            raise ValueError("; ".join(wrong))
        return self

    @model_validator(mode="after")
    def _relative_columns_have_a_list(self) -> Contract:
        tables = {"items": self.items, "users": self.users}
        columns = {name: {} if table is None else table.columns for name, table in tables.items()}
        of_requests = self.context_counters
        if wrong := list(
            refused_relative(self.interactions, self.history, self.counters, columns, of_requests, RESERVED_COLUMNS)
        ):
            raise ValueError("; ".join(wrong))
        return self

    @property
    def item_field(self) -> str:
        """Name of the item id field, as the item table (or else the log) calls it."""
        return self.items.id if self.items else self.interactions.item

    @property
    def user_field(self) -> str:
        """Name of the user id field, as the user table (or else the log) calls it."""
        return self.users.id if self.users else self.interactions.user

    @property
    def has_versions(self) -> bool:
        """Whether a row reads items or users as of an instant: a table has `valid_from`."""
        return any(table is not None and table.valid_from is not None for table in (self.items, self.users))

    @cached_property
    def counter_sides(self) -> dict[str, Side]:
        """The side that each part of a counter's key stands on, by its name: `item`, `user` or a column."""
        items, users = ({} if table is None else table.columns for table in (self.items, self.users))
        tables = {SECTIONS["item"]: self.items, SECTIONS["user"]: self.users}
        changing = {name: table is not None and table.valid_from is not None for name, table in tables.items()}
        return sides(self.counters, self.interactions, items, users, changing)

    @cached_property
    def candidate_counters(self) -> dict[str, Counter]:
        """Counters that tell candidates apart: their key has something of the item."""
        of_items = {key for key, side in self.counter_sides.items() if side == "item"}
        return {name: counter for name, counter in self.counters.items() if of_items.intersection(counter.keys)}

    @cached_property
    def context_counters(self) -> dict[str, Counter]:
        """The other counters: one value for all candidates of a request."""
        return {name: counter for name, counter in self.counters.items() if name not in self.candidate_counters}

    @cached_property
    def live_counters(self) -> dict[str, Counter]:
        """Counters of what every event tells: user, item, columns of their tables, time and label."""
        of_requests = {key for key, side in self.counter_sides.items() if side == "context"}
        return {
            name: counter
            for name, counter in self.counters.items()
            if not (counter.number or counter.label or of_requests.intersection(counter.keys))
        }

    @cached_property
    def context_columns(self) -> dict[str, ColumnSpec]:
        """What a request may say of itself: the log's context columns, and counters without the item."""
        counters = {name: counter.column for name, counter in self.context_counters.items()}
        return {**self.interactions.context, **counters}

    @cached_property
    def candidate_columns(self) -> dict[str, ColumnSpec]:
        """What a request may say of each candidate: counters of items."""
        return {name: counter.column for name, counter in self.candidate_counters.items()}

    @cached_property
    def relative_columns(self) -> tuple[RelativeColumn, ...]:
        """What is computed of each candidate among the others of its request."""
        return relative_columns(self.counters, {} if self.items is None else self.items.columns)

    def fingerprint(self) -> str:
        """sha256 of the canonical JSON. `root` and `truth` are left out: they say where, not what."""
        content = self.model_dump(mode="json", exclude={"root", "truth"})
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def learned_sets(self) -> dict[str, Embedding]:
        """The embedding sets that a build learns, by name."""
        return {name: spec for name, spec in self.embeddings.items() if spec.learn is not None}

    @property
    def made_of_learned(self) -> frozenset[str]:
        """Sets whose vectors lie in another space after each build: those that are learned, and fused ones of them."""
        learned = self.learned_sets.keys()
        return frozenset({*learned, *(name for name, spec in self.vectors.fusion.items() if learned & set(spec.sets))})

    def resolve(self, path: str) -> str:
        """`path` as it stands if absolute or a URL, else below `root`."""
        if "://" in path or Path(path).is_absolute():
            return path
        # A path would make one of the two slashes of a URL.
        return f"{self.root.rstrip('/')}/{path}" if "://" in self.root else str(Path(self.root) / path)


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
