"""A server that is asked to end: not ready, answering on, and then gone; and what it prints when it begins."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from ctr.serving.answering.versions import PointerSource
from ctr.serving.bundle import ITEM_TABLE
from ctr.serving.server.app import Server
from ctr.serving.server.run import example
from ctr.serving.termination import on_termination
from features.errors import DataError
from tests.ctr.serving.shop import serve_config

START_SECONDS = 240


def ready(address: str) -> int:
    try:
        with urllib.request.urlopen(f"{address}/v2/health/ready", timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.timeout(START_SECONDS)
def test_it_is_not_ready_answers_on_and_ends_and_its_example_works(bundles: Path):
    command = [sys.executable, "-m", "pipelines", "serve", "--bundle", str(bundles / "CURRENT"), "--port", "0"]
    server = subprocess.Popen(
        [*command, "--set", "serve.leave_s=600"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert server.stdout is not None
        curl = ""
        for line in server.stdout:
            curl = line.strip() if line.strip().startswith("curl ") else curl
            if "startup complete" in line:
                break
        answer = subprocess.run(shlex.split(curl), capture_output=True, text=True, check=True)
        content = json.loads(answer.stdout)
        assert content["state"] == "ok" and content["model_version"] == "first" and content["ranked"]
        address = re.findall(r"http://127\.0\.0\.1:\d+", curl)[0]
        assert ready(address) == 200
        server.send_signal(signal.SIGTERM)
        latest = time.monotonic() + 30
        while ready(address) == 200:
            assert time.monotonic() < latest
            time.sleep(0.02)
        assert ready(address) == 503
        with urllib.request.urlopen(f"{address}/v2/health/live", timeout=30) as live:
            assert live.status == 200
        assert json.loads(subprocess.run(shlex.split(curl), capture_output=True, text=True).stdout)["ranked"]
        server.send_signal(signal.SIGTERM)  # again: at once
        assert server.wait(30) == 0
    finally:
        server.kill()
        server.wait()


@pytest.mark.timeout(START_SECONDS)
def test_a_second_signal_ends_several_processes_at_once(bundles: Path):
    command = [sys.executable, "-m", "pipelines", "serve", "--bundle", str(bundles / "CURRENT"), "--port", "0"]
    more = ["--processes", "2", "--set", "serve.leave_s=600"]
    server = subprocess.Popen([*command, *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert server.stdout is not None
        for said in ("startup complete", "Terminated child process"):
            seen = 0
            while seen < 2:
                line = server.stdout.readline()
                assert line, f"it ended before {said!r}"
                seen += said in line
            server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
    finally:
        server.kill()
        server.wait()


@pytest.mark.timeout(START_SECONDS)
def test_several_processes_that_cannot_begin_end_with_what_one_would_say(bundles: Path, tmp_path: Path):
    """They would be started again for ever, and a client that connects would wait."""
    broken = shutil.copytree(bundles / "first", tmp_path / "broken")
    table = bytearray((broken / ITEM_TABLE).read_bytes())
    table[100] ^= 1
    (broken / ITEM_TABLE).write_bytes(bytes(table))
    command = [sys.executable, "-m", "pipelines", "serve", "--bundle", str(broken), "--port", "0", "--processes", "2"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS)
    assert ended.returncode == DataError.exit_code
    assert "error: " in ended.stderr and ITEM_TABLE in ended.stderr and "Traceback" not in ended.stderr


def test_after_the_block_the_signal_does_what_it_did_before():
    async def block() -> tuple[Any, Any]:
        with on_termination(lambda stop: None):
            inside = signal.getsignal(signal.SIGTERM)
        return inside, signal.getsignal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    inside, after = asyncio.run(block())
    assert inside is not before
    assert after is before


def test_it_is_ready_until_it_is_closed(bundles: Path):
    server = Server(PointerSource(bundles / "CURRENT"), serve_config())
    app = server.app()
    with TestClient(app) as client:
        assert client.get("/v2/health/ready").json() == {"ready": True}
        assert client.get("/v2/health/live").json() == {"live": True}
    client = TestClient(app)
    answer = client.get("/v2/health/ready")
    assert (answer.status_code, answer.json()) == (503, {"ready": False})
    name = server.versions.current.bundle.manifest.name
    assert client.get(f"/v2/models/{name}/ready").status_code == 503
    assert client.get("/v2/health/live").status_code == 200


@pytest.mark.parametrize(
    ("path", "host", "line"),
    [
        ("/b/request.json", "127.0.0.1", "curl -s http://127.0.0.1:80/v1/rank -d @/b/request.json"),
        ("/b/request.json", "0.0.0.0", "curl -s http://127.0.0.1:80/v1/rank -d @/b/request.json"),
        ("/b/request.json", "::1", "curl -s 'http://[::1]:80/v1/rank' -d @/b/request.json"),
        ("/my b/request.json", "localhost", "curl -s http://localhost:80/v1/rank -d '@/my b/request.json'"),
    ],
)
def test_the_example_is_for_the_shell(path, host, line):
    assert example(Path(path), host, 80) == line
