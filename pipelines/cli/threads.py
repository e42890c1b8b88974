"""How long the threads of torch's loops wait awake for the next loop."""

from __future__ import annotations

import os

# Turns of a waiting thread. GNU's OpenMP, which torch has on Linux, takes 300,000 by default, which are
# milliseconds.
TURNS, FEW = "GOMP_SPINCOUNT", "5000"
POLICY = "OMP_WAIT_POLICY"


def sleep_soon() -> None:
    """Let threads of OpenMP sleep soon after a loop, for this process and those that it starts.

    The compiled loops of a training step (`ctr.kernels`) come between those of torch, in threads of their own. Threads
    that wait awake take the cores from them. What the environment says of this holds. OpenMP reads it when torch is
    loaded: to be called before.
    """
    if POLICY not in os.environ:
        os.environ.setdefault(TURNS, FEW)
