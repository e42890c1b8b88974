"""Compiled kernels: machine code is not kept beyond a change, and no kernel reads outside its arrays."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba.core.dispatcher
import pytest

import ctr.kernels.bag_products
import ctr.kernels.quadratic_loops
from ctr.kernels.runtime import kernel_salt

ROOT = Path(__file__).parents[3]
KERNEL = """
import sys
import numpy as np
from ctr.kernels.runtime import kernel, widen

@kernel
def copied(source, target):
    for place in range(len(source)):
        target[place] = widen(source[place])

target = np.zeros(2, np.float32)
copied(np.ones(2, np.float32), target)
print(target.tolist())
"""


def run(code: str | Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    everything = os.environ | {"PYTHONPATH": str(folder)} | environment
    return subprocess.run([sys.executable, str(code)], capture_output=True, text=True, env=everything, timeout=200)


def test_a_changed_helper_is_never_run_as_it_was(tmp_path: Path):
    """The file of the kernel stays as it is, and with it what numba itself looks at."""
    (tmp_path / "ctr/kernels").mkdir(parents=True)
    (tmp_path / "ctr/__init__.py").touch()
    (tmp_path / "ctr/kernels/__init__.py").touch()
    helpers = Path(shutil.copy(ROOT / "ctr/kernels/runtime.py", tmp_path / "ctr/kernels"))
    (tmp_path / "copied.py").write_text(KERNEL)
    assert run(tmp_path / "copied.py", tmp_path).stdout == "[1.0, 1.0]\n"
    kept = list((tmp_path / "__pycache__").glob("*.nbi"))
    assert len(kept) == 1
    text = helpers.read_text()
    assert text.count("return value\n") == 1
    helpers.write_text(text.replace("return value\n", "return value + 1\n"))
    assert run(tmp_path / "copied.py", tmp_path).stdout == "[2.0, 2.0]\n"


def test_code_with_checks_of_bounds_is_kept_apart():
    names = {kernel_salt(source, checked) for source in (b"a", b"b") for checked in (True, False)}
    assert len(names) == 4


@pytest.mark.parametrize("module", [ctr.kernels.bag_products, ctr.kernels.quadratic_loops])
def test_kernels_call_only_what_the_salt_and_their_own_file_know(module):
    kernels = [one for one in vars(module).values() if isinstance(one, numba.core.dispatcher.Dispatcher)]
    assert kernels
    for one in kernels:
        called = [one.py_func.__globals__.get(name) for name in one.py_func.__code__.co_names]
        homes = {getattr(other, "__module__", None) for other in called if callable(other)}
        assert {home for home in homes if home and home.startswith("ctr")} <= {module.__name__, "ctr.kernels.runtime"}


OUTSIDE = """
import torch
from ctr.kernels.bag_products import FEW_ROWS, RowBags

rows = FEW_ROWS + 1
RowBags(torch.ones(rows, 3), torch.tensor([[2, rows]])).dots(torch.ones(1, 3))
"""


def test_with_checks_of_bounds_an_index_outside_the_table_is_an_error(tmp_path: Path):
    (tmp_path / "outside.py").write_text(OUTSIDE)
    done = run(tmp_path / "outside.py", ROOT, NUMBA_BOUNDSCHECK="1")
    assert "IndexError" in done.stderr and done.returncode == 1


@pytest.mark.slow
def test_no_kernel_leaves_its_arrays():
    """The tests of the kernels again, compiled with checks of bounds."""
    files = ("kernels/test_bag_products.py", "kernels/test_quadratic_loops.py", "towers/test_quadratic.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider"]
        + [f"tests/ctr/{name}" for name in files],
        capture_output=True,
        text=True,
        env=os.environ | {"NUMBA_BOUNDSCHECK": "1"},
        cwd=ROOT,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-2000:]
