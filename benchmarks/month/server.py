"""An `mlflow server` on loopback that keeps its store in a folder, and is stopped for a day."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlencode

START_SECONDS = 300.0
ANSWER_SECONDS = 30.0
LOOK_SECONDS = 0.2


class MlflowServer:
    """Stopped at first; as a context it ends with the block.

    Args:
        folder: of its database, artifacts and log; made if missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as held:
            held.bind(("127.0.0.1", 0))
            self.port = int(held.getsockname()[1])
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> MlflowServer:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it unless it runs, and wait until it answers. Raises RuntimeError, with its log, if it does not."""
        if self._process is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        command = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *command], stdout=log, stderr=log, env=os.environ | quiet, start_new_session=True
            )
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=ANSWER_SECONDS):
                    return
            except OSError:
                time.sleep(LOOK_SECONDS)
        raise RuntimeError((self.folder / "server.log").read_text(encoding="utf-8")[-3000:])

    def stop(self) -> None:
        """End it at once, with the workers that it started."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def champion(self, name: str) -> str | None:
        """The bundle that the alias `champion` of a registered model names; None without the model or the alias."""
        question = urlencode({"name": name, "alias": "champion"})
        address = f"{self.uri}/api/2.0/mlflow/registered-models/alias?{question}"
        try:
            with urllib.request.urlopen(address, timeout=ANSWER_SECONDS) as answer:
                tags = json.load(answer)["model_version"].get("tags", [])
        except urllib.error.HTTPError:
            return None
        return {tag["key"]: tag["value"] for tag in tags}.get("model_version")
