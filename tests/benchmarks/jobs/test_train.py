"""What is measured of our own training, at toy sizes."""

from benchmarks.jobs import train
from tests.benchmarks.shaped import PRESET


def test_no_peak_lies_under_what_was_resident_before(world, monkeypatch):
    monkeypatch.setattr(train, "resident_mib", lambda: 1e6)
    done = train.train(world[1]["feature_set"], 64, steps=1, warmup=0, preset=PRESET)
    assert done["peak_mib"] == 1e6
