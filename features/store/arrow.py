"""Numpy arrays as Arrow arrays and back, without a copy where there need be none, and without pandas.

pyarrow's own conversions import pandas when they are first called: a fifth of a second of every build.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

DTYPES = {
    pa.int8(): np.int8,
    pa.int16(): np.int16,
    pa.int32(): np.int32,
    pa.int64(): np.int64,
    pa.uint8(): np.uint8,
    pa.uint16(): np.uint16,
    pa.uint32(): np.uint32,
    pa.uint64(): np.uint64,
    pa.float32(): np.float32,
    pa.float64(): np.float64,
}
TYPES = {np.dtype(kind): arrow for arrow, kind in DTYPES.items()}


def to_arrow(values: np.ndarray) -> Any:
    """A numpy array [rows], or [rows, width] as lists of fixed size, as an Arrow array without nulls."""
    if values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(to_arrow(values.reshape(-1)), values.shape[1])
    if values.dtype == bool:
        bits = np.packbits(values, bitorder="little")
        return pa.Array.from_buffers(pa.bool_(), len(values), [None, pa.py_buffer(bits)])
    whole = np.ascontiguousarray(values)
    return pa.Array.from_buffers(TYPES[values.dtype], len(values), [None, pa.py_buffer(whole)])


def to_numpy(array: Any) -> np.ndarray:
    """What `to_arrow` made, as numpy again; numbers are views on the Arrow buffers."""
    if pa.types.is_fixed_size_list(array.type):
        return to_numpy(array.flatten()).reshape(-1, array.type.list_size)
    stop = array.offset + len(array)
    data = array.buffers()[1]
    if array.type == pa.bool_():
        bits = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
        return np.unpackbits(bits, count=stop, bitorder="little")[array.offset :].astype(bool)
    dtype = DTYPES[array.type]
    return np.frombuffer(data, dtype, count=stop)[array.offset :] if data is not None else np.empty(0, dtype)
