"""The folders that commands write to, and the locks that keep two jobs apart."""

from __future__ import annotations

import json
import secrets
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from features.errors import ConfigError, DataError
from pipelines.locks import locked

CONFIG = "config.json"  # written when a run begins
METRICS = "metrics.json"  # written when it was trained, calibrated and evaluated
VERDICT = ".gate.json"  # ends the name of the file beside a bundle's folder that holds what the gate found
TRACKED = "mlflow_run_id"  # in a run's folder: the id of its MLflow run
LOCK = ".lock"  # in a run's folder: who trains in it
TUNE = "tune"  # below runs/: sweeps, and a folder of trials each
MOMENT = "%Y%m%dT%H%M%SZ"  # in the names of runs, UTC


@dataclass(frozen=True)
class Workspace:
    """One folder (the working folder by default) with feature sets, runs, bundles and the MLflow store."""

    root: Path = Path()

    @property
    def feature_sets(self) -> Path:
        """`<name>/<version>/` feature sets."""
        return self.root / "feature_sets"

    @property
    def apart(self) -> Workspace:
        """Where feature sets lie of trials that search settings of the data; none of them is in use."""
        return Workspace(self.root / ".cache")

    @property
    def runs(self) -> Path:
        """`<run id>/` training runs; `tune/<study>/<run id>/` the trials of sweeps."""
        return self.root / "runs"

    def inside(self, path: Path) -> str:
        """A path below the workspace as records keep it: relative, with slashes. A folder in it may be a link."""
        place, root = path.absolute(), self.root.absolute()
        if not place.is_relative_to(root):
            place, root = path.resolve(), self.root.resolve()
        return place.relative_to(root).as_posix()

    def job(self, name: str, model: str) -> Path:
        """What the stages of `quadrank run` did last, of one data contract and model file."""
        return self.root / "jobs" / name / f"{model}.json"

    def bundles(self, name: str) -> Path:
        """`<run id>/` bundles of one data contract, and two pointers.

        `CURRENT` names the bundle that passed the gate last, `NEWEST` the bundle that was exported last.
        """
        return self.root / "bundles" / name

    @property
    def comparisons(self) -> Path:
        """`<study>/` the trials and results of a study, and its lock while it runs."""
        return self.root / "comparisons"

    def status(self, name: str) -> Path:
        """How the last job of one data contract ended, for whoever watches it."""
        return self.root / "status" / name

    def new_run(self, name: str) -> Path:
        """Make the folder of a new run: time (UTC), contract name and a random tail, so that names sort by time."""
        return _new_folder(self.runs, name)

    def new_trial(self, study: str, name: str) -> Path:
        """Make the folder of a new trial of a sweep."""
        return _new_folder(self.runs / TUNE / study, name)

    def run(self, run_id: str) -> Path:
        """The folder of a run that was trained, calibrated and evaluated; `latest` is the newest of them.

        Raises:
            ConfigError: no such run; it was not evaluated; it is a trial of a sweep.
        """
        if run_id != "latest" and (self.runs / run_id / METRICS).is_file():
            return self.runs / run_id
        done = sorted(path.parent for path in self.runs.glob(f"*/{METRICS}"))
        if run_id == "latest" and done:
            return done[-1]
        if study := self._study_of(run_id):
            best = shlex.quote(f"{self.runs / TUNE / study}.best.yaml")
            raise ConfigError(
                f"{run_id}: a trial of the sweep {study!r}. Trials are measured on validation rows alone, and are not "
                f"evaluated. `quadrank train --data … --model {best}` trains the best one's settings as a run."
            )
        if (self.runs / run_id / CONFIG).is_file():
            raise ConfigError(
                f"{self.runs / run_id}: ended before its evaluation. Finish it with `quadrank train --resume "
                f"{run_id}` and the options that it was started with."
            )
        if run_id == "latest":
            raise ConfigError(
                f"{self.runs}: holds no finished run. `quadrank train` makes one; --work names another workspace."
            )
        raise ConfigError(f"{self.runs / run_id}: no finished run of that name. {_known(done, 'Finished runs')}")

    def unfinished_run(self, run_id: str) -> Path:
        """The folder of a run that was started and not evaluated yet; `latest` is the newest of them.

        Raises:
            ConfigError: no such run, or it is finished.
        """
        if run_id != "latest" and (self.runs / run_id / METRICS).is_file():
            raise ConfigError(
                f"{self.runs / run_id}: finished, and a finished run is never reopened. Leave out --resume to train "
                "a new run."
            )
        found = [path.parent for path in self.runs.glob(f"*/{CONFIG}") if not (path.parent / METRICS).is_file()]
        if run_id == "latest" and found:
            return max(found)
        if run_id == "latest":
            raise ConfigError(f"{self.runs}: holds no unfinished run. Leave out --resume to start one.")
        if self.runs / run_id in found:
            return self.runs / run_id
        raise ConfigError(
            f"{self.runs / run_id}: no unfinished run of that name. {_known(sorted(found), 'Unfinished runs')}"
        )

    def _study_of(self, run_id: str) -> str | None:
        """The sweep that a trial belongs to, by its id or by its path below runs/."""
        name = Path(run_id).name
        found = next((self.runs / TUNE).glob(f"*/{name}/{CONFIG}"), None) if name and "*" not in name else None
        return found.parent.parent.name if found else None

    @contextmanager
    def lock(self, name: str, wait: float = 0.0) -> Iterator[None]:
        """Hold a name of the workspace for one job, so that no other job uses it.

        Args:
            name: e.g. of a contract.
            wait: seconds to wait for another job that holds it.

        Raises:
            LockError: another job holds it, still after `wait` (exit 7).
        """
        with locked(self.root / ".cache" / f"{name}.lock", f"another job on {name!r} is running in this folder", wait):
            yield


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Hold a run folder for the process that trains in it. Raises LockError (exit 7) when another does."""
    with locked(run_dir / LOCK, "another process is training this run"):
        yield


def started_at(run_id: str) -> datetime | None:
    """When a run began, by its id; None if the id has no time."""
    try:
        return datetime.strptime(run_id.split("-")[0], MOMENT).replace(tzinfo=UTC)
    except ValueError:
        return None


def config_of(run_dir: Path) -> dict[str, Any]:
    """What a run was started with: `preset`, `contract_fingerprint`, `feature_set` and more.

    Raises:
        DataError: the file is gone, or was broken since it was written.
    """
    kinds = {"preset": dict, "contract_fingerprint": str, "feature_set": str}
    return _record(run_dir / CONFIG, kinds, "settings, contract and feature set")


def metrics_of(run_dir: Path) -> dict[str, Any]:
    """What an evaluated run was measured at: `metrics` by split, `tasks` of further labels, and `controls`.

    Raises:
        DataError: the file is gone, or was broken since it was written.
    """
    return _record(run_dir / METRICS, {"metrics": dict, "tasks": dict, "controls": dict}, "metrics and controls")


def _record(path: Path, kinds: Mapping[str, type], of_what: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        content = None
    if not isinstance(content, dict) or not all(isinstance(content.get(key), kind) for key, kind in kinds.items()):
        raise DataError(
            f"{path}: is no record of a run's {of_what} any more. Put the file back as it was, or train again."
        )
    return content


def feature_set_of(run_dir: Path, workspace: Workspace) -> Path:
    """The feature set that a run was trained on, by its config. Raises DataError as `config_of`."""
    return workspace.root / str(config_of(run_dir)["feature_set"])


def _new_folder(parent: Path, name: str) -> Path:
    moment = datetime.now(UTC).strftime(MOMENT)
    path = parent / f"{moment}-{name}-{secrets.token_hex(2)}"
    path.mkdir(parents=True)
    return path


def _known(runs: list[Path], what: str) -> str:
    return f"{what}: {', '.join(path.name for path in runs[-5:]) or 'none; start with `quadrank train`'}."
