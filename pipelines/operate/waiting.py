"""What runs could not tell MLflow, found in their folders and sent, the oldest run first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ctr.reporting.mlflow_store import MlflowStore
from ctr.reporting.outbox import OUTBOX, Outbox
from features.errors import StoreAwayError
from pipelines.workspace import TUNE, Workspace


@dataclass(frozen=True)
class Sent:
    """What an attempt to send has done.

    Args:
        entries: that were sent.
        waiting: that still wait.
        refused: that MLflow answered with an error, over all runs.
        away: why nothing more could be sent; None where the store answered.
    """

    entries: int
    waiting: int
    refused: int
    away: str | None


def outboxes(workspace: Workspace) -> list[Outbox]:
    """Outboxes of all runs and trials, the oldest run first."""
    folders = [*workspace.runs.glob(f"*/{OUTBOX}"), *(workspace.runs / TUNE).glob(f"*/*/{OUTBOX}")]
    return [Outbox(folder) for folder in sorted(folders, key=lambda folder: folder.parent.name)]


def send_waiting(workspace: Workspace) -> Sent:
    """Send what waits in all runs, in order. The store is asked for nothing where nothing waits."""
    store, sent, away = MlflowStore(workspace.root), 0, None
    found = outboxes(workspace)
    for outbox in found:
        if outbox.waiting():
            try:
                sent += outbox.send(store)
            except StoreAwayError as error:
                away = str(error)
                break
    return Sent(sent, sum(len(one.waiting()) for one in found), sum(len(one.refused()) for one in found), away)


def say_sent(sent: Sent, console: Console) -> None:
    """Tell people what was sent of earlier runs; nothing where nothing waited."""
    if sent.entries:
        console.print(f"sent {sent.entries:,} entries of earlier runs to MLflow, which was away")
    if sent.waiting:
        console.print(f"{sent.waiting:,} entries of earlier runs wait for MLflow: {sent.away}", style="yellow")


def waiting_by_run(workspace: Workspace) -> dict[Path, int]:
    """Folders of runs with something that waits, and how many entries."""
    counted = {outbox.folder.parent: len(outbox.waiting()) for outbox in outboxes(workspace)}
    return {run: count for run, count in counted.items() if count}
