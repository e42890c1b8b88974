"""What is wrong in a workspace, each with its mend: disk, MLflow, versions, pointers, locks, leftovers, what waits."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from ctr.reporting.mlflow_registry import Registry
from ctr.serving.bundle import exported_as, open_bundle
from features.errors import ConfigError, DataError, StoreAwayError
from features.store.disk import folder_bytes, free_bytes
from features.store.feature_set import FeatureSet
from features.store.pointer import CURRENT, POINTERS, follow
from pipelines.locks import Holder
from pipelines.operate.cleaning import bytes_of, half_written, leftovers
from pipelines.operate.codes import message_of
from pipelines.operate.left_open import left_open
from pipelines.operate.space import bytes_of_a_job
from pipelines.operate.uses import MANIFEST, broken_records, is_held, names_of, past_versions, read_json, used_now
from pipelines.operate.waiting import Sent, outboxes, send_waiting, waiting_by_run
from pipelines.workspace import LOCK, METRICS, Workspace

BROKEN_CODE = ConfigError.exit_code
ALIAS = "champion"
COMPARED = ("torch", "polars", "onnxruntime", "numpy")
PERMIT = "let this user read and write there, or run the command as the user of the jobs"
JOBS_OF_ROOM = 3  # a disk with room for fewer is worth a look before it is full


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        check: what was looked at.
        level: `fine`; `note`, which a person may want to know; or `broken`, which must be mended.
        text: what was found, with its figures.
        mend: what to do; empty where nothing is to be done.
    """

    check: str
    level: Literal["fine", "note", "broken"]
    text: str
    mend: str = ""


def examine(workspace: Workspace, send: bool, console: Console) -> dict[str, Any]:
    """Look at everything, print a table, and return a JSON-able summary with exit code 0, or 2 if anything is broken.

    Args:
        workspace: to be looked at.
        send: whether to send first what waits for MLflow.
        console: where people read.
    """
    sent = send_waiting(workspace) if send else None
    findings = list(findings_of(workspace))
    table = Table(title_justify="left")
    for column in ("check", "", "found", "mend"):
        table.add_column(column, overflow="fold")
    for found in findings:
        table.add_row(found.check, found.level, found.text, found.mend)
    console.print(table)
    if sent is not None:
        console.print(_sentence(sent))
    broken = [found for found in findings if found.level == "broken"]
    return {
        "status": "broken" if broken else "fine",
        "exit_code": BROKEN_CODE if broken else 0,
        "sent": 0 if sent is None else sent.entries,
        "findings": [asdict(found) for found in findings],
    }


def findings_of(workspace: Workspace) -> Iterator[Finding]:
    """All findings, those of each data contract together. What may not be read or written is a finding, too."""
    root = workspace.root.absolute()
    if not os.access(root, os.W_OK):
        yield Finding("workspace", "broken", f"{root}: this user may not write to it", PERMIT)
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("disk", lambda: _disk(workspace)),
        ("MLflow", lambda: _mlflow(workspace)),
        ("outbox", lambda: _waiting(workspace)),
        ("record", lambda: _records(workspace)),
    ]
    for name in names_of(workspace):
        parts = {"pointer": _pointers, "history": _history, "versions": _versions, "lock": _locks}
        checks += [(check, partial(look, workspace, name)) for check, look in parts.items()]
        checks.append(("leftover", partial(_leftovers, leftovers(workspace, name))))
    checks.append(("leftover", lambda: _leftovers(half_written(workspace))))
    for check, look in checks:
        try:
            yield from look()
        except OSError as error:
            yield Finding(check, "broken", message_of(error, root), PERMIT)


def _disk(workspace: Workspace) -> Iterator[Finding]:
    root = workspace.root.absolute()
    free = free_bytes(root)
    for name in names_of(workspace) or [""]:
        used = workspace.feature_sets / name / (used_now(workspace.feature_sets / name) or "none")
        needed = bytes_of_a_job(workspace, name) + folder_bytes(used)
        job = f"a job of {name!r}" if name else "a first job"
        text = f"{free:,} bytes are free, and {job} takes about {needed:,}"
        if free < needed:
            yield Finding("disk", "broken", text, "make room: `quadrank gc` lists what nothing uses")
        elif free < JOBS_OF_ROOM * needed:
            yield Finding("disk", "note", text, "`quadrank gc` lists what nothing uses")
        else:
            yield Finding("disk", "fine", text)


def _mlflow(workspace: Workspace) -> Iterator[Finding]:
    registry, began = Registry(workspace.root), time.monotonic()
    try:
        for name in names_of(workspace):
            yield from _champion(workspace, registry, name)
        with registry.store.contact():
            pass
    except (StoreAwayError, ConfigError) as error:
        yield Finding("MLflow", "broken", str(error), "start the server, or correct MLFLOW_TRACKING_URI")
    else:
        yield Finding("MLflow", "fine", f"{registry.store.shown} answers in {time.monotonic() - began:.1f} s")


def _champion(workspace: Workspace, registry: Registry, name: str) -> Iterator[Finding]:
    """The alias and `CURRENT` mean the same model: a job that was killed between the two moved one alone."""
    model = f"quadrank-{name}"
    champion, bundles = registry.get_alias(model, ALIAS), workspace.bundles(name)
    if champion is None or used_now(bundles) is None:
        return
    used, current = champion.tags.get("model_version"), used_now(bundles)
    serving = read_json(bundles / str(current) / MANIFEST).get("model_version")
    if isinstance(serving, str) and exported_as(serving) != used:
        text = f"models:/{model}@{ALIAS} is {used}, and {bundles / CURRENT} names {current}"
        command = shlex.join(["quadrank", "promote", "--bundle", str(bundles / CURRENT)])
        yield Finding("champion", "broken", text, f"`{command}`, or the other's path")


def _waiting(workspace: Workspace) -> Iterator[Finding]:
    for run, count in waiting_by_run(workspace).items():
        text = f"{run}: {count:,} entries wait for MLflow"
        yield Finding("outbox", "broken", text, "`quadrank doctor --send`, or the next job, when MLflow answers")
    for outbox in outboxes(workspace):
        if refused := outbox.refused():
            text = f"{outbox.folder}: MLflow refused {len(refused):,} entries, the first: {refused[0]}"
            yield Finding("outbox", "note", text, f"read {outbox.folder / 'refused.jsonl'}; they are not sent again")


def _records(workspace: Workspace) -> Iterator[Finding]:
    for text in broken_records(workspace):
        mend = "put the file back as it was, or take its folder away: `gc` removes nothing while it is in use"
        yield Finding("record", "broken", text, mend)


def _pointers(workspace: Workspace, name: str) -> Iterator[Finding]:
    for folder in (workspace.feature_sets / name, workspace.bundles(name)):
        for pointer in (folder / one for one in POINTERS):
            if not os.path.lexists(pointer):
                continue
            try:
                target = follow(pointer)
                if folder == workspace.bundles(name):
                    open_bundle(target)
                else:
                    FeatureSet.open(target)
            except (DataError, ConfigError) as error:
                mend = "`quadrank features` builds it again" if pointer.parent != workspace.bundles(name) else (
                    "`quadrank promote` with a bundle that is whole"
                )  # fmt: skip
                yield Finding("pointer", "broken", f"{pointer}: {error}", mend)
            else:
                yield Finding("pointer", "fine", f"{pointer} -> {target.name}")


def _history(workspace: Workspace, name: str) -> Iterator[Finding]:
    try:
        past_versions(workspace.bundles(name))
    except DataError as error:
        mend = "take the line out, or the file away: no job, `promote`, `rollback` or `gc` works until then"
        yield Finding("history", "broken", str(error), mend)


def _versions(workspace: Workspace, name: str) -> Iterator[Finding]:
    """Packages that made the bundle in use, beside those that are installed."""
    current = used_now(workspace.bundles(name))
    found = read_json(workspace.bundles(name) / str(current) / MANIFEST).get("versions")
    made: dict[str, Any] = found if isinstance(found, dict) else {}
    for package in [one for one in COMPARED if isinstance(made.get(one), str)]:
        try:
            installed = version(package)
        except PackageNotFoundError:
            continue
        if installed.split(".")[0] != made[package].split(".")[0]:
            text = f"{package} {made[package]} made {current}, and {installed} is installed"
            yield Finding("versions", "note", text, "`quadrank evaluate` on that bundle; or install from the lock")


def _locks(workspace: Workspace, name: str) -> Iterator[Finding]:
    held = [workspace.root / ".cache" / f"{name}.lock", workspace.feature_sets / name / ".lock"]
    held += sorted(workspace.runs.glob(f"*-{name}-*/{LOCK}"))
    left = left_open(workspace)
    for lock in held:
        holder = Holder.of(lock)
        if is_held(lock):
            yield Finding("lock", "note", f"{lock}: held by {holder or 'a job'}")
        elif holder is not None and lock.parent in left:
            yield Finding("lock", "note", f"{_left(lock, holder)}; its MLflow run looks alive", _mend_of(lock.parent))
        elif holder is not None:
            yield Finding("lock", "note", _left(lock, holder), "nothing: the next job takes it over")


def _left(lock: Path, holder: Holder) -> str:
    return f"{lock}: left by {holder}, which ended without giving it back"


def _mend_of(run: Path) -> str:
    """What ends the MLflow run of a run that a killed process left, and what goes on with it."""
    ends = "`quadrank gc --yes`, or the next `quadrank train` or `run`, ends it in MLflow"
    return ends if (run / METRICS).is_file() else f"{ends}; `quadrank train --resume {run.name}` goes on with it"


def _leftovers(paths: Iterable[Path]) -> Iterator[Finding]:
    for path in paths:
        text = f"{path}: left behind by a killed process, {bytes_of(path):,} bytes"
        yield Finding("leftover", "note", text, "`quadrank gc --yes` removes it")


def _sentence(sent: Sent) -> str:
    if sent.away:
        return f"sent {sent.entries:,} entries, {sent.waiting:,} wait on: {sent.away}"
    return f"sent {sent.entries:,} entries to MLflow" if sent.entries else "nothing waited for MLflow"
