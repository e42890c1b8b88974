"""What training goes back to when too many of its steps had to be skipped."""

from __future__ import annotations

from torch import nn

from ctr.config import GuardConfig
from ctr.training.checkpoint import CheckpointStore, TrainState
from ctr.training.checkpoint_writer import CheckpointWriter
from ctr.training.train_step import TrainStep
from features.errors import NumericalError

RATE_AFTER = 0.5  # of the learning rate, with each return


class Recovery:
    """The way back to the last good weights: those of the best evaluation, before the first one those it began with.

    Rows that were passed are not seen again in their epoch: going on behind them leaves the bad ones behind, too.

    Args:
        model: with the weights that training begins with. They are copied, until an evaluation has better ones.
        store: where the best weights are.
        config: how much may be skipped, and how often training may go back.
    """

    def __init__(self, model: nn.Module, store: CheckpointStore, config: GuardConfig) -> None:
        self._model = model
        self._store = store
        self._config = config
        self._first = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    def forget_first(self) -> None:
        """There are better weights than the first now."""
        self._first = {}

    def check(self, state: TrainState, take_step: TrainStep, rate: float, writer: CheckpointWriter) -> None:
        """Go back if more steps were skipped since the last evaluation than may be, with fresh moments.

        Args:
            state: counts the return.
            take_step: which skipped them.
            rate: learning rate of the last step.
            writer: of the best weights.

        Raises:
            NumericalError: training has gone back as often as it may.
        """
        skipped = take_step.guard.skipped()
        if skipped <= self._config.skips:
            return
        reason = take_step.guard.reason(rate)
        if state.rollbacks >= self._config.rollbacks:
            raise NumericalError(
                f"{reason}. {skipped} steps were skipped since the last evaluation, more than train.guard.skips "
                f"{self._config.skips}, after {state.rollbacks} returns to the last good weights. Training stopped "
                "before this reached the weights; nothing was overwritten, and the last checkpoint, if there is one, "
                "stands. Lower train.learning_rate or train.clip_norm and continue with --resume. If it comes back at "
                "once, look for extreme values in numeric columns and item vectors."
            )
        state.rollbacks += 1
        state.skipped += skipped
        writer.wait()
        good = self._first or self._store.load_best(state)
        self._model.load_state_dict(self._model.state_dict() | good)
        take_step.forget()
