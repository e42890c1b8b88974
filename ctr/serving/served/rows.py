"""Answers as rows of the served log: each kept as arrays, some put together as one Arrow table.

Shapes: H history items, N candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from ctr.serving.ranker import graph_inputs
from features.encoding.encoder import EncodedRequest
from features.encoding.raw_values import WholeIds
from features.encoding.request import Request
from features.store.arrow import to_arrow
from features.store.served_schema import INPUT, SERVED, history_hash


@dataclass(frozen=True)
class ServedRow:
    """One answer as it is logged.

    Args:
        one: values of the columns that are no lists, by name.
        history_items, candidates: ids as text, Arrow arrays.
        inputs: of the model, by name; those of two dimensions are laid flat.
        scores: float32 [N].
        position_N: place in the answer from 0, -1 for what was left out, int32 [N].
    """

    one: Mapping[str, Any]
    history_items: Any
    candidates: Any
    inputs: Mapping[str, np.ndarray]
    scores: np.ndarray
    position_N: np.ndarray


def served_row(
    known: Mapping[str, Any], request: Request, encoded: EncodedRequest, order: np.ndarray, scores: np.ndarray
) -> ServedRow:
    """An answer as a row.

    Args:
        known: `request`, `version` and `variant` of the answer; `logged`, the server's clock, µs since 1970; `user`,
            its id as text or a hash of it, None for an anonymous one; `user_hashed`.
        request: as it was parsed.
        encoded: as it was scored.
        order: places of the ranked candidates, best first.
        scores: of all candidates, float32 [N].
    """
    inputs = graph_inputs(encoded)
    position_N = np.full(len(request.candidates), -1, np.int32)
    position_N[order] = np.arange(len(order))
    return ServedRow(
        one={
            **known,
            "time": known["logged"] if encoded.time is None else encoded.time,
            "user_columns": _text(request.user_columns),
            "context": _text(request.context),
            "history_newest": encoded.newest,
            "history_hash": history_hash(inputs),
        },
        history_items=_ids(encoded.history),
        candidates=_ids(request.candidates),
        inputs={name: values.reshape(-1) for name, values in inputs.items()},
        scores=scores.astype(np.float32),
        position_N=position_N,
    )


def served_table(rows: Sequence[ServedRow]) -> Any:
    """Rows as an Arrow table of `SERVED`; no Python object is made for a number."""
    columns = {name: pa.array([row.one[name] for row in rows], SERVED.field(name).type) for name in rows[0].one}
    columns["history_items"] = _texts([row.history_items for row in rows])
    columns["candidates"] = _texts([row.candidates for row in rows])
    columns["scores"] = _lists([len(row.scores) for row in rows], to_arrow(_joined([row.scores for row in rows])))
    position_P = _joined([row.position_N for row in rows])
    shown = pa.array(position_P, pa.int32(), mask=position_P < 0)
    columns["positions"] = _lists([len(row.position_N) for row in rows], shown)
    columns["inputs"] = _inputs([row.inputs for row in rows])
    return pa.table({name: columns[name] for name in SERVED.names}, schema=SERVED)


def _inputs(rows: Sequence[Mapping[str, np.ndarray]]) -> Any:
    names = [name for row in rows for name in row]
    values = [values for row in rows for values in row.values()]
    number = np.array([each.dtype == np.float32 for each in values])
    structs = pa.StructArray.from_arrays(
        [
            pa.array(names, pa.string()),
            _some_lists(values, number, np.dtype(np.float32)),
            _some_lists(values, ~number, np.dtype(np.int64)),
        ],
        fields=list(INPUT),
    )
    return _lists([len(row) for row in rows], structs)


def _some_lists(values: Sequence[np.ndarray], chosen: np.ndarray, dtype: np.dtype[Any]) -> Any:
    """The arrays that are chosen as lists, null in place of the others."""
    kept = [each if keep else each[:0] for each, keep in zip(values, chosen.tolist(), strict=True)]
    offsets = np.cumsum([0, *map(len, kept)], dtype=np.int32)
    flat = _joined([each.astype(dtype, copy=False) for each in kept])
    return pa.ListArray.from_arrays(to_arrow(offsets), to_arrow(flat), mask=to_arrow(~chosen))


def _lists(lengths: Sequence[int], values: Any) -> Any:
    return pa.ListArray.from_arrays(to_arrow(np.cumsum([0, *lengths], dtype=np.int32)), values)


def _texts(lists: Sequence[Any]) -> Any:
    return _lists([len(each) for each in lists], pa.concat_arrays(lists))


def _ids(ids: Sequence[Any]) -> Any:
    """Ids as text; whole numbers become it outside Python, which other threads need meanwhile."""
    if isinstance(ids, WholeIds):
        return to_arrow(ids.numbers).cast(pa.string())
    return pa.array([str(one) for one in ids], pa.string())


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays)


def _text(values: Any) -> str:
    return msgspec.json.encode(values).decode()
