"""A call in a process of its own: its memory, its result and its failure."""

import numpy as np
import pytest

from benchmarks.harness import measured as harness
from benchmarks.harness.measured import Measured, measure, medians, peak_mib
from features.errors import ConfigError


class TestMeasuring:
    def test_a_process_is_told_apart_from_the_one_that_started_it(self):
        large = np.ones(30_000_000)  # 229 MiB, resident here
        measured = measure("benchmarks.harness.machine:describe")
        assert large.nbytes / 2**20 > 200 > measured.peak_mib > 10
        assert measured.seconds > 0
        assert measured.result["versions"]["polars"]

    def test_a_peak_is_never_under_what_was_resident_before(self, tmp_path, monkeypatch):
        (tmp_path / "status").write_text("VmRSS:\t 1024 kB\nVmHWM:\t 1720832 kB\n")
        monkeypatch.setattr(harness, "STATUS", tmp_path / "status")
        assert peak_mib() == 1680.5
        assert peak_mib(1680.6) == 1680.6
        monkeypatch.setattr(harness, "STATUS", tmp_path / "none")
        assert peak_mib(1e9) == 1e9

    def test_medians(self):
        runs = [Measured(seconds, peak, None) for seconds, peak in ((3.0, 10.0), (1.0, 30.0), (2.0, 20.0))]
        assert medians(runs) == (2.0, 20.0)

    def test_a_killed_process_is_explained(self):
        with pytest.raises(ConfigError, match=r"os:abort was killed by signal 6, .*Measure fewer rows"):
            measure("os:abort")

    def test_a_failure_shows_its_traceback(self):
        with pytest.raises(RuntimeError, match=r"(?s)json:loads failed:.*JSONDecodeError"):
            measure("json:loads", s="{")
