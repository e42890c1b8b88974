"""Where the commands keep what they make, and the lock that keeps two scheduled jobs apart."""

from __future__ import annotations

import fcntl
import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from features.errors import ConfigError, LockError


@dataclass(frozen=True)
class Workspace:
    """One folder (the project's own by default) holding feature sets, runs, bundles and the MLflow store."""

    root: Path = Path()

    @property
    def feature_sets(self) -> Path:
        """`<name>/<version>/` feature sets."""
        return self.root / "feature_sets"

    @property
    def runs(self) -> Path:
        """`<run id>/` training runs."""
        return self.root / "runs"

    def bundles(self, name: str) -> Path:
        """`<run id>/` bundles of one data contract, and the `CURRENT` link to the newest."""
        return self.root / "bundles" / name

    def new_run(self, name: str) -> Path:
        """Make the folder of a new run: time, contract name and a random tail, so that names sort by time."""
        run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{name}-{secrets.token_hex(2)}"
        path = self.runs / run_id
        path.mkdir(parents=True)
        return path

    def run(self, run_id: str) -> Path:
        """The folder of a run; `latest` is the newest one that finished training.

        Raises:
            ConfigError: no such run.
        """
        return self._run_with("model.safetensors", run_id, "finished training")

    def interrupted_run(self, run_id: str) -> Path:
        """The folder of a run that left a checkpoint; `latest` is the newest of them.

        Raises:
            ConfigError: no such run.
        """
        return self._run_with("checkpoint.json", run_id, "left a checkpoint")

    def _run_with(self, file: str, run_id: str, state: str) -> Path:
        found = sorted(path.parent for path in self.runs.glob(f"*/{file}"))
        if run_id == "latest" and found:
            return found[-1]
        if (self.runs / run_id / file).is_file():
            return self.runs / run_id
        known = ", ".join(path.name for path in found[-5:]) or "none yet; start with `quadrank train`"
        raise ConfigError(f"{self.runs / run_id}: no run of that name {state}. Runs that did: {known}.")

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold the workspace for one job on `name`. Raises LockError (exit 7) when another job holds it."""
        folder = self.root / ".cache"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{name}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LockError(
                    f"{folder / name}.lock: another job on {name!r} is running in this folder. Wait for it to end."
                ) from None
            yield


def point_current_at(target: Path) -> Path:
    """Flip the `CURRENT` link beside `target` to it in one step; returns the link."""
    link = target.parent / "CURRENT"
    fresh = target.parent / f".CURRENT-{secrets.token_hex(4)}"
    fresh.symlink_to(target.name, target_is_directory=True)
    os.replace(fresh, link)
    return link


def git_revision() -> str:
    """The commit the code stands at, `-dirty` when changed since; `unknown` outside a checkout."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()
