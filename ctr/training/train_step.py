"""One training step: forward and backward in the chosen precision, clipping, and both optimisers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ctr.config import TrainConfig
from ctr.data.batch import Batch
from ctr.model.outputs import Outputs
from ctr.model.sparse_embedding import RowTable
from ctr.training.guard import StepGuard
from ctr.training.losses import click_loss, mean_label_loss, shares, training_loss
from ctr.training.optimizer import make_optimizer
from ctr.training.sparse_optimizer import RowOptimizer
from features.errors import ConfigError

# A table as small as this is touched whole at nearly each step: moving it by row would only cost.
SMALL_TABLE_ROWS = 256
# Of each parameter by name, what its optimiser keeps of it: `exp_avg`, `exp_avg_sq` or `sum`, and `step`.
Moments = dict[str, dict[str, Tensor]]
_DENSE, _ROWS, _GUARD = "dense", "rows", "guard"


def require_device(config: TrainConfig, device: torch.device) -> None:
    """Raise ConfigError for `compile` on a CPU."""
    if device.type == "cpu" and config.compile:
        raise ConfigError(
            "train.compile: meant for CUDA. On a CPU the step has compiled loops of its own; set it to false."
        )


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
        click_loss: log loss of the click in the last step, without the other terms of its loss; a scalar on the device,
            0 where the step was skipped.
        losses: sums of loss, `click_loss` and 1 over the steps taken since the caller set them to 0; [3] on the device.
        guard: which skips a step that must not be taken.

    Raises:
        ConfigError: `compile` on a CPU.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, device: torch.device) -> None:
        require_device(config, device)
        self.config = config
        self.model = model
        forward: Callable[[Batch], Outputs] = model.outputs  # type: ignore[assignment]
        self._forward = torch.compile(forward, dynamic=True) if config.compile else forward
        self._device = device
        self.click_loss = torch.zeros((), device=device)
        self.losses = torch.zeros(3, device=device)
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
        self.guard = StepGuard(model, self._dense, config.guard, device)

    def __call__(self, batches: Sequence[Batch], rate: float, step: int) -> Tensor:
        """Take the step of these batches; returns its loss, a scalar that stays on the device, 0 if it was skipped.

        The gradient is that of the weighted mean loss over all their rows, of a further label over those where it is
        known, however they are cut into batches; only batch norm and the loss of lists see one batch at a time.

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
        self.guard.enter()
        loss, of_click, of_labels = (torch.zeros((), device=self._device) for _ in range(3))
        for batch, share in zip(batches, shares(batches), strict=True):
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
                outputs = self._forward(batch)
            part = training_loss(outputs, batch, self.config, share)
            part.backward()
            loss += part.detach()
            of_click += click_loss(outputs, batch) * share.rows
            of_labels += mean_label_loss(outputs, batch, self.config, share)
        self.guard.watch(step, loss, self._clip(), of_labels)
        self._dense.step()
        if self._rows is not None:
            self._rows.step(rate, skip=self.guard.marked)
        found = torch.stack([loss, of_click, torch.ones_like(loss)])
        found = torch.where(self.guard.marked == 0, found, torch.zeros_like(found))
        self.losses += found
        self.click_loss = found[1]
        return found[0]

    def forget(self) -> None:
        """Forget all moments and recent losses, as if no step had been taken: the model has other weights now."""
        self._dense.state.clear()
        if self._rows is not None:
            self._rows.reset_rows()
        self.guard.forget()

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
        return flat | {f"{_GUARD}.{name}": tensor for name, tensor in self.guard.state().items()}

    def load_state(self, flat: Mapping[str, Tensor]) -> None:
        """Go on from what `state()` gave. Raises ConfigError if tables were moved by another optimiser."""
        moments: dict[int, dict[str, Tensor]] = {}
        of_rows: dict[str, Tensor] = {}
        of_guard: dict[str, Tensor] = {}
        for name, tensor in flat.items():
            kind, rest = name.split(".", 1)
            if kind == _ROWS:
                of_rows[rest] = tensor
            elif kind == _GUARD:
                of_guard[rest] = tensor
            else:
                index, moment = rest.split(".", 1)
                moments.setdefault(int(index), {})[moment] = tensor
        # Learning rate and L2 come from the settings, not from the checkpoint.
        self._dense.load_state_dict({"state": moments, "param_groups": self._dense.state_dict()["param_groups"]})
        if self._rows is not None:
            self._rows.load_state(of_rows)
        self.guard.load_state(of_guard)

    def moments(self) -> Moments:
        """What both optimisers keep of each parameter that was moved, by its name: the tensors themselves."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        found = {names[id(parameter)]: dict(state) for parameter, state in self._dense.state.items()}
        return found | ({} if self._rows is None else self._rows.moments())

    def load_moments(self, moments: Moments) -> None:
        """Go on from moments that another training left, of the parameters that are moved in the same way still."""
        for name, parameter in self.model.named_parameters():
            state = moments.get(name, {})
            if id(parameter) not in self._moved_by_row and "exp_avg" in state:
                self._dense.state[parameter] = {what: t.clone().to(parameter.device) for what, t in state.items()}
        if self._rows is not None:
            self._rows.load_moments(moments)

    def _clip(self) -> Tensor:
        """Scale all gradients so that their norm is at most `clip_norm`; returns the norm before."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        for table in self._tables.values():
            gradients += table.gradients() if table.by_row else []
        norm = nn.utils.get_total_norm(gradients)
        torch._foreach_mul_(gradients, (self.config.clip_norm / (norm + 1e-6)).clamp(max=1))
        return norm
