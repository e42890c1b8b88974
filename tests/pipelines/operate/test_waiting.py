"""What runs could not tell MLflow is found and sent, the oldest run first."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctr.reporting.outbox import Outbox
from pipelines.operate.waiting import send_waiting, waiting_by_run
from pipelines.workspace import Workspace
from tests.ctr.reporting.test_outbox import Store, names, tag


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store()
    monkeypatch.setattr("pipelines.operate.waiting.MlflowStore", lambda root: store)
    return store


def test_outboxes_of_runs_are_sent_the_oldest_first(tmp_path: Path, store: Store) -> None:
    for run in ("20260102T000000Z-b", "20260101T000000Z-a", "tune/study/20260103T000000Z-c"):
        folder = tmp_path / "runs" / run / "outbox"
        folder.parent.mkdir(parents=True)
        Outbox(folder).append(tag(run[-1]))
    assert sorted(waiting_by_run(Workspace(tmp_path)).values()) == [1, 1, 1]
    sent = send_waiting(Workspace(tmp_path))
    assert (sent.entries, sent.waiting, sent.refused, sent.away) == (3, 0, 0, None)
    assert names(store) == ["a", "b", "c"]


def test_what_cannot_be_sent_yet_is_counted_with_the_reason(tmp_path: Path, store: Store) -> None:
    folder = tmp_path / "runs" / "a" / "outbox"
    folder.parent.mkdir(parents=True)
    Outbox(folder).append(tag("a"))
    store.away = True
    sent = send_waiting(Workspace(tmp_path))
    assert (sent.entries, sent.waiting, sent.away) == (0, 1, "server: does not answer")
