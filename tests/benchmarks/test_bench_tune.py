"""`quadrank bench tune` at a tiny size."""

import json
from pathlib import Path

import pytest

from features.simulator.simulate import simulate
from pipelines.cli.commands import main

SMALL = ["train.epochs=1", "train.batch_size=256", "train.evaluations_per_epoch=2", "train.patience=0"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_schedules_are_compared_by_rows_and_by_their_winners(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate(tmp_path / "raw", rows=6_000, users=150, items=100, seed=1)
    space = tmp_path / "space.json"
    space.write_text(json.dumps({"startup_trials": 1, "screen": {"best": 1, "seeds": 1},
                                 "space": {"model.dropout": {"low": 0.0, "high": 0.4}}}))  # fmt: skip
    arguments = ["bench", "tune", "--root", str(tmp_path / "raw"), "--model", "conf/model/lr.yaml"]
    arguments += ["--space", str(space), "--trials", "2", "--repetitions", "1", "--seeds", "1"]
    arguments += ["--out", str(tmp_path / "out"), "--json"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, *(part for one in SMALL for part in ("--set", one))])
    assert ended.value.code == 0
    payload = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [result["name"] for result in payload["results"]] == ["screen", "median", "hyperband", "none"]
    assert payload["ratios"]["rows_of_hyperband_over_none"] <= 1
    assert all(0 < result["auc"] < 1 and result["rows"] > 0 for result in payload["results"])
    assert (tmp_path / "out" / "schedules.png").stat().st_size > 10_000
