"""A sweep in MLflow: the runs of trials below the run of their study, as other workers find and close them."""

from __future__ import annotations

from ctr.reporting.entries import PARENT, BeginRun
from ctr.reporting.mlflow_store import MlflowStore

STUDY, TRIAL, STAGE, STATE = "study", "trial", "stage", "trial_state"


def close_trial(store: MlflowStore, parent: str | BeginRun, stage: str, trial: int, state: str) -> None:
    """Close the run of a trial whose worker died: it would stand there as running for ever.

    Nothing happens where the worker died before it opened the run, or MLflow knows none of the study's runs.

    Args:
        store: where the study is tracked.
        parent: run of the study, or how it begins where MLflow may not know it yet.
        stage: of the study that the trial belongs to, since stages number their trials each.
        trial: its number.
        state: what became of it: `retried` or `failed`.

    Raises:
        StoreAwayError: the store does not answer.
    """
    with store.contact() as client:
        for above in parent.found(store) if isinstance(parent, BeginRun) else [client.get_run(parent)]:
            of_study = f"tags.`{PARENT}` = '{above.info.run_id}'"
            chosen = f"{of_study} and tags.{TRIAL} = '{trial}' and tags.{STAGE} = '{stage}'"
            for run in client.search_runs([above.info.experiment_id], chosen):
                client.set_tag(run.info.run_id, STATE, state)
                if run.info.status == "RUNNING":
                    client.set_terminated(run.info.run_id, "KILLED")
