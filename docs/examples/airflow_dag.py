"""The nightly job as an Airflow 3 DAG of one task, tried again only where its exit code says that this helps."""

from __future__ import annotations

import subprocess
from datetime import datetime, timedelta

from airflow.exceptions import AirflowException, AirflowFailException, AirflowSkipException
from airflow.sdk import dag, task

WORK = "/srv/ranking"
JOB = [".venv/bin/quadrank", "run", "--data", "conf/data/yours.yaml", "--log", "log/job.jsonl"]
DONE, DONE_WITH_DRIFT, LOCKED, TRY_AGAIN = 0, 3, 7, 75


@dag(
    dag_id="quadrank_yours",
    schedule="0 3 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 3, "retry_delay": timedelta(minutes=20)},
)
def quadrank_yours() -> None:
    """Features, training, gate, promotion."""

    @task(execution_timeout=timedelta(hours=8))
    def run() -> None:
        code = subprocess.run(JOB, cwd=WORK).returncode
        if code == LOCKED:
            raise AirflowSkipException("another job on this data runs")
        if code == TRY_AGAIN:
            raise AirflowException("something is away for now: try again")
        if code not in (DONE, DONE_WITH_DRIFT):
            raise AirflowFailException(f"exit {code}: the same command would fail again")

    run()


quadrank_yours()
