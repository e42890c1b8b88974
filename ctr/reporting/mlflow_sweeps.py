"""A sweep in MLflow: the runs of trials below the run of their study, as other workers find and close them."""

from __future__ import annotations

from ctr.reporting.mlflow_store import MlflowStore

PARENT, STUDY, TRIAL, STAGE, STATE = "mlflow.parentRunId", "study", "trial", "stage", "trial_state"


def close_trial(store: MlflowStore, parent: str, stage: str, trial: int, state: str) -> None:
    """Close the run of a trial whose worker died: it would stand there as running for ever.

    Nothing happens where the worker died before it opened the run.

    Args:
        store: where the study is tracked.
        parent: run of the study.
        stage: of the study that the trial belongs to, since stages number their trials each.
        trial: its number.
        state: what became of it: `retried` or `failed`.
    """
    experiment = store.client.get_run(parent).info.experiment_id
    chosen = f"tags.`{PARENT}` = '{parent}' and tags.{TRIAL} = '{trial}' and tags.{STAGE} = '{stage}'"
    for run in store.client.search_runs([experiment], chosen):
        store.client.set_tag(run.info.run_id, STATE, state)
        if run.info.status == "RUNNING":
            store.client.set_terminated(run.info.run_id, "KILLED")
