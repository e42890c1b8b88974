"""Commands that keep a workspace in order: doctor, gc."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from features.errors import ConfigError
from pipelines.cli.options import WorkOption
from pipelines.cli.terminal import JsonOption, console, finish
from pipelines.workspace import Workspace

operating_app = typer.Typer()


def workspace_of(work: Path) -> Workspace:
    """The workspace that a user named. Raises ConfigError where there is none: one that is new would be fine."""
    if not work.is_dir():
        wrong = "no folder" if work.exists() else "no such folder"
        raise ConfigError(f"--work {work}: {wrong}, so there is nothing to look at. Name the folder of the workspace.")
    return Workspace(work)


@operating_app.command(epilog="Example: quadrank doctor --send")
def doctor(
    send: Annotated[bool, typer.Option("--send", help="First send what waits for MLflow.")] = False,
    work: WorkOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Say what is wrong in a workspace, and its mend.

    Looks at disk, MLflow, versions, pointers, locks, leftovers of killed jobs, and at what waits for MLflow.
    Exit 2 when anything must be mended.
    """
    from pipelines.operate.doctor import examine

    payload = examine(workspace_of(work), send, console(as_json))
    finish(payload, as_json)
    raise typer.Exit(payload["exit_code"])


@operating_app.command(epilog="Example: quadrank gc --keep 3 --yes")
def gc(
    keep: Annotated[
        int,
        typer.Option("--keep", help="Newest feature sets, runs, bundles, versions to keep of each contract.", min=1),
    ] = 3,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without this it is only listed.")] = False,
    work: WorkOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """List or remove what nothing uses any more.

    What a pointer, an alias, a running job or an unfinished run of this week uses stays in any case. Finished runs lose
    their optimiser state, but for those behind a bundle in use.
    """
    from pipelines.operate.cleaning import clean

    finish(clean(workspace_of(work), keep, yes, console(as_json)), as_json)
