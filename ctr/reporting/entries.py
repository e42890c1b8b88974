"""What is told to an MLflow store, one entry a call: each can be kept in a file, and sent twice with one effect.

An entry has its own moment or its own id, so that the store can tell a repetition from something new: a point of a
curve is one row by (name, moment, step, value), a run and a registered version are found by the id in their tags.
"""

from __future__ import annotations

import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ctr.reporting.mlflow_flavor import BUNDLE, MODEL, save_flavor
from ctr.reporting.mlflow_store import MlflowStore
from ctr.serving.bundle import BundleManifest, open_bundle
from features.progress import say

BEGUN_BY = "quadrank.begun_by"  # tag of a run: id of the entry that began it
PARENT = "mlflow.parentRunId"  # tag of a run: the run that it is nested under
REGISTERED_BY = "registered_by"  # tag of a version: id of the entry that registered it
LATER = "later-"  # begins the id of a run that MLflow does not know yet
PENDING = "pending-"  # begins the number of a version that is not registered yet


def later_id() -> str:
    """An id of ours for a run that MLflow does not know yet."""
    return f"{LATER}{new_id()}"


def new_id() -> str:
    """An id that no other entry has."""
    return uuid.uuid4().hex


def now_ms() -> int:
    """Milliseconds since 1970, as MLflow counts."""
    return int(time.time() * 1000)


class Known(BaseModel):
    """What the store has answered to earlier entries.

    Args:
        runs: MLflow's ids of runs that began as `later-…`.
        versions: numbers of versions that were `pending-…`.
    """

    runs: dict[str, str] = {}
    versions: dict[str, str] = {}

    def run(self, run_id: str) -> str:
        """MLflow's id of a run."""
        return self.runs.get(run_id, run_id)


class _Entry(BaseModel, ABC):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @abstractmethod
    def deliver(self, store: MlflowStore, known: Known) -> None:
        """Tell the store."""

    def deliver_late(self, store: MlflowStore, known: Known) -> None:
        """Tell the store of what has waited."""
        self.deliver(store, known)


class BeginRun(_Entry):
    """Begin a run. `run` is its id until MLflow gives it one, and `parent` the run above it that may not have begun."""

    kind: Literal["begin"] = "begin"
    run: str
    experiment: str
    name: str
    tags: dict[str, str]
    begun: int
    parent: BeginRun | None = None

    def deliver(self, store: MlflowStore, known: Known) -> None:
        """Create it, or find it where an earlier call created it and its answer was lost."""
        nested = {}
        if self.parent is not None:
            self.parent.deliver(store, known)
            nested = {PARENT: known.run(self.parent.run)}
        with store.contact() as client:
            found = self.found(store)
            if not found:
                tags = {**self.tags, **nested, BEGUN_BY: self.run}
                found = [client.create_run(store.experiment_id(self.experiment), self.begun, tags, self.name)]
            known.runs[self.run] = str(found[0].info.run_id)

    def found(self, store: MlflowStore) -> list[Any]:
        """The run in MLflow, alone in a list; none where it has not begun."""
        with store.contact() as client:
            return _begun_as(client, [store.experiment_id(self.experiment)], self.run)


class Points(_Entry):
    """One point of each of some curves."""

    kind: Literal["points"] = "points"
    run: str
    moment: int
    step: int
    values: dict[str, float]

    def deliver(self, store: MlflowStore, known: Known) -> None:
        """Add them; a point of the same moment, step and value is one with that before."""
        with store.contact() as client:
            metric = store.mlflow.entities.Metric
            points = [metric(name, value, self.moment, self.step) for name, value in self.values.items()]
            client.log_batch(known.run(self.run), metrics=points)


class Params(_Entry):
    """Settings of a run, at most a hundred."""

    kind: Literal["params"] = "params"
    run: str
    values: dict[str, str]

    def deliver(self, store: MlflowStore, known: Known) -> None:
        """Record them."""
        with store.contact() as client:
            params = [store.mlflow.entities.Param(name, value) for name, value in self.values.items()]
            client.log_batch(known.run(self.run), params=params)


class Tag(_Entry):
    """One tag of a run."""

    kind: Literal["tag"] = "tag"
    run: str
    name: str
    value: str

    def deliver(self, store: MlflowStore, known: Known) -> None:
        """Set it."""
        with store.contact() as client:
            client.set_tag(known.run(self.run), self.name, self.value)


class Status(_Entry):
    """The state of a run, and when it came to it."""

    kind: Literal["status"] = "status"
    run: str
    status: Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
    moment: int

    def deliver(self, store: MlflowStore, known: Known) -> None:
        """Set it."""
        with store.contact() as client:
            if self.status == "RUNNING":
                client.update_run(known.run(self.run), status=self.status)
            else:
                client.set_terminated(known.run(self.run), self.status, self.moment)


class LeftOpen(_Entry):
    """A run that no process will go on with, as of a moment."""

    kind: Literal["left"] = "left"
    run: str
    moment: int
    status: Literal["FINISHED", "KILLED"] = "KILLED"

    def deliver(self, store: MlflowStore, known: Known) -> None:
        """End it if it looks alive; one that the store does not know, or that has ended, is left as it is."""
        with suppress(store.mlflow.exceptions.MlflowException), store.contact() as client:
            run_id = known.run(self.run)
            if run_id.startswith(LATER):  # whoever began it was killed before it was told MLflow's id
                experiments = [one.experiment_id for one in client.search_experiments()]
                found = _begun_as(client, experiments, run_id)
            else:
                found = [client.get_run(run_id)]
            for run in found:
                if run.info.status == "RUNNING":
                    client.set_terminated(run.info.run_id, self.status, self.moment)


class File(_Entry):
    """A file that becomes an artifact in `folder`; the outbox keeps a copy of it."""

    kind: Literal["file"] = "file"
    run: str
    path: Path
    folder: str | None

    def deliver(self, store: MlflowStore, known: Known) -> None:
        """Copy it into the run's artifacts."""
        with store.contact() as client:
            client.log_artifact(known.run(self.run), str(self.path), self.folder)


class Register(_Entry):
    """A bundle that becomes the next version of a registered model; it is read where it lies."""

    kind: Literal["register"] = "register"
    id: str
    run: str
    bundle: Path
    name: str

    def deliver(self, store: MlflowStore, known: Known) -> None:
        """Copy the bundle into the run's artifacts and register them, unless an earlier call has.

        Raises:
            DataError: not a bundle, or a changed one.
        """
        opened = open_bundle(self.bundle)
        run_id = known.run(self.run)
        with store.contact() as client:
            found = client.search_model_versions(f"name = '{self.name}' and tags.{REGISTERED_BY} = '{self.id}'")
            if not found:
                with tempfile.TemporaryDirectory() as scratch:
                    flavor = Path(scratch) / MODEL
                    save_flavor(opened.path, flavor, run_id)
                    client.log_artifacts(run_id, str(flavor), MODEL)
                client.log_artifacts(run_id, str(opened.path), f"{MODEL}/{BUNDLE}")
                make_model(store, self.name)
                tags = {**version_tags(opened.manifest), REGISTERED_BY: self.id}
                found = [client.create_model_version(self.name, f"runs:/{run_id}/{MODEL}", run_id, tags)]
            known.versions[f"{PENDING}{self.id}"] = str(found[0].version)


class MoveAlias(_Entry):
    """Let an alias of a registered model name a version."""

    kind: Literal["alias"] = "alias"
    name: str
    alias: str
    version: str
    moment: int

    def deliver(self, store: MlflowStore, known: Known) -> None:
        """Move it, whatever the clock said when it was moved before."""
        with store.contact() as client:
            version = known.versions.get(self.version, self.version)
            client.set_registered_model_alias(self.name, self.alias, version)
            client.set_registered_model_tag(self.name, self._moved, str(self.moment))

    def deliver_late(self, store: MlflowStore, known: Known) -> None:
        """Move it, unless it was moved at a later moment than this: what waited a day must not undo what came since."""
        with store.contact() as client:
            moved = int(client.get_registered_model(self.name).tags.get(self._moved, 0))
        if moved > self.moment:
            version = known.versions.get(self.version, self.version)
            text = f"models:/{self.name}@{self.alias} was moved since: version {version}, which waited, does not get it"
            say(text)
            return
        self.deliver(store, known)

    @property
    def _moved(self) -> str:
        """Tag of the model: the moment of its last move."""
        return f"{self.alias}.moved_ms"


Entry = Annotated[
    BeginRun | Points | Params | Tag | Status | LeftOpen | File | Register | MoveAlias, Field(discriminator="kind")
]


def _begun_as(client: Any, experiments: list[str], own: str) -> list[Any]:
    """The run of these experiments that began as `later-…`; none where none did."""
    return list(client.search_runs(experiments, f"tags.`{BEGUN_BY}` = '{own}'", max_results=1))


def make_model(store: MlflowStore, name: str) -> None:
    """Make a registered model where there is none of this name."""
    try:
        store.client.create_registered_model(name)
    except store.mlflow.exceptions.MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def version_tags(manifest: BundleManifest) -> dict[str, str]:
    """Tags of the version that a bundle becomes."""
    metrics = {
        f"{split}_{name}": str(value) for split, values in manifest.metrics.items() for name, value in values.items()
    }
    return {
        "model_version": manifest.model_version,
        "feature_set": manifest.feature_set,
        "contract_fingerprint": manifest.fingerprint,
        "git_revision": manifest.git_revision,
        **metrics,
    }
