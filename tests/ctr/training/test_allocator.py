from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from ctr.training.allocator import KEEPING

# MiB that stay with the process when a large array is freed; in a process of its own.
KEPT = """
import sys
from pathlib import Path
import numpy as np
from ctr.training.allocator import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) / 256  # pages of 4 KiB

before = resident_mib()
array = np.full(2**26, 1, np.uint8)
assert resident_mib() - before > 60
del array
print(resident_mib() - before)
"""


def kept_mib(how: str, **environment: str) -> float:
    everything = os.environ | environment
    done = subprocess.run([sys.executable, "-c", KEPT, how], capture_output=True, text=True, check=True, env=everything)
    return float(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc here")
def test_memory_that_was_freed_stays_to_be_used_again() -> None:
    assert kept_mib("kept") > 60
    assert kept_mib("as it is") < 4
    assert kept_mib("as it is", **KEEPING) > 60
