"""What is measured of the literal reference, at toy sizes."""

import pytest

from benchmarks.jobs import literal
from tests.benchmarks.shaped import PRESET


class TestTheJobs:
    def test_train(self, world):
        out, _, _ = world
        done = literal.train(str(out), 64, steps=3, warmup=1, preset=PRESET)
        seconds = sum(done["step_seconds"]) + sum(done["load_seconds"])
        assert len(done["step_seconds"]) == len(done["load_seconds"]) == 3
        assert done["rows_per_s"] == pytest.approx(3 * 64 / seconds)
        assert 0 < done["before_mib"] <= done["peak_mib"] and 0 < done["loss"] < 5

    def test_no_peak_lies_under_what_was_resident_before(self, world, monkeypatch):
        monkeypatch.setattr(literal, "resident_mib", lambda: 1e6)
        assert literal.train(str(world[0]), 64, steps=1, warmup=0, preset=PRESET)["peak_mib"] == 1e6

    def test_loader(self, world):
        assert literal.loader(str(world[0]), 64, batches=2)["rows_per_s"] > 0
