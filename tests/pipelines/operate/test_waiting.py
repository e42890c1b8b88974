"""What runs could not tell MLflow is found and sent, the oldest run first."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctr.reporting.outbox import Outbox
from features.errors import StoreAwayError
from pipelines.operate.waiting import require_answer, send_waiting, waiting_by_run
from pipelines.workspace import Workspace
from tests.ctr.reporting.test_outbox import Store, names, tag


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    store = Store()
    monkeypatch.setattr("pipelines.operate.waiting.MlflowStore", lambda root: store)
    return store


def test_outboxes_of_runs_are_sent_the_oldest_first(tmp_path: Path, store: Store) -> None:
    for run in ("20260102T000000Z-b", "20260101T000000Z-a", "tune/study/20251231T000000Z-c"):
        folder = tmp_path / "runs" / run / "outbox"
        folder.parent.mkdir(parents=True)
        Outbox(folder).append(tag(run[-1]))
    assert sorted(waiting_by_run(Workspace(tmp_path)).values()) == [1, 1, 1]
    sent = send_waiting(Workspace(tmp_path))
    assert (sent.entries, sent.waiting, sent.refused, sent.away) == (3, 0, 0, None)
    assert names(store) == ["c", "a", "b"]


def test_what_cannot_be_sent_yet_is_counted_with_the_reason(tmp_path: Path, store: Store) -> None:
    for run in ("a", "b"):
        folder = tmp_path / "runs" / run / "outbox"
        folder.parent.mkdir(parents=True)
        Outbox(folder).append(tag(run))
    store.away = True
    sent = send_waiting(Workspace(tmp_path))
    assert (sent.entries, sent.waiting, sent.away) == (0, 2, "server: does not answer")
    assert store.calls == 1, "each asking of a store that is away may take a timeout"


def test_a_job_that_may_tell_later_does_not_ask(tmp_path: Path, store: Store) -> None:
    store.away = True
    require_answer(Workspace(tmp_path), "later")
    with pytest.raises(StoreAwayError):
        require_answer(Workspace(tmp_path), "now")
