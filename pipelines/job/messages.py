"""What a training tells people of how it began and went."""

from __future__ import annotations

from ctr.training.loop import FitResult
from ctr.training.warm.transfer import Began


def worse_than_base_rate(log_loss: float, base: float) -> str:
    """What to tell of a first evaluation that is worse than knowing nothing."""
    return (
        f"warning: the first evaluation on the validation rows has a log loss of {log_loss:.4f}, worse than "
        f"{base:.4f}, which the mean label alone has. Items may be memorised that the validation rows do not have: "
        "raise model.id_dropout and train.embedding_l2, lower train.learning_rate, or evaluate more often with "
        "train.evaluations_per_epoch."
    )


def how_it_began(began: Began) -> str:
    """What to tell of the weights that a warm start began with."""
    moments = "" if began.moments else "; moments of the optimizers begin anew"
    return (
        f"  warm start: {began.known:,} item ids kept their rows, {began.new:,} are new, "
        f"{began.from_content:,} of them begin from their vectors{moments}"
    )


def what_the_guard_did(result: FitResult) -> str:
    """What to tell of a training of which steps were skipped."""
    back = f" and went back to its last good weights {result.rollbacks} times" if result.rollbacks else ""
    return (
        f"warning: training skipped {result.skipped} steps whose loss or gradient was not finite or exploded{back}. "
        "Look for extreme values in numeric columns and item vectors, or lower train.learning_rate."
    )
