"""Make the virtual environment of a checkout from its lock files: what `make setup` runs.

    python -m tools.environment --venv .venv [--torch-index URL]

The packages of requirements.lock are installed with their hashes checked. torch is not among them, because the build
that fits depends on the machine. The first of these that imports is taken:

1. the torch of the Python that runs this, if it is new enough and no index is named: a GPU machine keeps its own build;
2. the wheel that requirements-torch.lock pins, alone: a CPU build needs nothing more;
3. the same wheel with its dependencies: the CUDA build of a plain index, several GB.

`--torch-index URL` takes 2 and 3 from that index. The file `.ready` is written into the environment when torch and our
packages import and no dependency is unmet. A failure says which step failed, why, and the way out; without `.ready`
the next make tries again.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import re
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools.installers import Installer, InstallError, pins, pip_settings, run

FIND_TORCH = """
import json, pathlib, sys, torch
folders = [str(pathlib.Path(torch.__file__).parents[1])]
folders += [path for path in sys.path if pathlib.Path(path).name in ("site-packages", "dist-packages")]
print(json.dumps([str(torch.__version__), list(dict.fromkeys(folders))]))
"""


class SetupError(Exception):
    """A step of the set-up failed; the text names the step, the cause and the way out."""

    def __init__(self, step: str, cause: object, way_out: str):
        cause = str(cause).replace("\n", "\n           ")
        super().__init__(f"set-up failed: {step}\n  cause:   {cause}\n  way out: {way_out}")


@dataclass(frozen=True)
class Checkout:
    """What is set up: the files of a checkout, the environment to make, and the Python to make it with."""

    root: Path
    venv: Path
    base: Path = Path(sys.executable)

    @property
    def python(self) -> Path:
        """Interpreter of the environment."""
        return self.venv / "bin/python"

    @property
    def lock(self) -> Path:
        """Every package but torch, with hashes."""
        return self.root / "requirements.lock"

    @property
    def torch_lock(self) -> Path:
        """The version of torch."""
        return self.root / "requirements-torch.lock"

    @property
    def ready(self) -> Path:
        """Written last: the environment is whole. It holds the index that torch was taken from."""
        return self.venv / ".ready"

    @property
    def base_packages(self) -> Path:
        """Adds the folders of the base Python's packages to the path, after our own."""
        scheme = sysconfig.get_path("purelib", "venv", {"base": str(self.venv)})
        return Path(scheme, "packages-of-base-python.pth")


def say(text: str) -> None:
    """A line about the set-up. Standard output is left to the command that follows."""
    print(f"set-up: {text}", file=sys.stderr, flush=True)


@contextmanager
def step(name: str, way_out: str) -> Iterator[None]:
    """Names a part of the set-up: before it begins, and in the SetupError that an InstallError of it becomes."""
    say(name)
    try:
        yield
    except InstallError as error:
        raise SetupError(name, error, way_out) from error


def set_up(checkout: Checkout, torch_index: str) -> None:
    """Make the environment, with torch from that index if one is named. Raises SetupError for the step that failed."""
    checkout.ready.unlink(missing_ok=True)
    with step(
        f"make {checkout.venv.name} with {checkout.base}",
        "install the venv module of this Python (Debian: apt-get install python3-venv), or name another Python that "
        "has it: make setup PYTHON=python3.12",
    ):
        run([checkout.base, "-m", "venv", "--clear", checkout.venv])
        installer = Installer(checkout.python, pip_settings(checkout.python))
    say("install uv")
    installer.fetch_uv(checkout.lock)
    tell_warnings(installer)
    with step(
        "install the packages of requirements.lock",
        f"see with `{checkout.python} -m pip config list` whether the package index is the right one and reachable. "
        "Where it lacks a version, `make lock` on a machine that has .venv pins others",
    ):
        installer.install("--no-deps", "--require-hashes", "-r", str(checkout.lock))
        tell_warnings(installer)
    with step(
        "install torch",
        "TORCH_INDEX=<address of an index that has the build for this machine> takes torch from there, and a torch "
        f"that {checkout.base} itself can import is used as it is",
    ):
        provide_torch(checkout, installer, torch_index)
        tell_warnings(installer)
    with step("install quadrank itself", "mend pyproject.toml"):
        installer.install("--no-deps", "--no-build-isolation", "--editable", str(checkout.root))
        tell_warnings(installer)
    with step(
        "check that all imports and no dependency is unmet",
        "`make lock` resolves the lock anew after a change of pyproject.toml; "
        "TORCH_INDEX=<address of an index> takes another build of torch",
    ):
        run([checkout.python, Path(__file__).parent / "check_environment.py", checkout.root])
    checkout.ready.write_text(torch_index, encoding="utf-8")


def tell_warnings(installer: Installer) -> None:
    """Say what went another way than wanted, once."""
    for warning in installer.warnings:
        say(f"warning: {warning}")
    installer.warnings.clear()


def provide_torch(checkout: Checkout, installer: Installer, index: str) -> None:
    """See that torch imports: the base Python's, else the pinned wheel, else that wheel with its dependencies.

    Raises:
        InstallError: None of them imports, or none is to be had.
    """
    if not index and use_torch_of_base(checkout):
        return
    requirement = ("-r", str(checkout.torch_lock))
    installer.install("--no-deps", *requirement, index=index)
    if not (failure := import_failure(checkout.python)):
        return
    say(f"torch does not import alone ({failure}): its dependencies are installed, for CUDA several GB")
    # What requirements.lock pins stays as it is.
    with tempfile.TemporaryDirectory() as folder:
        locked = Path(folder, "locked.txt")
        locked.write_text(pins(checkout.lock.read_text(encoding="utf-8")), encoding="utf-8")
        installer.install(*requirement, "-c", str(locked), index=index)
    if failure := import_failure(checkout.python):
        raise InstallError(f"torch does not import with its dependencies either: {failure}")


def use_torch_of_base(checkout: Checkout) -> bool:
    """Put the packages of the base Python on the path if its torch is new enough and imports beside ours."""
    try:
        version, folders = json.loads(run([checkout.base, "-c", FIND_TORCH]).splitlines()[-1])
    except InstallError as error:
        if "No module named 'torch'" not in str(error):
            say(f"warning: the torch of {checkout.base} does not import ({last_line(error)}): another is installed")
        return False
    minimum = torch_minimum(checkout.root / "pyproject.toml")
    if release(version) < release(minimum):
        say(f"warning: the torch {version} of {checkout.base} is older than {minimum}: another is installed")
        return False
    checkout.base_packages.write_text("\n".join(folders) + "\n", encoding="utf-8")
    if failure := import_failure(checkout.python):
        checkout.base_packages.unlink()
        say(f"warning: the torch {version} of {checkout.base} does not import beside our packages ({failure})")
        return False
    say(f"torch {version} of {checkout.base} is used")
    return True


def import_failure(python: Path) -> str | None:
    """Why `import torch` fails there; None if it does not."""
    try:
        run([python, "-c", "import torch"])
    except InstallError as error:
        return last_line(error)
    return None


def last_line(error: InstallError) -> str:
    """Of a traceback, the exception."""
    return str(error).splitlines()[-1]


def torch_minimum(pyproject: Path) -> str:
    """The version in `torch>=…` of the dependencies."""
    match = re.search(r'"torch>=([\d.]+)"', pyproject.read_text(encoding="utf-8"))
    if not match:
        raise InstallError(f"{pyproject} names no torch>=…")
    return match[1]


def release(version: str) -> tuple[int, ...]:
    """The numbers of a version: 2.11.0a0+cu130 -> (2, 11, 0)."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()


@contextmanager
def alone(checkout: Checkout, torch_index: str) -> Iterator[bool]:
    """One set-up of a checkout at a time; gives whether another process has done the same one in the meantime."""
    before = written(checkout.ready)
    with checkout.lock.open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("wait for another set-up of this checkout")
            fcntl.flock(file, fcntl.LOCK_EX)
        now = written(checkout.ready)
        yield now not in (None, before) and checkout.ready.read_text("utf-8") == torch_index


def written(path: Path) -> tuple[int, int] | None:
    """Which file lies there, and when it was written; None where there is none."""
    return (path.stat().st_ino, path.stat().st_mtime_ns) if path.exists() else None


def main() -> int:
    """Read the command line; 0 if the environment is ready."""
    parser = argparse.ArgumentParser(description="Make the virtual environment of a checkout from its lock files.")
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="The checkout.")
    parser.add_argument("--venv", type=Path, default=Path(".venv"), help="The environment, from the checkout.")
    parser.add_argument("--torch-index", default="", help="Index that torch is taken from.")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    checkout = Checkout(root, root / arguments.venv)
    started = time.monotonic()
    try:
        with alone(checkout, arguments.torch_index) as made:
            if not made:
                set_up(checkout, arguments.torch_index)
                say(f"{checkout.venv.name} is ready, {time.monotonic() - started:.0f} s")
    except SetupError as error:
        print(f"{error}\n  The next make tries again.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
