"""The difference between two computations of one probability, in logits, so that rare clicks count as much."""

from __future__ import annotations

import numpy as np

# Largest `logit_difference` allowed between two computations of one score. Summation order differs between torch, ONNX
# Runtime and batch shapes, so scores are never promised to the last bit.
TOLERANCE = 1e-5

_TINY, _STEP = float(np.finfo(np.float32).tiny), 2.0**-24  # between two numbers of single precision just below 1
_STEPS = 4  # by which rounding may set two sigmoids apart


def logit_difference(got: np.ndarray, wanted: np.ndarray) -> float:
    """The largest of `logit_differences`; NaN where one of them is not a number."""
    return float(logit_differences(got, wanted).max())


def logit_differences(got: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Each `|logit(got) - logit(wanted)| / max(1, |logit(wanted)|)`, float64 of the same shape.

    At a click probability of 1e-4 it is about a ninth of the relative difference of the probabilities; at 0.5 it is
    four times their absolute difference. Near 1, single precision holds few digits of a logit: the difference that
    rounding of the probabilities can cause is subtracted.

    Args:
        got, wanted: probabilities, of one shape, not empty.
    """
    # From 0 to 1 both ends included: a sigmoid of single precision reaches them.
    first, second = (np.clip(one.astype(np.float64), _TINY, 1 - _STEP / 2) for one in (got, wanted))
    logits, wanted_logits = (np.log(one) - np.log1p(-one) for one in (first, second))
    rounding = _STEPS * _STEP / (1 - np.maximum(first, second))
    apart = np.maximum(np.abs(logits - wanted_logits) - rounding, 0)
    apart_of: np.ndarray = apart / np.maximum(1, np.abs(wanted_logits))
    return apart_of
