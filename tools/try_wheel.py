"""Install a wheel of quadrank where there is no checkout, and use it there: what `.ci/wheel` runs.

    .venv/bin/python -m tools.try_wheel dist/quadrank-0.1.0-py3-none-any.whl

Two empty environments in a temporary folder, with the versions of requirements.lock. With the extra `train`:
`quadrank init` and, in the project that it writes, `make train` at small size. With the serving set alone: `quadrank
rank` answers the request of that job's bundle. The last lines say what each set costs.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tools.environment import Checkout, provide_torch
from tools.installers import Installer, InstallError, pins, pip_settings, run
from tools.lock import NEEDS_OF_TORCH

ROOT = Path(__file__).resolve().parent.parent
# Small, but enough that the gate has no reason to refuse.
JOB = ["ROWS=100000", "USERS=1000", "ITEMS=600", "SET=train.batch_size=256 train.epochs=2"]
SERVES, TRAINS = "pipelines.inspect.rank", "pipelines.stages.run"
NOT_SERVING = ("torch", "mlflow", "optuna", "sklearn", "scipy", "numba")
REPEATS = 5
# What would lead from the environment back to the checkout, or to another registry.
OF_CHECKOUT = ("PYTHONPATH", "MLFLOW_TRACKING_URI", "MAKEFLAGS", "MFLAGS", "MAKELEVEL", "SET", "ROOT")
COST = """
import json, pathlib, sys, time
started = time.process_time()
__import__(sys.argv[1])
seconds = time.process_time() - started
status = pathlib.Path("/proc/self/status")
resident = int(status.read_text().partition("VmRSS:")[2].split()[0]) / 1024 if status.is_file() else float("nan")
print(json.dumps([seconds, resident]))
"""


class Place:
    """An empty environment in a folder of its own.

    Args:
        folder: is made.
    """

    def __init__(self, folder: Path):
        self.folder, self.venv = folder, folder / "venv"
        folder.mkdir()
        run([sys._base_executable, "-m", "venv", self.venv])
        self.python = self.venv / "bin/python"
        uv = Path(sys.executable).parent / "uv"
        self.installer = Installer(self.python, pip_settings(self.python), uv if uv.exists() else None)
        self.locked = folder / "locked.txt"
        self.locked.write_text(pins((ROOT / "requirements.lock").read_text(encoding="utf-8")), encoding="utf-8")

    def install(self, *requirements: str) -> None:
        """Install these and all that they bring, at the versions of the lock. Raises InstallError."""
        self.installer.install(*requirements, "-c", str(self.locked))

    def run(self, *command: str | Path, folder: Path | None = None) -> str:
        """Output of a command of the environment, run in the place's folder. Raises InstallError if it fails."""
        environment = {name: value for name, value in os.environ.items() if name not in OF_CHECKOUT}
        environment["PATH"] = f"{self.venv / 'bin'}{os.pathsep}{environment['PATH']}"
        done = subprocess.run(
            command,
            cwd=folder or self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise InstallError(f"{command} ends with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return done.stdout

    def cost(self, module: str) -> str:
        """Size of the environment without pip; processor time and memory of an import, medians of new processes."""
        site = next(self.venv.glob("lib/python3*/site-packages"))
        parts = [path for path in site.iterdir() if not path.name.startswith("pip")]
        files = [path for part in parts for path in ([part] if part.is_file() else part.rglob("*")) if path.is_file()]
        runs = [json.loads(self.run("python", "-c", COST, module)) for _ in range(REPEATS)]
        seconds, resident = (statistics.median(values) for values in zip(*runs, strict=True))
        return (
            f"{sum(path.stat().st_size for path in files) / 2**20:.0f} MiB installed, "
            f"{len([part for part in parts if part.suffix == '.dist-info'])} packages; "
            f"import {module}: {seconds:.2f} s of processor time, {resident:.0f} MiB resident"
        )


def train(place: Place, wheel: Path, torch_index: str) -> Path:
    """Run a small job in a project of its own; returns the project's folder. Raises InstallError."""
    place.install(*NEEDS_OF_TORCH)
    provide_torch(Checkout(ROOT, place.venv, place.python), place.installer, torch_index)
    place.install(f"quadrank[train] @ {wheel.resolve().as_uri()}")
    place.run("quadrank", "init", "shop")
    place.run("make", "train", *JOB, folder=place.folder / "shop")
    return place.folder / "shop"


def serve(place: Place, wheel: Path, bundle: Path) -> int:
    """Rank the bundle's own request with the serving set alone; returns how many candidates. Raises InstallError."""
    place.install(f"quadrank @ {wheel.resolve().as_uri()}")
    found = place.run("python", "-c", f"import importlib.util as u; print(*filter(u.find_spec, {NOT_SERVING}))").split()
    if found:
        raise InstallError(f"pip install quadrank brings {', '.join(found)}, which serving does not need")
    return len(json.loads(place.run("quadrank", "rank", "--bundle", bundle, "--json").splitlines()[-1])["ranked"])


def main() -> int:
    """0 if the wheel does its work elsewhere; otherwise what failed is written to standard error."""
    wheel, started = Path(sys.argv[1]), time.monotonic()

    def say(text: str) -> None:
        print(f"wheel: {text} ({time.monotonic() - started:.0f} s)", flush=True)

    with tempfile.TemporaryDirectory(prefix="quadrank-wheel-") as folder:
        try:
            training, serving = Place(Path(folder, "training")), Place(Path(folder, "serving"))
            project = train(training, wheel, os.environ.get("TORCH_INDEX", ""))
            say("a project of quadrank init trains, evaluates and exports with quadrank[train]")
            ranked = serve(serving, wheel, project / "bundles/simulated/CURRENT")
            say(f"quadrank alone ranks {ranked} candidates with its bundle")
            say(f"serving set: {serving.cost(SERVES)}")
            say(f"train set: {training.cost(TRAINS)}")
        except InstallError as error:
            print(f"the wheel does not work elsewhere: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
