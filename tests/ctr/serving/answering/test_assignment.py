"""Which users meet the challenger: a share of them, the same everywhere."""

from __future__ import annotations

import hashlib
import hmac
import os
import subprocess
import sys

import pytest

from ctr.serving.answering.assignment import meets_challenger


def test_a_share_of_users_meets_it():
    met = [meets_challenger(user, "r", 0.3, "s") for user in range(20_000)]
    assert sum(met) / len(met) == pytest.approx(0.3, abs=0.012)  # four standard errors


def test_none_and_all():
    assert not any(meets_challenger(user, "r", 0.0, "s") for user in range(1000))
    assert all(meets_challenger(user, "r", 1.0, "s") for user in range(1000))


def test_a_larger_share_keeps_the_users_of_a_smaller_one():
    few, many = ({u for u in range(2000) if meets_challenger(u, "r", share, "s")} for share in (0.1, 0.2))
    assert few < many


def test_another_salt_draws_other_users():
    a, b = ({u for u in range(4000) if meets_challenger(u, "r", 0.5, salt)} for salt in ("a", "b"))
    assert len(a & b) / 4000 == pytest.approx(0.25, abs=0.03)


def test_a_user_keeps_a_side_and_an_anonymous_request_is_drawn_for_itself():
    assert len({meets_challenger("u1", f"r{i}", 0.5, "") for i in range(100)}) == 1
    assert sum(meets_challenger(None, f"r{i}", 0.5, "") for i in range(2000)) == pytest.approx(1000, abs=100)


def test_it_is_the_hash_that_the_docs_state():
    for user in ("u1", "\ud800", 7):
        digest = hmac.new(b"salt", f"user {user}".encode(errors="surrogatepass"), hashlib.sha256).hexdigest()
        assert meets_challenger(user, "r", 0.4, "salt") == (int(digest[:16], 16) / 2**64 < 0.4)


def test_processes_agree():
    code = (
        "from ctr.serving.answering.assignment import meets_challenger as meets\n"
        "print(''.join(str(int(meets(f'u{i}', '', 0.5, 's'))) for i in range(64)))"
    )
    here = "".join(str(int(meets_challenger(f"u{i}", "", 0.5, "s"))) for i in range(64))
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    there = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here
