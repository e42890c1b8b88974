"""Signals: obeyed at once, held back where work can be saved, and never waited for too long."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from features.stopping import Stopped, held, listening


def never() -> None:
    raise AssertionError("nothing was late")


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Stopped), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_ends_the_block_at_once(number, error):
    with listening(never), pytest.raises(error):
        os.kill(os.getpid(), number)
        raise AssertionError("went on")


def test_a_signal_that_is_held_waits_for_the_block_to_obey():
    done = []
    with listening(never), pytest.raises(Stopped), held() as stop:
        assert not stop.requested
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("saved")
        assert stop.requested
        stop.obey()
        done.append("went on")
    assert done == ["saved"]


def test_a_signal_that_the_block_did_not_obey_is_obeyed_at_its_end():
    done = []
    with listening(never), pytest.raises(KeyboardInterrupt):
        with held():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("went on")
        done.append("ended")
    assert done == ["went on"]


def test_a_second_signal_is_not_held():
    done = []
    with listening(never), pytest.raises(KeyboardInterrupt), held():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("first")
        os.kill(os.getpid(), signal.SIGINT)
        done.append("second")
    assert done == ["first"]


def test_what_fails_in_a_block_is_told_before_a_signal():
    with listening(never), pytest.raises(ValueError, match="broken"), held():
        os.kill(os.getpid(), signal.SIGTERM)
        raise ValueError("broken")


def test_handlers_and_threads_are_as_before_afterwards():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    threads = set(threading.enumerate())
    with listening(never):
        assert len(set(threading.enumerate()) - threads) == 1
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert not set(threading.enumerate()) - threads


def test_another_thread_than_the_main_one_listens_to_nothing():
    seen = []

    def listens() -> None:
        with listening(never):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=listens)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


LATE = """
import os, signal, sys, time
from features.stopping import held, listening
with listening(lambda: print("too late", flush=True), seconds=0.2), held() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""


def test_what_is_not_over_in_time_is_ended():
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stdout) == (75, "too late\n")
