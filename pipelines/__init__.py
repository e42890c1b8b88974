"""The commands: thin stages that can be run again, each over `features` and `ctr`.

In the order in which imports may run: `job`, `tune`, `study`, `inspect`, `report`, `cli`.
"""

import os

# Before torch is loaded: its idle threads then sleep at once. By default they spin for a while after each operation, in
# the way of the compiled loops of training and of other jobs on the machine.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
