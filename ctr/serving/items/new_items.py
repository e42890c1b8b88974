"""Items as a user gives them, from a table or from JSON, turned into inputs of `items.onnx`.

Shapes: M items, W width of raw vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features.encoding.encoder import Encoder
from features.encoding.raw_values import column_of, ids_of, known_keys
from features.encoding.registry import encode_values
from features.errors import ConfigError, NewItemsError
from features.sources.keys import canonical
from features.vectors.new_items import encode_vectors

KEYS = ("item", "columns", "vectors")
EXAMPLE = 'e.g. {"items": [{"item": 7, "columns": {"genre": "drama"}, "vectors": {"text": [0.1, 0.2]}}]}'


@dataclass(frozen=True)
class NewItems:
    """M items that a bundle is to know.

    Args:
        ids: distinct, as keys.
        columns: of each declared item column, encoded: int32 [M], int32 [M, max_len] or float32 [M].
        vectors: of each set that was given, float [M, W] as the encoder made them; a row of NaN is missing.
    """

    ids: pl.Series
    columns: Mapping[str, np.ndarray]
    vectors: Mapping[str, np.ndarray]

    def inputs(self, folder: Path, encoder: Encoder) -> dict[str, np.ndarray]:
        """Inputs of `items.onnx` by name, M rows each.

        Args:
            folder: the bundle.
            encoder: its own.

        Raises:
            NewItemsError: a set that the bundle does not have, or vectors that are no legal ones of it.
        """
        made = encode_vectors(folder, encoder.contract, encoder.schema, self.vectors, len(self.ids))
        known = {**self.columns, **made.columns}
        feed = {f"item_{one.name}": _wide(known[one.name]) for one in encoder.schema.item}
        feed |= {f"vector_{name}": vectors for name, (vectors, _) in made.sets.items()}
        return feed | {f"present_{name}": present for name, (_, present) in made.sets.items()}


def items_of_table(encoder: Encoder, table: pl.DataFrame) -> NewItems:
    """Items, without vectors, of a table that has the id and every declared column of the contract's item table, raw.

    Raises:
        NewItemsError: no item, an id that the log's ids cannot be, or one twice.
        DataError: a column of another type.
    """
    ids = canonical(table[encoder.contract.item_field])
    _check_ids(encoder, ids)
    return NewItems(ids, {name: one.encode(table[name]) for name, one in encoder.item.items()}, {})


def items_of_json(encoder: Encoder, raw: Any, most: int) -> NewItems:
    """Items of a request: `{"items": [{"item", "columns"?, "vectors"?}, …]}`, columns by their declared names.

    A column that is left out is missing, and so is a vector.

    Args:
        encoder: of the bundle.
        raw: as JSON gives it.
        most: items that are allowed.

    Raises:
        ConfigError: an unknown key, a value of the wrong type, an id that cannot be one, a vector that is no list of
            finite numbers or of another width than the others, no item, or too many.
        NewItemsError: an id of another type than the log's, or one twice.
    """
    given = raw.get("items") if isinstance(raw, dict) else None
    if not isinstance(given, list) or not given:
        raise ConfigError(f"items: expected a list of items, {EXAMPLE}.")
    known_keys("body", raw, ["items"])
    if len(given) > most:
        raise ConfigError(f"items: {len(given)} entries, at most {most} are allowed. Send them in several requests.")
    for i, entry in enumerate(given):
        if not isinstance(entry, dict) or "item" not in entry:
            raise ConfigError(f"items[{i}]: expected an object with `item`, {EXAMPLE}.")
        known_keys(f"items[{i}]", entry, KEYS)
    found = ids_of("items", [entry["item"] for entry in given], ".item")
    ids = pl.Series(encoder.contract.item_field, _of_one_type(found))
    _check_ids(encoder, ids)
    return NewItems(ids, _columns(encoder, given, found), _vectors(encoder, given))


def _check_ids(encoder: Encoder, ids: pl.Series) -> None:
    known = encoder.items.values
    if not len(ids):
        raise NewItemsError("items: there is none. Give at least one.")
    if ids.dtype != known.dtype:
        raise NewItemsError(
            f"items: ids are {ids.dtype} (e.g. {ids[0]!r}), those of the log are {encoder.items.kind}, e.g. "
            f"{known[0]!r}. Write them as the log has them."
        )
    negative = ids.filter(ids < 0) if encoder.items.whole_numbers else ids[:0]
    if len(negative):
        raise NewItemsError(f"items: id {negative[0]} is negative; ids are text or whole numbers from 0 on.")
    twice = ids.filter(ids.is_duplicated())
    if len(twice):
        raise NewItemsError(f"items: {twice.n_unique()} ids appear more than once, e.g. {twice[0]!r}. Keep one each.")


def _of_one_type(found: tuple[Any, ...]) -> list[Any]:
    if len(set(map(type, found))) > 1:
        text = next(one for one in found if isinstance(one, str))
        raise ConfigError(f"items: ids are text and whole numbers, e.g. {text!r}. Write them as the log has them.")
    return list(found)


def _columns(encoder: Encoder, given: list[dict[str, Any]], ids: tuple[Any, ...]) -> dict[str, np.ndarray]:
    specs = encoder.contract.items.columns if encoder.contract.items else {}
    columns = [_object(f"items[{i}].columns", entry.get("columns")) for i, entry in enumerate(given)]
    for i, entry in enumerate(columns):
        known_keys(f"items[{i}].columns", entry, list(specs))
    encoded = {}
    for name, one in encoder.item.items():
        if name == encoder.contract.item_field:
            encoded[name] = one.encode_many(ids)
            continue
        values = column_of("items", f"columns.{name}", [entry.get(name) for entry in columns], specs[name])
        encoded[name] = encode_values(f"items[{{}}].columns.{name}", one, values)
    return encoded


def _vectors(encoder: Encoder, given: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    sets: dict[str, dict[int, np.ndarray]] = {}
    for i, entry in enumerate(given):
        vectors = _object(f"items[{i}].vectors", entry.get("vectors"))
        known_keys(f"items[{i}].vectors", vectors, list(encoder.contract.embeddings))
        for name, vector in vectors.items():
            if vector is not None:
                sets.setdefault(name, {})[i] = _vector(f"items[{i}].vectors.{name}", vector)
    found = {}
    for name, by_item in sets.items():
        first, *_ = by_item.values()
        for i, vector in by_item.items():
            if len(vector) != len(first):
                raise ConfigError(
                    f"items[{i}].vectors.{name}: {len(vector)} numbers, others have {len(first)}. Make all with one "
                    "encoder."
                )
        found[name] = np.full((len(given), len(first)), np.nan, np.float32)
        found[name][list(by_item)] = np.stack(list(by_item.values()))
    return found


def _vector(where: str, vector: Any) -> np.ndarray:
    if isinstance(vector, list) and vector and set(map(type, vector)) <= {int, float}:
        try:
            with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinity
                numbers = np.array(vector, np.float64).astype(np.float32)
        except OverflowError:
            numbers = np.array([np.inf])
        if np.isfinite(numbers).all():
            return numbers
    raise ConfigError(f"{where}: expected a list of finite numbers. Leave a missing vector out.")


def _object(where: str, given: Any) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise ConfigError(f"{where}: expected an object, got {type(given).__name__}.")
    return given


def _wide(values: np.ndarray) -> np.ndarray:
    return values if values.dtype == np.float32 else values.astype(np.int64)
