"""The one raw -> index transform: the feature build and the ranker both use it, so they cannot disagree."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl

from features.contract.columns import Gap, Residual
from features.contract.contract import Contract
from features.contract.settings import validate
from features.encoding.base import ColumnEncoder, Columns
from features.encoding.category import check_kind, check_kinds
from features.encoding.raw_values import WholeIds
from features.encoding.registry import ENCODERS, encode_value, encode_values
from features.encoding.request import Request
from features.encoding.snapshot import Snapshot
from features.encoding.vocabulary import Vocabulary
from features.errors import DataError
from features.store.feature_set import read_arrow, write_arrow
from features.store.schema import UNKNOWN, Field, Schema
from features.store.versions import ROW, VALID_FROM

ENCODER = "encoder.json"
VOCABULARIES = "vocabularies"
USERS = "users.arrow"
LOG_COLUMNS = "log_columns.arrow"
ITEM_NUMBERS = "item_numbers.arrow"
SECTIONS = ("item", "user", "context", "candidate", "relative", "event")  # of columns, as an encoder's file has them


@dataclass(frozen=True)
class EncodedHistory:
    """A user's past as the graph takes it, H events, oldest first; H is at most `history_max_len`.

    Args:
        items: raw ids.
        rows: item rows, int64 [H].
        events: event columns, int64 or float32 [H].
        missing: how many values lack of each column that was asked for.
        newest: time of the newest event, µs since 1970; None where events have no times, or there are none.
    """

    items: tuple[Any, ...]
    rows: np.ndarray
    events: dict[str, np.ndarray]
    missing: dict[str, int]
    newest: int | None = None


@dataclass(frozen=True)
class EncodedRequest:
    """A request as the graph takes it.

    Args:
        user: one entry a user field: int64 [1], int64 [1, max_len] for tags, float32 [1] for numbers.
        context: likewise for context fields.
        history_item: item rows, int64 [H], oldest first; H is at most `history_max_len`.
        history_events: event columns, int64 or float32 [H].
        candidate_item: item rows, int64 [N].
        candidate: numbers of each candidate, float32 [N].
        unknown_history: how many history items are unknown.
        unknown_candidates: raw ids of the unknown candidates.
        missing: how many values the request lacks of each column that the model was trained on.
        history: raw ids of the history items.
        newest: time of the history's newest event, µs since 1970; None where its events have no times, or it is empty.
        time: of the request, µs since 1970: its own, else when it was encoded; None where nothing needed one.
        unknown_user: whether it names a user whom the catalogue does not have.
    """

    user: dict[str, np.ndarray]
    context: dict[str, np.ndarray]
    history_item: np.ndarray
    history_events: dict[str, np.ndarray]
    candidate_item: np.ndarray
    candidate: dict[str, np.ndarray]
    unknown_history: int
    unknown_candidates: tuple[Any, ...]
    missing: dict[str, int] = field(default_factory=dict)
    history: tuple[Any, ...] = ()
    newest: int | None = None
    time: int | None = None
    unknown_user: bool = False


@dataclass(frozen=True, eq=False)
class Encoder:
    """Everything learned from the training window that turns raw values into indices and numbers.

    It is finished when it is made: no column can be added or replaced. What learns more makes another encoder.

    Args:
        contract: what the columns are.
        schema: what a model sees of them.
        items: catalogue of item ids: its index is the row of the item table.
        users: catalogue of user ids: its index is the row of the user table.
        item, user, context, event: column encoders by name. `item` and `user` begin with the id field, whose
            vocabulary holds only ids seen often enough in training.
        user_table: encoded user columns; row i is user row i.
        candidate: encoders of counters of the item; those of the others are among `context`.
        relative: encoders of request-relative columns.
        item_numbers: encoded item columns that these compare, float32 [items] by name.
        snapshot: the counters at the end of the log.
        log_columns: of the raw log, with their types, so that raw events are read as it was; empty where unknown.
    """

    contract: Contract
    schema: Schema
    items: Vocabulary
    users: Vocabulary
    item: Columns
    user: Columns
    context: Columns
    event: Columns
    user_table: Mapping[str, np.ndarray]
    candidate: Columns = field(default_factory=dict)
    relative: Columns = field(default_factory=dict)
    item_numbers: Mapping[str, np.ndarray] = field(default_factory=dict)
    snapshot: Snapshot = field(default_factory=Snapshot)
    log_columns: pl.Schema = field(default_factory=pl.Schema)

    def __post_init__(self) -> None:
        for name in (*SECTIONS, "user_table", "item_numbers"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    def encode_request(
        self, request: Request, history: EncodedHistory | None = None, snapshot: Snapshot | None = None
    ) -> EncodedRequest:
        """Raw ids and values to rows, indices and numbers; the history is cut to its newest `history_max_len`.

        Request-relative columns are added by `features.requests`.

        Args:
            request: with ready columns of the history, or with none.
            history: the past of a request that has it as the log does.
            snapshot: of counters, fresher than the encoder's.

        Raises:
            ConfigError: ids or values that are text where the log has whole numbers, or the other way round.
        """
        snapshot = snapshot or self.snapshot
        history = history or self._ready_history(request)
        candidate_item = self.item_rows("candidates", request.candidates)
        unknown = np.flatnonzero(candidate_item == UNKNOWN)
        user_row = self._user_row(request)
        user = self._user(request, user_row)
        context = {name: self._context(name, request) for name in self.contract.interactions.context}
        parts = self.other_parts(np.array([user_row]), user, context)
        context |= {
            name: self._counted_context(name, request, snapshot, parts)
            for name in self.contract.context_counters
            if name in self.context
        }
        return EncodedRequest(
            user=user,
            context=context,
            history_item=history.rows,
            history_events=history.events,
            candidate_item=candidate_item,
            candidate={name: self._counted(name, request, snapshot, candidate_item, parts) for name in self.candidate},
            unknown_history=int(np.count_nonzero(history.rows == UNKNOWN)),
            unknown_candidates=tuple(request.candidates[i] for i in unknown.tolist()),
            missing=history.missing | self._missing_context(request),
            history=history.items,
            newest=history.newest,
            time=request.time,
            unknown_user=request.user is not None and user_row == UNKNOWN,
        )

    def item_rows(self, where: str, ids: tuple[Any, ...]) -> np.ndarray:
        """Rows of raw item ids, int64 [N]. Raises ConfigError, naming `where`, for ids of another kind."""
        if isinstance(ids, WholeIds) and self.items.whole_numbers:
            return self.items.indices_of_numbers(ids.numbers)
        check_kinds(where, ids, self.items, "ids of this log")
        return self.items.indices(ids)

    @property
    def blank_columns(self) -> tuple[str, ...]:
        """Columns of numbers that had no value to learn a scale from."""
        unscaled = {name for name, spec in self.contract.history.columns.items() if isinstance(spec, Gap | Residual)}
        found = ((section, name, one) for section in SECTIONS for name, one in getattr(self, section).items())
        return tuple(
            name for section, name, one in found if one.is_blank and not (section == "event" and name in unscaled)
        )

    def save(self, folder: Path) -> None:
        """Write `encoder.json`, `vocabularies/*.arrow`, counters, and an empty table with the log's columns."""
        (folder / VOCABULARIES).mkdir(parents=True, exist_ok=True)
        self.items.save(folder / VOCABULARIES / "items.arrow")
        self.users.save(folder / VOCABULARIES / "users.arrow")
        self.snapshot.save(folder)
        pl.DataFrame(schema=self.log_columns).write_ipc(folder / LOG_COLUMNS)
        if self.item_numbers:
            write_arrow(folder / ITEM_NUMBERS, dict(self.item_numbers))
        sections = {}
        for section in SECTIONS:
            columns: Columns = getattr(self, section)
            sections[section] = [_to_json(folder, section, i, *pair) for i, pair in enumerate(columns.items())]
        record = {
            "contract": self.contract.model_dump(mode="json"),
            "schema": self.schema.model_dump(mode="json"),
            "columns": sections,
        }
        (folder / ENCODER).write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Encoder:
        """Read what `save` wrote, with `users.arrow` beside it.

        Raises:
            DataError: no encoder there.
        """
        try:
            record = json.loads((folder / ENCODER).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError) as error:
            raise DataError(f"{folder / ENCODER}: cannot be read: {error}. Build or export again.") from None
        columns = {
            section: {entry["name"]: _from_json(folder, entry) for entry in entries}
            for section, entries in record["columns"].items()
        }
        log = folder / LOG_COLUMNS  # a bundle of an earlier version has none
        return cls(
            contract=validate(Contract, record["contract"], str(folder / ENCODER)),
            schema=validate(Schema, record["schema"], str(folder / ENCODER)),
            items=Vocabulary.load(folder / VOCABULARIES / "items.arrow"),
            users=Vocabulary.load(folder / VOCABULARIES / "users.arrow"),
            user_table=read_arrow(folder / USERS),
            item_numbers=read_arrow(folder / ITEM_NUMBERS) if (folder / ITEM_NUMBERS).is_file() else {},
            snapshot=Snapshot.load(folder),
            log_columns=pl.read_ipc(log).schema if log.is_file() else pl.Schema(),
            **columns,
        )

    def _ready_history(self, request: Request) -> EncodedHistory:
        """The past of a request that brings the columns of its events."""
        assert request.past is None, "events with times become a history in features.point_in_time"
        newest = slice(-self.schema.history_max_len, None)
        items = request.history[newest]
        cut = len(request.history) - len(items)
        given = {name: request.history_events.get(name, (None,) * len(items))[newest] for name in self.event}
        missing = {}
        for name, values in given.items():
            # The first event of a user has no event before it, so one pause may be missing.
            is_gap = isinstance(self.contract.history.columns[name], Gap)
            missing[name] = values.count(None) - (is_gap and cut == 0 and bool(values) and values[0] is None)
        return EncodedHistory(
            items=items,
            rows=self.item_rows("history", items),
            events={
                name: encode_values(f"history[{{}}].{name}", encoder, given[name], cut)
                for name, encoder in self.event.items()
            },
            missing={name: lacking for name, lacking in missing.items() if lacking},
        )

    def other_parts(
        self, user_R: np.ndarray, user: Mapping[str, np.ndarray], context: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """The parts of counters' keys that are not of the item, as `Snapshot.values` takes them.

        Args:
            user_R: user rows.
            user, context: encoded columns.
        """
        of = {"user": user, "context": context}
        sides = self.contract.counter_sides.items()
        return {"user": user_R} | {key: of[side][key] for key, side in sides if side != "item" and key != "user"}

    def _user_row(self, request: Request) -> int:
        if request.user is None:
            return UNKNOWN
        check_kind("user", request.user, self.users, "ids of this log")
        return self.users.index(request.user)

    def _user(self, request: Request, row: int) -> dict[str, np.ndarray]:
        known = {name: _wide(self.user_table[name][row : row + 1]) for name in self.user}
        given = request.user_columns.items()
        return known | {name: encode_value(f"user_columns.{name}", self.user[name], value) for name, value in given}

    def _context(self, name: str, request: Request) -> np.ndarray:
        spec = self.contract.interactions.context[name]
        return encode_value(f"context.{name}", self.context[name], request.context.get(name, spec.default))

    def _counted_context(
        self, name: str, request: Request, snapshot: Snapshot, parts: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """A counter without the item: as the request says, else as it stood at the end of the log."""
        value = request.context.get(name)
        if value is None:
            counter = self.contract.counters[name]
            (value,) = snapshot.values(name, counter, np.zeros(1, np.int64), parts, request.time)
        return encode_value(f"context.{name}", self.context[name], value)

    def _counted(
        self, name: str, request: Request, snapshot: Snapshot, item_N: np.ndarray, parts: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """A counter of the candidates: as the request says, else as it stood at the end of the log."""
        encoder, given = self.candidate[name], request.candidate_columns.get(name)
        given_N = np.array(() if given is None else given, np.float64)
        if len(given_N) and not np.isnan(given_N).any():
            return encoder.encode_many(given_N)
        known_N = snapshot.values(name, self.contract.counters[name], item_N, parts, request.time)
        if given is None:
            return encoder.encode_many(known_N)
        # NaN is a counter without a value, which None is not.
        return encoder.encode_many(np.where([one is None for one in given], known_N, given_N))

    def _missing_context(self, request: Request) -> dict[str, int]:
        """1 for each context column that the request does not give; counters are never missing."""
        specs = self.contract.interactions.context
        return {name: 1 for name in specs if request.context.get(name, specs[name].default) is None}


def fields(columns: Columns) -> tuple[Field, ...]:
    """The fields that a model sees, in order."""
    return tuple(encoder.field(name) for name, encoder in columns.items())


def encode_table(table: pl.DataFrame, columns: Columns) -> dict[str, np.ndarray]:
    """Encode a table whose rows are catalogue rows from 2 on; rows 0 (padding) and 1 (unknown) are put in front."""
    return {
        name: np.concatenate([encoder.special_row(0), encoder.special_row(UNKNOWN), encoder.encode(table[name])])
        for name, encoder in columns.items()
    }


def encode_versions(versions: pl.DataFrame, id_name: str, ids: Vocabulary, columns: Columns) -> dict[str, np.ndarray]:
    """Encode the versions of a table's ids, in the order of catalogue row and time; the id itself does not change.

    Args:
        versions: the id, `VALID_FROM` and raw columns, by id and time.
        id_name: the id column.
        ids: the catalogue.
        columns: encoders of the table.
    """
    row_V = ids.encode(versions[id_name]).astype(np.int32)
    order = np.argsort(row_V, kind="stable")  # rows of a catalogue that grew are not in the order of ids
    encoded = {name: encoder.encode(versions[name]) for name, encoder in columns.items() if name != id_name}
    found = {ROW: row_V, VALID_FROM: versions[VALID_FROM].to_numpy(), **encoded}
    return {name: values[order] for name, values in found.items()}


def _wide(values: np.ndarray) -> np.ndarray:
    return values if values.dtype == np.float32 else values.astype(np.int64)


def _to_json(folder: Path, section: str, number: int, name: str, encoder: ColumnEncoder) -> dict[str, Any]:
    def keep(vocabulary: Vocabulary) -> str:
        # Numbered, since a column's name may hold what a file's must not.
        file = f"{section}-{number:02d}.arrow"
        vocabulary.save(folder / VOCABULARIES / file)
        return file

    return {"name": name, "kind": encoder.kind, **encoder.to_json(keep)}


def _from_json(folder: Path, entry: dict[str, Any]) -> ColumnEncoder:
    kind = ENCODERS[entry["kind"]]
    return kind.from_json(entry, lambda file: Vocabulary.load(folder / VOCABULARIES / file))
