"""`--as-of` and `--window` reach the build from every command that builds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from features.errors import LockError
from features.simulator.simulate import simulate
from pipelines.cli.commands import main
from tests.pipelines.cli.test_commands import ROOT, SMALL, Shell

DAYS = ["--set", "data.split={by: days, valid: 1, test: 1}"]


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Shell(capsys, tmp_path)


@pytest.mark.parametrize("command", ["features", "train", "run", "tune", "inspect-embeddings"])
@pytest.mark.parametrize(
    ("options", "expected"),
    [(["--as-of", "2025-04-10", "--window", "8d"], ("2025-04-10", 8)), ([], (None, None))],
)
def test_the_days_reach_the_build(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, options: list[str], expected: Any
) -> None:
    asked = []

    def stop(contract: Any, out: Path, as_of: str | None, window: int | None, wait: float) -> None:
        asked.append((as_of, window))
        raise LockError("seen")

    monkeypatch.setattr("pipelines.job.build.build_feature_set", stop)
    study = ["--study", "s"] if command == "tune" else []
    simulate(tmp_path, rows=3_000, users=150, items=100, seed=1)  # `run` looks at the files before it builds
    where = ["--data", "conf/data/simulated.yaml", "--root", str(tmp_path), "--work", str(tmp_path)]
    assert shell(command, *where, *options, *study)[0] == 7
    assert asked == [expected]


def test_train_goes_on_with_the_windowed_feature_set(shell: Shell, tmp_path: Path) -> None:
    """And the next day still finds it: nothing has built the whole log in between."""
    simulate(tmp_path / "raw", rows=6_000, users=150, items=100, seed=1)
    where = ["--data", "conf/data/simulated.yaml", "--root", tmp_path / "raw", "--work", tmp_path, *DAYS]
    day = ["--as-of", "2025-04-10", "--window", "8d"]
    code, built = shell("features", *where, *day)
    assert (code, built["status"]) == (0, "done"), shell.error
    code, trained = shell("train", *where, *day, *SMALL, "--set", "train.batch_size=64")
    assert (code, trained["feature_set"]) == (0, built["feature_set"]), shell.error
    assert "reused, input unchanged" in shell.error
    assert len(list((tmp_path / "feature_sets" / "simulated").glob("*/MANIFEST.json"))) == 1


def test_a_window_that_is_none_is_refused(shell: Shell, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", "--data", "conf/data/simulated.yaml", "--root", str(tmp_path), "--window", "two weeks"])
    assert stop.value.code == 2
