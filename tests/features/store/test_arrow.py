"""Numpy to Arrow and back: every type, sliced, empty, two-dimensional; nothing of it imports pandas."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from features.store.arrow import TYPES, to_arrow, to_numpy


@pytest.mark.parametrize("dtype", [*TYPES, np.dtype(bool)], ids=str)
@pytest.mark.parametrize("rows", [0, 1, 7, 8, 1001])
def test_there_and_back(dtype: np.dtype, rows: int) -> None:
    values = np.random.default_rng(0).integers(0, 2 if dtype.kind == "b" else 100, rows).astype(dtype)
    array = to_arrow(values)
    assert array.null_count == 0 and array.to_pylist() == values.tolist()
    assert to_numpy(array).dtype == dtype and to_numpy(array).tolist() == values.tolist()
    assert to_numpy(array.slice(rows // 3, rows // 2)).tolist() == values[rows // 3 :][: rows // 2].tolist()


def test_two_dimensions_are_fixed_lists() -> None:
    values = np.arange(12, dtype=np.int32).reshape(4, 3)
    array = to_arrow(values)
    assert array.type == pa.list_(pa.int32(), 3) and array.to_pylist() == values.tolist()
    assert to_numpy(array).tolist() == values.tolist()
    assert to_numpy(to_arrow(values[:, ::2])).tolist() == values[:, ::2].tolist()


def test_what_was_taken_comes_back() -> None:
    values = np.array([3.0, np.nan, 5.0])
    taken = to_arrow(values).take(to_arrow(np.array([2, 0, 1])))
    np.testing.assert_array_equal(to_numpy(taken), [5.0, 3.0, np.nan])


def test_no_pandas() -> None:
    code = (
        "import sys, numpy as np; from features.store.arrow import to_arrow, to_numpy\n"
        "for kind in (np.int32, np.float32, bool): to_numpy(to_arrow(np.ones(3, kind)))\n"
        "print('pandas' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
