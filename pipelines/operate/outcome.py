"""How a job ended, for whoever watches it: files in status/NAME, a Prometheus textfile among them, and a webhook.

outcome.json     the last run's summary, exit code and stages
LAST_SUCCESS     the last run that ended with 0 or 3, as JSON; its modification time is when it ended
quadrank.prom    the same in numbers, for node_exporter's textfile collector

A job that never starts reports nothing: what to alarm on is the age of the champion's data, which grows by itself.
"""

from __future__ import annotations

import json
import os
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from features.errors import DataError
from features.progress import say
from features.store.atomic import write_text
from features.store.pointer import follow
from pipelines.json_text import json_text
from pipelines.operate.clock import StageClock
from pipelines.operate.codes import SUCCESSES, UNEXPLAINED, exit_code_of, message_of
from pipelines.operate.log import LoggedConsole
from pipelines.workspace import Workspace

OUTCOME, LAST_SUCCESS, TEXTFILE = "outcome.json", "LAST_SUCCESS", "quadrank.prom"
WEBHOOK = "QUADRANK_WEBHOOK"  # environment variable: where to POST the outcome
WEBHOOK_SECONDS = 10
# What a success keeps of the one before it, where it has none of its own: nothing new was trained, say.
KEPT = ("run_id", "bundle", "rows", "metrics")
HELP = {
    "last_run_timestamp_seconds": "When the last run ended.",
    "last_success_timestamp_seconds": "When the last run ended that succeeded (exit code 0 or 3).",
    "exit_code": "Exit code of the last run.",
    "duration_seconds": "Wall time of the last run.",
    "stage_duration_seconds": "Wall time of each stage of the last run.",
    "peak_bytes": "Peak memory of the last run.",
    "champion_data_timestamp_seconds": "Time of the newest row that the bundle in use was made from.",
    "auc": "AUC of the last success.",
    "rows": "Rows of the last success.",
}


@dataclass
class Watched:
    """A job that is watched until it ends.

    Args:
        clock: of its stages.
        summary: what it ends with; a job that raises has none.
    """

    clock: StageClock = field(default_factory=StageClock)
    summary: dict[str, Any] = field(default_factory=dict)


# Of the jobs at work: how each is recorded where the process ends without ending them.
_AT_WORK: list[Callable[[str, int], None]] = []


@contextmanager
def watched(workspace: Workspace, name: str | None, console: LoggedConsole) -> Iterator[Watched]:
    """Record how the block ends, whatever ends it: the job sets `summary` of what it is given.

    Args:
        workspace: whose job it is.
        name: of the data contract; None for a block whose errors are logged and which leaves no outcome.
        console: of the job, whose log gets the error that ended it. Whoever runs the block shows it to people.
    """
    job, began = Watched(), time.monotonic()

    def failed(message: str, code: int) -> dict[str, Any]:
        seconds = round(time.monotonic() - began, 2)
        return {"seconds": seconds, **job.summary, "status": "error", "exit_code": code, "error": message}

    def at_once(message: str, code: int) -> None:
        _log(console, message)
        if name is not None:
            _write(workspace, _outcome(name, failed(message, code), job.clock.seconds()))

    _AT_WORK.append(at_once)
    try:
        yield job
    except BaseException as error:
        message, code = message_of(error, workspace.root), exit_code_of(error, workspace.root)
        _log(console, "".join(traceback.format_exception(error)).rstrip() if code == UNEXPLAINED else message)
        job.summary = failed(message, code)
        raise
    finally:
        _AT_WORK.remove(at_once)
        if name is not None:
            record_outcome(workspace, name, job.summary, job.clock.seconds())


def ended_at_once(message: str, code: int) -> None:
    """Record the jobs at work as ended: the process is about to end in the middle of them.

    The webhook is not told, since nobody waits for its answer any more.

    Args:
        message: why.
        code: exit code of the process.
    """
    for record in list(_AT_WORK):
        record(message, code)


def record_outcome(workspace: Workspace, name: str, summary: Mapping[str, Any], stages: Mapping[str, float]) -> None:
    """Write the files of status/NAME and tell the webhook. What cannot be written or told never ends the job.

    Args:
        workspace: whose job ended.
        name: of the data contract.
        summary: what the command prints under `--json`.
        stages: seconds by stage.
    """
    outcome = _outcome(name, summary, stages)
    _write(workspace, outcome)
    if address := os.environ.get(WEBHOOK):
        try:
            post(address, outcome)
        except Exception as error:
            _say(f"${WEBHOOK}: the outcome was not delivered: {error}")


def _outcome(name: str, summary: Mapping[str, Any], stages: Mapping[str, float]) -> dict[str, Any]:
    ended = datetime.now(UTC).isoformat(timespec="seconds")
    return {**summary, "name": name, "ended": ended, "stages": dict(stages)}


def _write(workspace: Workspace, outcome: Mapping[str, Any]) -> None:
    name = outcome["name"]
    folder = workspace.status(name)
    try:
        write_text(folder / OUTCOME, json_text(outcome, indent=2))
        if outcome.get("exit_code") in SUCCESSES:
            before = _read(folder / LAST_SUCCESS)
            kept = {key: outcome.get(key) or before.get(key) for key in KEPT}
            write_text(folder / LAST_SUCCESS, json_text({**outcome, **kept}, indent=2))
        text = textfile(name, outcome, _read(folder / LAST_SUCCESS), champion_data_time(workspace, name))
        write_text(folder / TEXTFILE, text)
    except Exception as error:
        _say(f"{folder}: the outcome was not written: {error}")


def _log(console: LoggedConsole, message: str) -> None:
    try:
        console.write_log(message, "error")
    except OSError as error:
        _say(f"the log was not written: {error}")


def textfile(name: str, outcome: Mapping[str, Any], success: Mapping[str, Any], data_time: float | None) -> str:
    """The numbers in Prometheus' text format, each named `quadrank_…` with the label `name`.

    Args:
        name: of the data contract.
        outcome: of the last run.
        success: of the last run that succeeded; empty where none did.
        data_time: of the newest row behind the bundle in use, seconds since 1970; None without one.
    """
    found: dict[str, dict[tuple[tuple[str, str], ...], Any]] = {
        "last_run_timestamp_seconds": {(): _seconds(outcome["ended"])},
        "exit_code": {(): outcome.get("exit_code")},
        "duration_seconds": {(): outcome.get("seconds")},
        "stage_duration_seconds": {(("stage", stage),): used for stage, used in outcome["stages"].items()},
        "champion_data_timestamp_seconds": {(): data_time},
        "rows": {(("split", split),): count for split, count in (success.get("rows") or {}).items()},
        "auc": {(("split", split),): values.get("auc") for split, values in (success.get("metrics") or {}).items()},
    }
    if outcome.get("peak_mib"):
        found["peak_bytes"] = {(): outcome["peak_mib"] * 2**20}
    if success:
        found["last_success_timestamp_seconds"] = {(): _seconds(success["ended"])}
    lines = []
    for metric, help_text in HELP.items():
        values = {labels: value for labels, value in found.get(metric, {}).items() if value is not None}
        if values:
            lines += [f"# HELP quadrank_{metric} {help_text}", f"# TYPE quadrank_{metric} gauge"]
        for labels, value in values.items():
            written = ",".join(f'{key}="{_escaped(text)}"' for key, text in (("name", name), *labels))
            lines.append(f"quadrank_{metric}{{{written}}} {float(value)!r}")
    return "".join(f"{line}\n" for line in lines)


def champion_data_time(workspace: Workspace, name: str) -> float | None:
    """Time of the newest row that the bundle in use was made from, seconds since 1970; None where none is in use."""
    try:
        manifest = json.loads((follow(workspace.bundles(name)) / "MANIFEST.json").read_text(encoding="utf-8"))
    except (DataError, OSError, ValueError):
        return None
    return max((window["last_time"] / 1e6 for window in manifest["windows"].values()), default=None)


def post(address: str, outcome: Mapping[str, Any]) -> None:
    """POST an outcome as JSON.

    Args:
        address: http or https.
        outcome: JSON-able.

    Raises:
        ValueError: an address of another kind.
        OSError: nobody takes it, within ten seconds.
    """
    if not address.startswith(("http://", "https://")):
        raise ValueError(f"{address.partition(':')[0]!r} is no kind of web address; write http:// or https://")
    body = json_text(outcome).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"}, method="POST")
    with urllib.request.urlopen(request, timeout=WEBHOOK_SECONDS) as answer:
        answer.read()


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _say(line: str) -> None:
    say(f"warning: {line}")
