"""What MLflow holds of a run that is removed, on a temporary SQLite store."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from ctr.reporting.mlflow_runs import Tracker
from pipelines.operate.artifacts import remove_artifacts


def test_files_go_and_those_of_a_registered_version_and_all_numbers_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    note = tmp_path / "note.json"
    note.write_text("{}")
    tracker = Tracker(tmp_path)
    with tracker.run("quadrank-toy", "first", {}, {}):
        run_id = tracker.run_id
        tracker.log_figure(Figure(), "curve.png")
        for folder in ("run", "model/bundle"):
            tracker.log_file(note, folder)
        tracker.log_file(note)
        tracker.log_metrics({"auc": 0.5})
    remove_artifacts(tracker.store, run_id)
    client = tracker.store.client
    assert [one.path for one in client.list_artifacts(run_id)] == ["model"]
    assert [one.path for one in client.list_artifacts(run_id, "model/bundle")] == ["model/bundle/note.json"]
    assert client.get_run(run_id).data.metrics == {"auc": 0.5}
    remove_artifacts(tracker.store, "0" * 32)  # of a store that was emptied since
