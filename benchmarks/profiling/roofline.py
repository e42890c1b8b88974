"""The least time a training step can take on this machine: its matrix products and gathers at their measured rates.

Shapes: B rows, S history positions, D item width, K attention width, X tower width, R linear rows, L layers, U distinct
items of a batch, V width of the stored vectors, P what they are projected to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# Of a history's rows: scores and sum on the way there; on the way back gradients by weights, by query, twice by item.
GATHERS_A_STEP = 6
# Adam reads weight, gradient and two moments, and writes all but the gradient.
ADAM_PASSES = 7
# Numbers of a copy, 256 MiB in single precision.
COPIED = 2**26


@dataclass(frozen=True)
class Sizes:
    """Of one model and one batch, by the letters of this module.

    `rows` is R as trained, 1 where rows are merged; `dense_parameters` are those of no table that is moved by row.
    """

    batch: int
    positions: int
    item_dim: int
    tower_dim: int
    rows: int
    layers: int
    distinct_items: int
    vector_dim: int
    projected_dim: int
    dense_parameters: int


@dataclass(frozen=True)
class Product:
    """`times` products [m, k] x [k, n]; `kind` says which operands lie transposed: forward, by_input or by_weight."""

    part: str
    kind: str
    m: int
    k: int
    n: int
    times: int = 1

    @property
    def gflop(self) -> float:
        """Two operations a multiply-add, in billions."""
        return 2 * self.m * self.k * self.n * self.times / 1e9


@dataclass(frozen=True)
class Reference:
    """Work that a part of a step cannot do without, on tensors as training has them in memory, `times` a step."""

    part: str
    run: Callable[[], Tensor]
    times: float


def products(sizes: Sizes) -> list[Product]:
    """All matrix products of a step whose size grows with the batch.

    Quadratic: L layers of `[B, X] x [X, R X]`, and as much for each gradient: 3 · 2 B R X² L operations. Attention:
    `x_t (W_q^T W_k)` and `(Σ a y) W_v^T W_o^T`, [B, D] x [D, D]. Items: `P v` of U items, without a gradient by v.
    """
    b, x, d, u = sizes.batch, sizes.tower_dim, sizes.item_dim, sizes.distinct_items
    wide = sizes.rows * x
    return [
        Product("quadratic", "forward", b, x, wide, sizes.layers),
        Product("quadratic", "by_input", b, wide, x, sizes.layers),
        Product("quadratic", "by_weight", wide, b, x, sizes.layers),
        Product("attention", "forward", b, d, d, 2),
        Product("attention", "by_input", b, d, d, 2),
        Product("attention", "by_weight", d, b, d, 2),
        Product("items", "forward", u, sizes.vector_dim, sizes.projected_dim),
        Product("items", "by_weight", sizes.projected_dim, u, sizes.vector_dim),
    ]


def gathered_bytes(sizes: Sizes, element: int) -> int:
    """What attention reads of histories in a step: B S D numbers of `element` bytes, six times over."""
    return GATHERS_A_STEP * sizes.batch * sizes.positions * sizes.item_dim * element


def optimizer_bytes(sizes: Sizes) -> int:
    """What dense Adam reads and writes in single precision."""
    return ADAM_PASSES * 4 * sizes.dense_parameters


def references(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> list[Reference]:
    """Each product of a step, its gathers, and a copy of what the optimizer moves."""
    gathers = Reference("attention", _gather(sizes, dtype, device), GATHERS_A_STEP)
    copies = Reference("optimizer", _copy(device), optimizer_bytes(sizes) / (2 * 4 * COPIED))
    of_products = [Reference(one.part, _multiply(one, dtype, device), one.times) for one in products(sizes)]
    return [*of_products, gathers, copies]


def seconds_by_part(some: Iterable[Reference], device: torch.device) -> dict[str, float]:
    """What they take now, added up by part: each the faster of two runs, as often as a step does it."""
    seconds: dict[str, float] = {}
    for reference in some:
        once = min(_seconds(reference.run, device) for _ in range(2))
        seconds[reference.part] = seconds.get(reference.part, 0.0) + once * reference.times
    return seconds


def _multiply(product: Product, dtype: torch.dtype, device: torch.device) -> Callable[[], Tensor]:
    m, k, n = product.m, product.k, product.n
    left = torch.randn(m, k, dtype=dtype, device=device)
    right = torch.randn(k, n, dtype=dtype, device=device)
    if product.kind == "forward":
        weight = right.T.contiguous()
        return lambda: F.linear(left, weight)
    if product.kind == "by_weight":
        gradient = left.T.contiguous()
        return lambda: gradient.T @ right
    return lambda: left @ right


def _gather(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> Callable[[], Tensor]:
    """Random rows of a table of U items, read and added up, S at a time."""
    generator = torch.Generator().manual_seed(1)
    table = torch.randn(sizes.distinct_items, sizes.item_dim, dtype=dtype, device=device)
    shape = (sizes.batch, sizes.positions)
    index = torch.randint(sizes.distinct_items, shape, generator=generator, dtype=torch.int32).to(device)
    weights = torch.rand(shape, dtype=dtype, device=device)
    return lambda: F.embedding_bag(index, table, per_sample_weights=weights, mode="sum")


def _copy(device: torch.device) -> Callable[[], Tensor]:
    source = torch.zeros(COPIED, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _seconds(run: Callable[[], Tensor], device: torch.device) -> float:
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
