from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Page faults of the second of two large arrays, the first of which was freed; in a process of its own.
FAULTS = """
import resource, sys
import numpy as np
from ctr.memory import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()

def faults_of_a_large_array():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(2**26, np.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults_of_a_large_array()
print(faults_of_a_large_array())
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc here")
def test_memory_that_was_freed_is_used_again_without_being_mapped_anew():
    # 64 MiB are 16,384 pages of 4 KiB, or 32 huge ones.
    assert faults("kept") < min(faults("as it is"), 100)
