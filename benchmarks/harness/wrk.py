"""`wrk`, where it is installed, for how many requests a second a server answers."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness.load import send
from benchmarks.harness.measured import measure

SCRIPT = """
local bodies, place = {}, 0
for line in io.lines(os.getenv("QUADRANK_BODIES")) do bodies[#bodies + 1] = line end
function request()
  place = place % #bodies + 1
  return wrk.format("POST", "/v1/rank", nil, bodies[place])
end
function done(summary, latency, requests)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format('\\n{"requests": %d, "seconds": %f, "errors": %d}\\n',
    summary.requests - errors.status, summary.duration / 1e6, failed))
end
"""


def as_fast_as_answered(port: int, bodies: Path, connections: int, seconds: float) -> dict[str, Any]:
    """Requests a second of a server whose clients send as soon as they are answered.

    Args:
        port: of the server, on this machine.
        bodies: file of a JSON body a line.
        connections: clients.
        seconds: how long; wrk counts whole ones.

    Returns:
        `requests_per_s` and `requests` of status below 400, `errors`, and `tool`: `wrk`
        where it is on the PATH, else our own generator.

    Raises:
        RuntimeError: wrk failed.
    """
    wrk = shutil.which("wrk")
    if wrk is None:
        done = measure(
            f"{send.__module__}:send", port=port, bodies=str(bodies), connections=connections, seconds=seconds
        )
        return {**done.result, "tool": "own"}
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(SCRIPT)
        script.flush()
        command = [wrk, "-t1", f"-c{connections}", f"-d{math.ceil(seconds)}s", "--timeout", "60s", "-s", script.name]
        ran = subprocess.run(
            [*command, f"http://127.0.0.1:{port}"],
            capture_output=True,
            text=True,
            env={**os.environ, "QUADRANK_BODIES": str(bodies)},
        )
    if ran.returncode:
        raise RuntimeError(f"wrk failed:\n{ran.stderr or ran.stdout}")
    done_ = json.loads(ran.stdout.splitlines()[-1])
    return {**done_, "requests_per_s": done_["requests"] / done_["seconds"], "tool": "wrk"}
