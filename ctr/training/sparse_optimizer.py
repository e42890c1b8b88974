"""Optimisers of embedding tables that pay for the rows a step touched: lazy Adam and row-wise Adagrad.

Shapes: V rows of a table, R of them touched in this step, E embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.optim.adam import adam

from ctr.model.sparse_embedding import RowGradient, RowTable
from features.errors import ConfigError

RowOptimizerKind = Literal["lazy_adam", "rowwise_adagrad"]

BETAS = (0.9, 0.999)
EPSILON = 1e-8
# Numbers of a gradient worked on at a time on a CPU: what an update copies stays in its cache, twice as fast.
PIECE = 1 << 18


class RowOptimizer:
    """Moves the touched rows of all tables of a model; every other row, and its state, stays as it is.

    Each touched row w with gradient g, first `g ← g + λ w`, then

        lazy_adam         m ← β1 m + (1 - β1) g;  v ← β2 v + (1 - β2) g²
                          w ← w - rate · m / (1 - β1ᵗ) / (√(v / (1 - β2ᵗ)) + ε),  t the steps of the optimiser
        rowwise_adagrad   a ← a + mean_e g_e²;  w ← w - rate · g / (√a + ε),  one number a for the row

    Lazy Adam is torch.optim.Adam wherever each step touches each row, and torch.optim.SparseAdam but for its ε, which
    that one adds before the correction of v. Row-wise Adagrad is the exact one of FBGEMM and TorchRec. An embedding
    row that is not touched gets no L2 either, unlike with a dense optimiser.

    Args:
        tables: the tables by name, with `by_row` set by whoever trains them.
        kind: lazy_adam keeps two numbers a weight; rowwise_adagrad one a row, for tables that fill the memory.
        l2: λ of a loss term `λ/2 ||w||²` over the touched rows.

    Example:
        >>> table = RowTable(1_000, 8)
        >>> table.by_row = True
        >>> optimizer = RowOptimizer({"item": table}, "lazy_adam", l2=1e-5)
        >>> table(torch.tensor([7, 2])).sum().backward()
        >>> optimizer.step(rate=1e-3)
    """

    def __init__(self, tables: Mapping[str, RowTable], kind: RowOptimizerKind, l2: float) -> None:
        self.tables = dict(tables)
        self.kind = kind
        self.l2 = l2
        self._steps = torch.zeros(())
        self._state = {name: _zeros(table, kind) for name, table in self.tables.items()}
        self._follow_tables()

    @torch.no_grad()
    def step(self, rate: float, skip: Tensor | None = None) -> None:
        """Take the gradient of each table and move its touched rows.

        Args:
            rate: learning rate.
            skip: float scalar on the tables' device. If it is not 0, weights and state stay as they are, whatever
                the gradients hold; the device is not waited for.
        """
        self._follow_tables()
        skipped = None if skip is None else skip != 0
        for name, table in self.tables.items():
            for touched in _in_pieces(table.take_gradient()):
                self._move(table.weight, self._state[name], touched, rate, skipped)
        self._steps += 1 if skipped is None else ~skipped

    def zero_grad(self) -> None:
        """Forget what the tables gathered since the last step, and its gradients."""
        for table in self.tables.values():
            table.drop_gradient()

    def reset_rows(self) -> None:
        """Forget moments and steps, as if no row had ever been touched; weights stay."""
        for tensor in self.state().values():
            tensor.zero_()

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs, by "<table>.<what>" and "step": the tensors themselves, not copies."""
        by_name = {f"{name}.{what}": t for name, state in self._state.items() for what, t in state.items()}
        return by_name | {"step": self._steps}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state()` gave. Raises ConfigError if it is of other tables or another optimiser."""
        ours = self.state()
        different = sorted(ours.keys() ^ state.keys())
        different += [name for name in sorted(ours.keys() & state.keys()) if ours[name].shape != state[name].shape]
        if different:
            raise ConfigError(
                f"The saved state of the embedding tables does not fit {self.kind}: {len(different)} tensors are "
                f"missing, unknown or of another shape, for example {different[0]!r}. Resume with the optimiser and "
                "the tables that the run was started with, or train into a new folder."
            )
        for name, tensor in ours.items():
            tensor.copy_(state[name])

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """The state of each table by the name of its parameter, the count of steps in each."""
        return {f"{name}.weight": state | {"step": self._steps} for name, state in self._state.items()}

    def load_moments(self, moments: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go on from moments that another training left, of the tables that it moved in the same way."""
        self._follow_tables()
        for name, state in self._state.items():
            found = moments.get(f"{name}.weight", {})
            if found.keys() - {"step"} == state.keys():
                self._steps.copy_(torch.maximum(self._steps, found["step"].to(self._steps.device)))
                for what, tensor in state.items():
                    tensor.copy_(found[what])

    def _follow_tables(self) -> None:
        for name, table in self.tables.items():
            device = table.weight.device
            self._state[name] = {what: tensor.to(device) for what, tensor in self._state[name].items()}
            self._steps = self._steps.to(device)

    def _move(
        self, weight_VE: Tensor, state: dict[str, Tensor], touched: RowGradient, rate: float, skipped: Tensor | None
    ) -> None:
        index_R = touched.index_R.long()
        weight_RE = weight_VE.index_select(0, index_R)
        rows = {what: tensor.index_select(0, index_R) for what, tensor in state.items()}
        gradient_RE = touched.gradient_RE + self.l2 * weight_RE if self.l2 else touched.gradient_RE
        if self.kind == "lazy_adam":
            _adam(weight_RE, gradient_RE, rows, self._steps, rate, skipped)
        else:
            _adagrad(weight_RE, gradient_RE, rows, rate, skipped)

        weight_VE.index_copy_(0, index_R, weight_RE)
        for what, tensor in state.items():
            tensor.index_copy_(0, index_R, rows[what])


def _zeros(table: RowTable, kind: RowOptimizerKind) -> dict[str, Tensor]:
    weight_VE = table.weight.detach()
    if kind == "lazy_adam":
        return {"exp_avg": torch.zeros_like(weight_VE), "exp_avg_sq": torch.zeros_like(weight_VE)}
    return {"sum": weight_VE.new_zeros(len(weight_VE))}


def _in_pieces(touched: RowGradient | None) -> Iterator[RowGradient]:
    if touched is None:
        return
    rows, width = touched.gradient_RE.shape
    size = rows if touched.gradient_RE.is_cuda else max(1, PIECE // width)
    for index_R, gradient_RE in zip(touched.index_R.split(size), touched.gradient_RE.split(size), strict=True):
        yield RowGradient(index_R, gradient_RE)


def _adam(
    weight_RE: Tensor, gradient_RE: Tensor, rows: dict[str, Tensor], steps: Tensor, rate: float, skipped: Tensor | None
) -> None:
    adam(
        [weight_RE],
        [gradient_RE],
        [rows["exp_avg"]],
        [rows["exp_avg_sq"]],
        [],
        [steps.clone()],  # it counts this step in place, once for every table
        fused=True,
        found_inf=None if skipped is None else skipped.float(),
        amsgrad=False,
        beta1=BETAS[0],
        beta2=BETAS[1],
        lr=rate,
        weight_decay=0.0,
        eps=EPSILON,
        maximize=False,
    )


def _adagrad(
    weight_RE: Tensor, gradient_RE: Tensor, rows: dict[str, Tensor], rate: float, skipped: Tensor | None
) -> None:
    sum_R = rows["sum"] + gradient_RE.square().mean(dim=1)
    moved_RE = weight_RE - (rate / (sum_R.sqrt() + EPSILON)).unsqueeze(1) * gradient_RE
    rows["sum"].copy_(sum_R if skipped is None else torch.where(skipped, rows["sum"], sum_R))
    weight_RE.copy_(moved_RE if skipped is None else torch.where(skipped, weight_RE, moved_RE))
