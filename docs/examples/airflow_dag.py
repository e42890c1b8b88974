"""The nightly job as an Airflow 3 DAG of one task, tried again only where its exit code says that this helps."""

from __future__ import annotations

import signal
import subprocess
from datetime import datetime, timedelta

from airflow.exceptions import AirflowException, AirflowFailException, AirflowSkipException
from airflow.sdk import dag, task

WORK = "/srv/ranking"
GUARDS = ["--set", "data.checks.newest_day=error", "--set", "data.checks.max_age=36h"]
JOB = [".venv/bin/quadrank", "run", "--data", "conf/data/yours.yaml", "--log", "log/job.jsonl", *GUARDS]
DONE, DONE_WITH_DRIFT, LOCKED, TRY_AGAIN = 0, 3, 7, 75
SECONDS_TO_SAVE = 15  # the job needs nine


def exit_code_of_the_job() -> int:
    """Run the job; where Airflow ends the task, or its time is over, the job is told, and saves where it stands."""
    with subprocess.Popen(JOB, cwd=WORK) as job:
        signal.signal(signal.SIGTERM, lambda *_: job.terminate())
        try:
            return job.wait()
        except BaseException:
            job.terminate()
            try:
                job.wait(SECONDS_TO_SAVE)
            except subprocess.TimeoutExpired:
                job.kill()
            raise


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
        code = exit_code_of_the_job()
        if code == LOCKED:
            raise AirflowSkipException("another job on this data runs")
        if code == TRY_AGAIN or code < 0:
            raise AirflowException(f"exit {code}: stopped, killed, or something is away for now: try again")
        if code not in (DONE, DONE_WITH_DRIFT):
            raise AirflowFailException(f"exit {code}: the same command would fail again")

    run()


quadrank_yours()
