"""Runs in MLflow: start one or resume it, log curves, numbers, figures and files to it, end it with its status."""

from __future__ import annotations

import getpass
import itertools
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ctr.reporting.entries import (
    LATER,
    PARENT,
    BeginRun,
    File,
    Known,
    LeftOpen,
    Params,
    Points,
    Status,
    Tag,
    later_id,
    now_ms,
)
from ctr.reporting.mlflow_store import MlflowStore
from ctr.reporting.outbox import Delivery, Outbox
from features.errors import ConfigError, StoreAwayError
from features.stopping import held

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PARAMS_A_CALL = 100
_LONGEST_PARAM = 6000
_LONGEST_TAG = 5000
_REFUSED = re.compile(r"[^\w.\- :/]")  # what MLflow takes in no name of a parameter or metric


class Tracker:
    """Writes one run at a time.

    Where there is an outbox, a store that goes away while a run is open does not end it: what is logged waits, and is
    sent in order when the store answers again, at the next call or by a later command.

    Args:
        root: work folder that holds the default store.
        outbox: folder of what waits, which need not exist; None raises StoreAwayError instead.
        begin: whether a run begins only where the store answers, or waits in the outbox with all that follows.

    Example:
        >>> tracker = Tracker(Path("."))
        >>> with tracker.run("quadrank-movielens", "first", tags={}, params={"train": {"epochs": 3}}):
        ...     tracker.log_curve_point(100, {"auc": 0.71})
    """

    def __init__(self, root: Path = Path(), outbox: Path | None = None, begin: Literal["now", "later"] = "now") -> None:
        self.store = MlflowStore(root)
        self.delivery = Delivery(self.store, None if outbox is None else Outbox(outbox))
        self._begin = begin
        self._run_id: str | None = None

    @property
    def run_id(self) -> str:
        """MLflow's id of the open run, or `later-…` until MLflow knows it.

        Raises:
            RuntimeError: outside of `run` and `resume`.
        """
        if self._run_id is None:
            raise RuntimeError("no MLflow run is open: log inside `with tracker.run(...)`")
        return self._run_id

    @contextmanager
    def run(
        self,
        experiment: str,
        run_name: str,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
        parent_run: str | BeginRun | None = None,
        begun_as: str | None = None,
    ) -> Iterator[Tracker]:
        """Open a run around the block: FINISHED after it, FAILED when it raises, KILLED when interrupted.

        Args:
            experiment: made when it does not exist.
            run_name: shown in the list of runs.
            tags: text by name.
            params: nested mappings are flattened to `train.batch_size`.
            parent_run: nests the run under this one: MLflow's id, or how it begins where MLflow may not know it yet.
            begun_as: `later_id()` that the caller has written down. Where an earlier process began a run as this one,
                and was killed before it was told MLflow's id, that run goes on and no second one begins.

        Raises:
            StoreAwayError: the store does not answer, and the run begins now or not at all.
            ConfigError: the store cannot be used, or the experiment was deleted in it.
        """
        own = begun_as or later_id()
        begun, known = beginning(own, experiment, run_name, tags, parent_run), Known()
        if self._begin == "later":
            known = self.delivery.put(begun)
        else:
            begun.deliver(self.store, known)
        run_id = known.run(own)
        with self._open(run_id):
            self._log_params(params)
            yield self

    @contextmanager
    def resume(self, run_id: str) -> Iterator[Tracker]:
        """Open an existing run again around the block, to add to it.

        Raises:
            StoreAwayError: the store does not answer, and the run goes on now or not at all.
            ConfigError: the tracking store does not know it.
        """
        running = Status(run=run_id, status="RUNNING", moment=now_ms())
        try:
            if self._begin == "now":
                self.delivery.require_store()
            self.delivery.put(running)
        except self.store.mlflow.exceptions.MlflowException as error:
            raise ConfigError(
                f"MLflow run {run_id}: not in the tracking store {self.store.shown} ({error.message}). Set "
                "MLFLOW_TRACKING_URI to the store the run began in, or start a new run."
            ) from None
        with self._open(run_id):
            yield self

    def has_begun(self, run_id: str) -> bool:
        """Whether MLflow knows a run by this id, or is told to begin it by what waits; else it must begin again."""
        waiting = [] if self.delivery.outbox is None else self.delivery.outbox.waiting()
        return not run_id.startswith(LATER) or any(isinstance(one, BeginRun) and one.run == run_id for one in waiting)

    def end_if_running(self, run_id: str, status: Literal["FINISHED", "KILLED"] = "KILLED") -> None:
        """End a run that no process works in, if it looks alive; where the store is away, later."""
        self.delivery.put(LeftOpen(run=run_id, moment=now_ms(), status=status))

    def end(self, run_id: str, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """End a run as of now, whatever it looks like; where the store is away, later."""
        self.delivery.put(Status(run=run_id, status=status, moment=now_ms()))
        self.delivery.send()

    def log_curve_point(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to each of the named curves."""
        taken = _taken_names(values)
        numbers = {taken[name]: float(value) for name, value in values.items()}
        self.delivery.put(Points(run=self.run_id, moment=now_ms(), step=step, values=numbers))

    def logged_steps(self, name: str) -> set[int]:
        """Steps at which the open run has a point of this curve, or one that waits in the outbox.

        Raises:
            StoreAwayError: the store does not answer, and there is no outbox.
        """
        name = _taken(name)
        waiting = [] if self.delivery.outbox is None else self.delivery.outbox.waiting()
        steps = {entry.step for entry in waiting if isinstance(entry, Points) and name in entry.values}
        run_id = self.delivery.known().run(self.run_id)
        if run_id.startswith(LATER):
            return steps
        try:
            with self.store.contact() as client:
                return steps | {point.step for point in client.get_metric_history(run_id, name)}
        except StoreAwayError:
            if self.delivery.outbox is None:
                raise
            return steps

    def log_metrics(self, values: Mapping[str, float]) -> None:
        """Record final numbers."""
        self.log_curve_point(0, values)

    def log_figure(self, figure: Figure, name: str) -> None:
        """Store a plot as `plots/<name>`."""
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / name
            figure.savefig(path, dpi=150)
            self.log_file(path, "plots")

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Store a copy of a file, below `folder` of the run's artifacts."""
        self.delivery.put(File(run=self.run_id, path=path, folder=folder))

    def set_tag(self, name: str, value: str) -> None:
        """Tag the open run."""
        self.delivery.put(Tag(run=self.run_id, name=name, value=value))

    @contextmanager
    def _open(self, run_id: str) -> Iterator[None]:
        self._run_id = run_id
        try:
            yield
        except Exception as error:
            self.set_tag("error", f"{type(error).__name__}: {error}"[:_LONGEST_TAG])
            self.end(run_id, "FAILED")
            raise
        except BaseException:
            self.end(run_id, "KILLED")
            raise
        else:
            with held():  # a signal waits until MLflow knows that the run is finished
                self.end(run_id, "FINISHED")
        finally:
            self._run_id = None

    def _log_params(self, params: Mapping[str, Any]) -> None:
        named = dict(_flattened(params))
        taken = _taken_names(named)
        flat = [(taken[name], str(value)[:_LONGEST_PARAM]) for name, value in named.items()]
        for start in range(0, len(flat), _PARAMS_A_CALL):
            self.delivery.put(Params(run=self.run_id, values=dict(flat[start : start + _PARAMS_A_CALL])))


def beginning(
    own: str, experiment: str, run_name: str, tags: Mapping[str, str], parent_run: str | BeginRun | None = None
) -> BeginRun:
    """How a run begins as of now; arguments as of `Tracker.run`, `own` being its id until MLflow gives it one."""
    nested = {PARENT: parent_run} if isinstance(parent_run, str) else {}
    return BeginRun(
        run=own,
        experiment=experiment,
        name=run_name,
        tags={**_origin(tags.get("git_revision")), **tags, **nested},
        begun=now_ms(),
        parent=parent_run if isinstance(parent_run, BeginRun) else None,
    )


def _origin(git_revision: str | None) -> dict[str, str]:
    """The tags that MLflow's own list of runs shows as user, source and version."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        # A container may run under a user id that has no name.
        user = str(os.getuid())
    tags = {"mlflow.user": user, "mlflow.source.name": Path(sys.argv[0]).name, "mlflow.source.type": "LOCAL"}
    return {**tags, "mlflow.source.git.commit": git_revision} if git_revision else tags


def _taken(name: str) -> str:
    """A name as MLflow takes it: labels and columns of a contract, which are part of some, may be called anything."""
    return _REFUSED.sub("_", name)


def _taken_names(names: Iterable[str]) -> dict[str, str]:
    """A name that MLflow takes for each: those that differ in refused signs alone are numbered, in their own order.

    Example:
        >>> _taken_names(["QIN+", "QIN*", "QIN_", "DIN+"])
        {'QIN_': 'QIN_', 'DIN+': 'DIN_', 'QIN*': 'QIN_ 2', 'QIN+': 'QIN_ 3'}
    """
    # A name that is taken as it is keeps it.
    in_order = sorted(set(names), key=lambda name: (name != _taken(name), name))
    found: dict[str, str] = {}
    used: set[str] = set()
    for name in in_order:
        numbered = (f"{_taken(name)} {number}" for number in itertools.count(2))
        found[name] = next(one for one in itertools.chain([_taken(name)], numbered) if one not in used)
        used.add(found[name])
    return found


def _flattened(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in params.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
