"""Commands that move what serves: promote through the gate, rollback."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from features.errors import ConfigError
from pipelines.cli.options import BundleOption, WorkOption, overrides_of, settings_file
from pipelines.cli.terminal import JsonOption, console, finish
from pipelines.workspace import Workspace

gating_app = typer.Typer()

GateOption = Annotated[
    Path,
    typer.Option("--gate", callback=settings_file, help="Rules of the gate: a YAML file, as docs/gate.md has them."),
]
GateSetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="GATE.KEY=VALUE", help="Change one bound of the --gate file; repeatable."),
]
DEFAULT_GATE = Path("conf/gate.yaml")


@gating_app.command(epilog="Example: quadrank promote --bundle bundles/simulated/NEWEST")
def promote(
    bundle: BundleOption,
    gate: GateOption = DEFAULT_GATE,
    work: WorkOption = Path(),
    assignments: GateSetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Promote a bundle that passes the gate.

    Scores the newest rows with it and with the champion, and holds it against every rule. A promoted bundle becomes
    CURRENT and the champion. Exit 6 when the gate refuses, 3 when the data drifted; a refused bundle changes nothing.
    """
    from pipelines.gate.promote import promote_bundle
    from pipelines.gate.settings import load_gate

    rules = load_gate(gate, overrides_of(assignments, ("gate",)).get("gate"))
    payload = promote_bundle(bundle, Workspace(work), rules, console(as_json))
    finish(payload, as_json)
    raise typer.Exit(payload["exit_code"])


@gating_app.command(epilog='Example: quadrank rollback --name simulated --why "clicks fell after the release"')
def rollback(
    name: Annotated[str | None, typer.Option("--name", help="Name of the contract, as in bundles/NAME.")] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", callback=settings_file, help="Data contract instead of its name: a YAML file."),
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", help="Folder of the bundle; default: the one that served before.")
    ] = None,
    why: Annotated[str | None, typer.Option("--why", help="Reason in a few words, for the history.")] = None,
    only_list: Annotated[bool, typer.Option("--list", help="Show who moved CURRENT, when and why; move nothing.")] = (
        False
    ),
    work: WorkOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Let an earlier bundle serve again.

    One pointer moves back, and the champion alias with it; servers that follow either take it up."""
    from features.contract.contract import load_contract
    from pipelines.gate.rollback import list_moves
    from pipelines.gate.rollback import rollback as go_back

    if (name is None) == (data is None):
        raise ConfigError("rollback: name the contract with either --name NAME or --data FILE.")
    known = name or load_contract(data or Path()).name
    if only_list:
        finish(list_moves(known, Workspace(work), console(as_json)), as_json)
        return
    if why is None:
        raise ConfigError('rollback: say why with --why "…", for the history that --list shows.')
    finish(go_back(known, to, why, Workspace(work), console(as_json)), as_json)
