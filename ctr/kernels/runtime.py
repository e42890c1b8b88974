"""Loops compiled by numba: in every thread of torch's, on half precision too.

Half precision (bfloat16) comes to a kernel as its bits, uint16. `widen` makes a number in single precision of them
before anything is computed with it, and `put` rounds what is written; both leave other numbers as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from torch import Tensor

# Fewer rows are not worth waking a thread for.
FEWEST_ROWS_A_THREAD = 64

CACHE_LINE = 64  # bytes
_INT32, _INT64, _BYTES = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()
_ROUND, _ONE, _HALF_BITS = np.uint32(0x7FFF), np.uint32(1), np.uint32(16)
_INFINITY, _ABSOLUTE, _NAN = np.uint32(0x7F800000), np.uint32(0x7FFFFFFF), np.uint16(0x7FC0)


def kernel_salt(source: bytes, bounds_checked: bool) -> str:
    """What names the machine code of kernels beside their own files: the text of this one, and how it is compiled."""
    return hashlib.sha256(source + bytes([bounds_checked])).hexdigest()[:12]


_SALT = kernel_salt(Path(__file__).read_bytes(), bool(config.BOUNDSCHECK))  # type: ignore[attr-defined]


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function of a module, once for each machine: the code is kept on disk.

    numba keeps machine code by the name and the file of a function, and would go on running it after a helper of this
    module changed. The salt in its name keeps such code apart. A kernel calls kernels of its own file, and this module.
    """
    function.__qualname__ = f"{function.__qualname__}_{_SALT}"
    # NaN and infinity must pass through: the guard of training waits for them.
    compiled: Callable[..., Any] = njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz", "arcp"})(
        function
    )
    return compiled


def widen(value: Any) -> Any:
    """A number; bits of half precision become one in single precision. (Compiled by the type of `value`.)"""
    raise RuntimeError("runs in compiled code only")


def put(target: Any, place: Any, number: Any) -> None:
    """`target[place] = number`, to the nearest of half precision where `target` holds its bits."""
    raise RuntimeError("runs in compiled code only")


@intrinsic
def prefetch(typing, array, row):  # type: ignore[no-untyped-def]
    """Ask the cache for a row of a matrix that will be read soon: rows at random places are waited for otherwise."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        matrix = context.make_array(signature.args[0])(context, builder, arguments[0])
        width, item = cgutils.unpack_tuple(builder, matrix.shape)[1], cgutils.unpack_tuple(builder, matrix.strides)
        number = context.cast(builder, arguments[1], signature.args[1], types.int64)
        first = builder.add(builder.ptrtoint(matrix.data, _INT64), builder.mul(number, item[0]))
        ask = builder.module.declare_intrinsic(
            "llvm.prefetch", (_BYTES,), ir.FunctionType(ir.VoidType(), [_BYTES, _INT32, _INT32, _INT32])
        )
        size = builder.mul(width, item[1])
        with cgutils.for_range_slice(builder, _INT64(0), size, _INT64(CACHE_LINE), _INT64) as (offset, _):
            # To read, as near as can be, data.
            builder.call(ask, [builder.inttoptr(builder.add(first, offset), _BYTES), _INT32(0), _INT32(3), _INT32(1)])
        return context.get_dummy_value()

    return types.none(array, row), generate


@overload(widen)
def _widen(value):  # type: ignore[no-untyped-def]
    def bits(value):  # type: ignore[no-untyped-def]
        return np.uint32(np.uint32(value) << _HALF_BITS).view(np.float32)

    def same(value):  # type: ignore[no-untyped-def]
        return value

    return bits if value == types.uint16 else same


@overload(put)
def _put(target, place, number):  # type: ignore[no-untyped-def]
    # numba widens a sum of two uint32 to 64 bits, which would halve the numbers that are rounded at once.
    def bits(target, place, number):  # type: ignore[no-untyped-def]
        one = np.float32(number).view(np.uint32)
        odd = np.uint32(np.uint32(one >> _HALF_BITS) & _ONE)
        near = np.uint16(np.uint32(one + _ROUND + odd) >> _HALF_BITS)
        target[place] = _NAN if (one & _ABSOLUTE) > _INFINITY else near

    def same(target, place, number):  # type: ignore[no-untyped-def]
        target[place] = number

    return bits if target.dtype == types.uint16 else same


def in_threads(
    do_rows: Callable[..., None],
    batch: int,
    *arguments: tuple[Any, ...],
    sums: tuple[int, ...] = (),
    after: tuple[Tensor, ...] = (),
) -> list[Tensor]:
    """Run a kernel over all rows of a batch, in as many threads as torch uses; returns its sums, float64.

    Args:
        do_rows: a kernel. It gets `arguments`, its own sums (zeros at first), `after`, and the rows to do, from and to.
        batch: how many rows there are.
        arguments: tensors on the CPU, which it sees as arrays, and plain values.
        sums: their sizes. Those of all threads are added up.
        after: tensors.
    """
    given = [_array(one) for group in arguments for one in group]
    rest = [_array(one) for one in after]
    threads = max(1, min(torch.get_num_threads(), batch // FEWEST_ROWS_A_THREAD))
    own = [[np.zeros(size) for size in sums] for _ in range(threads)]
    bounds = list(pairwise(batch * thread // threads for thread in range(threads + 1)))

    def do(thread: int) -> None:
        do_rows(*given, *own[thread], *rest, *bounds[thread])

    # The calling thread works, too.
    others = [_pool().submit(do, thread) for thread in range(1, threads)]
    do(0)
    for other in others:
        other.result()
    return [torch.from_numpy(np.sum(parts, axis=0)) for parts in zip(*own, strict=True)]


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="kernel")


def _array(one: Any) -> Any:
    if not isinstance(one, Tensor):
        return one
    if one.dtype == torch.bfloat16:
        return one.view(torch.uint16).numpy()
    return one.detach().numpy()
