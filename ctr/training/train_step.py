"""One training step: forward and backward in the chosen precision, clipping, and both optimisers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ctr.config import TrainConfig
from ctr.data.batch import Batch
from ctr.model.outputs import Outputs
from ctr.model.sparse_embedding import RowTable
from ctr.training.losses import click_loss, training_loss
from ctr.training.optimizer import FiniteGuard, make_optimizer
from ctr.training.sparse_optimizer import RowOptimizer
from features.errors import ConfigError

# A table as small as this is touched whole at nearly each step: moving it by row would only cost.
SMALL_TABLE_ROWS = 256
_DENSE, _ROWS = "dense", "rows"


class TrainStep:
    """Moves a model by one optimizer step at a time.

    Weights, moments, losses and sums over rows are in single precision always; `precision: bf16` computes matrix
    products, and what is read and written once a history position, in half of it. Where `table_optimizer` is not
    `adam`, embedding tables of more than 256 rows are moved by row (`ctr.training.sparse_optimizer`), all else by Adam.

    On a CPU a process that trains should begin with `ctr.training.allocator.keep_freed_memory()`, as the commands do.

    Args:
        model: with tables attached and on `device`; `outputs(batch) -> Outputs`, `regularized_parameters()`.
        config: precision, optimizers, L2, clipping.
        device: where the model is.

    Attributes:
        click_loss: log loss of the click in the last step, without the other terms of its loss; a scalar on the device.
        losses: sums of loss and `click_loss` over the steps since the caller set them to 0; [2] on the device.

    Raises:
        ConfigError: `compile` on a CPU.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, device: torch.device) -> None:
        if device.type == "cpu" and config.compile:
            raise ConfigError(
                "train.compile: meant for CUDA. On a CPU the step has compiled loops of its own; set it to false."
            )
        self.config = config
        self.model = model
        forward: Callable[[Batch], Outputs] = model.outputs  # type: ignore[assignment]
        self._forward = torch.compile(forward, dynamic=True) if config.compile else forward
        self._device = device
        self.click_loss = torch.zeros((), device=device)
        self.losses = torch.zeros(2, device=device)
        self._tables = {name: table for name, table in model.named_modules() if isinstance(table, RowTable)}
        self._rows: RowOptimizer | None = None
        if config.table_optimizer != "adam":
            by_row = {name: table for name, table in self._tables.items() if len(table.weight) > SMALL_TABLE_ROWS}
            for table in by_row.values():
                table.by_row = True
            self._rows = RowOptimizer(by_row, config.table_optimizer, config.embedding_l2)
        self._moved_by_row = {id(table.weight) for table in self._tables.values() if table.by_row}
        self._parameters = [p for p in model.parameters() if p.requires_grad and id(p) not in self._moved_by_row]
        self._dense = make_optimizer(model, config, self._parameters)
        self._guard = FiniteGuard(self._dense, device)

    def __call__(self, batches: Sequence[Batch], rate: float, step: int) -> Tensor:
        """Take the step of these batches; returns its loss, a scalar that stays on the device.

        The gradient is that of the weighted mean loss over all their rows, however they are cut into batches; only
        batch norm sees one batch at a time.

        Args:
            batches: one, or those of an accumulation window; on the model's device.
            rate: learning rate.
            step: steps before this one, for messages.
        """
        for group in self._dense.param_groups:
            group["lr"] = rate
        self._dense.zero_grad(set_to_none=True)
        if self._rows is not None:
            self._rows.zero_grad()
        weights = [batch.weight_B.sum() for batch in batches]
        total = torch.stack(weights).sum().clamp_min(torch.finfo(torch.float32).tiny)
        loss, of_click = torch.zeros((), device=self._device), torch.zeros((), device=self._device)
        for batch, weight in zip(batches, weights, strict=True):
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
                outputs = self._forward(batch)
            part = training_loss(outputs, batch, self.config)
            share = 1.0 if len(batches) == 1 else weight / total
            part = part * share
            part.backward()
            loss += part.detach()
            of_click += click_loss(outputs, batch) * share
        self.click_loss = of_click
        self.losses += torch.stack([loss, of_click])
        self._guard.watch(step, loss, self._clip())
        self._dense.step()
        if self._rows is not None:
            self._rows.step(rate, skip=self._guard.marked)
        return loss

    def check(self, rate: float) -> None:
        """Raise NumericalError if a loss or gradient since the start was not finite."""
        self._guard.check(rate)

    def reset_embeddings(self) -> None:
        """Draw all embedding tables anew and forget their moments; the rest of the model goes on as it is."""
        for table in self._tables.values():
            table.reset_parameters()
            for moment in self._dense.state.get(table.weight, {}).values():
                moment.zero_()
        if self._rows is not None:
            self._rows.reset_rows()

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs of the optimisers, by flat names."""
        flat = {
            f"{_DENSE}.{index}.{name}": moment
            for index, moments in self._dense.state_dict()["state"].items()
            for name, moment in moments.items()
        }
        if self._rows is not None:
            flat |= {f"{_ROWS}.{name}": tensor for name, tensor in self._rows.state().items()}
        return flat

    def load_state(self, flat: Mapping[str, Tensor]) -> None:
        """Go on from what `state()` gave. Raises ConfigError if tables were moved by another optimiser."""
        moments: dict[int, dict[str, Tensor]] = {}
        of_rows: dict[str, Tensor] = {}
        for name, tensor in flat.items():
            kind, rest = name.split(".", 1)
            if kind == _ROWS:
                of_rows[rest] = tensor
            else:
                index, moment = rest.split(".", 1)
                moments.setdefault(int(index), {})[moment] = tensor
        # Learning rate and L2 come from the settings, not from the checkpoint.
        self._dense.load_state_dict({"state": moments, "param_groups": self._dense.state_dict()["param_groups"]})
        if self._rows is not None:
            self._rows.load_state(of_rows)

    def _clip(self) -> Tensor:
        """Scale all gradients so that their norm is at most `clip_norm`; returns the norm before."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        for table in self._tables.values():
            gradients += table.gradients() if table.by_row else []
        norm = nn.utils.get_total_norm(gradients)
        torch._foreach_mul_(gradients, (self.config.clip_norm / (norm + 1e-6)).clamp(max=1))
        return norm
