"""What each stage took."""

from __future__ import annotations

import pytest

from pipelines.operate.clock import StageClock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StageClock:
    moments = iter([0.0, 2.0, 10.0, 15.0, 20.0, 23.0])
    monkeypatch.setattr("pipelines.operate.clock.time.monotonic", lambda: next(moments))
    monkeypatch.setattr("pipelines.operate.clock.peak_mib", lambda: 7.0)
    return StageClock()


def test_a_stage_that_raises_is_measured_and_one_that_runs_again_is_added(clock: StageClock) -> None:
    with clock.stage("features"):
        pass
    with pytest.raises(ValueError), clock.stage("train"):
        raise ValueError
    with clock.stage("train"):
        pass
    assert clock.seconds() == {"features": 2.0, "train": 8.0}
    assert clock.metrics()["stage.train.seconds"] == 8.0
    assert clock.metrics()["stage.features.peak_mib"] == 7.0
