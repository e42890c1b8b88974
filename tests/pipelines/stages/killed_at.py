"""`quadrank` as a process of its own, which can be killed with SIGKILL inside one named write.

A write fills a sibling, and a rename or a replace makes it visible. The signal comes at that call. Processes are forked
from one that has imported what they need: twenty kills do not wait for twenty imports of torch and MLflow.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.cli.commands import main
from tests.documents import ROOT

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    ["pipelines.stages.run", "pipelines.gate.judge", "ctr.export.export_bundle", "ctr.reporting.run_figures", "numba",
     "mlflow.onnx", "mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store",
     "onnxscript", "sklearn.linear_model", "torch.export._trace"]
)  # fmt: skip


def _folder_of(target: Path) -> str:
    return target.parent.parent.name


def _is_late(tensors: Path, step: int) -> bool:
    """Whether these are the tensors of a checkpoint at this step or after it."""
    found = re.fullmatch(r"checkpoint-(\d+)\.safetensors", tensors.name)
    return found is not None and int(found[1]) >= step


# Whether a call moves this path to this target; the first for which it does is where the signal comes.
AIMS: dict[str, Callable[[Path, Path], bool]] = {
    "feature set filled, not yet renamed": lambda path, target: path.name.startswith(".building-"),
    "feature set renamed, CURRENT not yet moved": lambda path, target: (
        target.name == "CURRENT" and _folder_of(target) == "feature_sets"
    ),
    "half of a checkpoint's tensors written": lambda path, target: _is_late(target, 25),
    "tensors written, checkpoint.json not yet": lambda path, target: (
        target.name == "checkpoint.json" and any(_is_late(one, 45) for one in target.parent.iterdir())
    ),
    "metrics.json written, not yet renamed": lambda path, target: target.name == "metrics.json",
    "bundle filled, not yet renamed": lambda path, target: path.name.startswith(".exporting-"),
    "bundle renamed, NEWEST not yet moved": lambda path, target: target.name == "NEWEST",
    "CURRENT of the bundles written, not yet renamed": lambda path, target: (
        target.name == "CURRENT" and _folder_of(target) == "bundles"
    ),
    "CURRENT moved, history and alias not yet": lambda path, target: (
        target.name == "CURRENT" and _folder_of(target) == "bundles"
    ),
}
HALVED = "half of a checkpoint's tensors written"
AFTER = "CURRENT moved, history and alias not yet"


def aim(name: str) -> None:
    """Let the first call that `name` means end this process."""
    hits = AIMS[name]

    def killing(original: Callable[[Path, Any], Path]) -> Callable[[Path, Any], Path]:
        def call(path: Path, target: Any) -> Path:
            if not hits(path, Path(target)):
                return original(path, target)
            if name == HALVED:
                os.truncate(path, path.stat().st_size // 2)
            if name == AFTER:
                original(path, target)
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError("SIGKILL has no handler")

        return call

    for method in ("rename", "replace"):
        setattr(Path, method, killing(getattr(Path, method)))


def _work(words: list[str], out: Path, err: Path, write: str | None) -> None:
    for path, number in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(ROOT)
    if write is not None:
        aim(write)
    main(words)


class Quadrank:
    """One command that runs, or has ended.

    Args:
        words: of its command line.
        folder: an empty one for what it says.
        write: of `AIMS`, inside which it is killed; None lets it end.
    """

    def __init__(self, words: list[str], folder: Path, write: str | None = None) -> None:
        self._out, self._err = folder / "out", folder / "err"
        self._out.touch()
        self._err.touch()
        self._process = FORKED.Process(target=_work, args=(words, self._out, self._err, write))
        self._process.start()
        self.pid = int(self._process.pid or 0)

    @property
    def said(self) -> str:
        """What it has written to stderr."""
        return self._err.read_text(encoding="utf-8", errors="replace")

    @property
    def result(self) -> dict[str, Any]:
        """Its last line on stdout."""
        found: dict[str, Any] = json.loads(self._out.read_text(encoding="utf-8").splitlines()[-1])
        return found

    def wait_for(self, words: str) -> None:
        """Wait until it says these words, or ends."""
        while words not in self.said and self._process.is_alive():
            time.sleep(0.02)

    def send(self, number: int) -> bool:
        """Send a signal; whether it still ran."""
        running = self._process.is_alive()
        if running:
            os.kill(self.pid, number)
        return running

    def ended(self) -> int:
        """Wait for its end; returns its exit code, or minus the number of the signal that killed it."""
        self._process.join(1200)
        return int(self._process.exitcode if self._process.exitcode is not None else 1000)
