"""Files that MLflow holds of a run: plots, settings, reports. They go with the run's folder; its numbers stay."""

from __future__ import annotations

from contextlib import suppress

from ctr.reporting.mlflow_flavor import MODEL
from ctr.reporting.mlflow_store import MlflowStore
from features.errors import StoreAwayError


def remove_artifacts(store: MlflowStore, run_id: str) -> None:
    """Remove the files of a run, but for those of a registered version, which go with the version.

    Where the store is away, or knows the run no more, nothing is removed.

    Args:
        store: that holds the run.
        run_id: MLflow's.
    """
    with suppress(StoreAwayError, store.mlflow.exceptions.MlflowException), store.contact() as client:
        files = store.artifacts(client.get_run(run_id).info.artifact_uri)
        for one in client.list_artifacts(run_id):
            if one.path != MODEL:
                files.delete_artifacts(one.path)
