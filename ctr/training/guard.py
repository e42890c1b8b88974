"""The guard of a step: a loss or gradient that must not be used never reaches a weight."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ctr.config import GuardConfig

RECENT = 64  # losses that the running median is of
FEWEST = 16  # losses before the median judges another


class StepGuard:
    """Lets an optimizer skip a step whose loss or gradient is not finite, or whose loss has exploded.

    A loss has exploded when it is more than `explosion` times the median of the last 64 losses that were taken, and
    more than `explosion` times what the mean label of its own rows would lose: where positives are rare, most batches
    have none, and one that has some loses many times the median.

    A skipped step leaves weights, moments and the statistics of batch norm as they were. Nothing here makes the CPU
    wait for the device but `skipped` and `reason`.

    `enter` goes before the forward pass, `watch` between gradient and optimizer step.

    Args:
        model: whose batch norms are watched.
        optimizer: a fused one: it skips a step while its `found_inf` is 1, the way `torch.amp.GradScaler` makes it.
        config: what counts as an explosion.
        device: where losses and gradients are.

    Attributes:
        marked: 1 if the step that was watched last is skipped, else 0, for other optimizers; a scalar on the device.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, config: GuardConfig, device: torch.device
    ) -> None:
        self.marked = torch.zeros((), device=device)
        self._optimizer = optimizer
        self._explosion = config.explosion
        self._moving = [
            buffer for norm in model.modules() if isinstance(norm, _BatchNorm) for buffer in norm.buffers(recurse=False)
        ]
        self._before: list[Tensor] = []
        self._state = {
            "losses": torch.full((RECENT,), math.nan, device=device),
            "taken": torch.zeros((), dtype=torch.int64, device=device),
            "skipped": torch.zeros((), dtype=torch.int64, device=device),
            # Step, loss, gradient norm and median loss of the first step that was skipped.
            "first": torch.zeros(4, dtype=torch.float64, device=device),
        }

    def enter(self) -> None:
        """Remember the statistics of batch norm as they are before a forward pass."""
        self._before = [buffer.clone() for buffer in self._moving]

    def watch(self, step: int, loss: Tensor, norm: Tensor, of_labels: Tensor) -> None:
        """Judge a step before the optimizer takes it.

        Args:
            step: its number, for messages.
            loss: of its rows, a scalar.
            norm: of its gradient, a scalar.
            of_labels: what the mean label of its rows would lose (`ctr.training.losses.mean_label_loss`), a scalar.
        """
        state = self._state
        loss = loss.detach()
        median = state["losses"].nanmedian()
        exploded = (state["taken"] >= FEWEST) & (loss > self._explosion * torch.maximum(median, of_labels))
        bad = ~(torch.isfinite(loss) & torch.isfinite(norm)) | exploded
        here = torch.stack([torch.full_like(state["first"][0], step), loss.double(), norm.double(), median.double()])
        state["first"] = torch.where(bad & (state["skipped"] == 0), here, state["first"])
        place = (state["taken"] % RECENT).unsqueeze(0)
        kept = torch.where(bad, state["losses"].gather(0, place), loss.float().unsqueeze(0))
        state["losses"].scatter_(0, place, kept)
        state["taken"] += ~bad
        state["skipped"] += bad
        for buffer, before in zip(self._moving, self._before, strict=True):
            buffer.copy_(torch.where(bad, before, buffer))
        self.marked = bad.float()
        self._optimizer.found_inf = self.marked  # type: ignore[attr-defined]

    def skipped(self) -> int:
        """How many steps were skipped since the last `begin`."""
        return int(self._state["skipped"].item())

    def reason(self, rate: float) -> str:
        """What was wrong with the first step that was skipped since the last `begin`; `rate` is the learning rate."""
        step, loss, norm, median = self._state["first"].tolist()
        what = "not finite" if not (math.isfinite(loss) and math.isfinite(norm)) else "exploded"
        usual = "" if math.isnan(median) else f" (median of the steps before {median:.4g})"
        return f"step {step:.0f}: {what}: loss {loss:.4g}{usual}, gradient norm {norm:.4g}, learning rate {rate:.3g}"

    def begin(self) -> None:
        """Count skipped steps from here on."""
        self._state["skipped"].zero_()

    def forget(self) -> None:
        """Begin with other weights: the losses of those before say nothing of theirs."""
        self.begin()
        self._state["losses"].fill_(math.nan)
        self._state["taken"].zero_()

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs, by name."""
        return dict(self._state)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state()` gave."""
        for name, tensor in state.items():
            self._state[name].copy_(tensor)
