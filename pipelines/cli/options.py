"""Options that several commands share, and what their values mean."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from features.contract.contract import NAME, load_contract
from features.contract.settings import load_yaml, parse_overrides
from features.errors import ConfigError
from pipelines.shipped import CONF, default_settings
from pipelines.source import Source, parse_window


def settings_file(context: typer.Context, parameter: typer.CallbackParam, path: Path | None) -> Path | None:
    """For options that name a settings file: the file as named; of a default that is not here, the shipped one."""
    source = context.get_parameter_source(str(parameter.name))
    if path is not None and source is not None and source.name == "DEFAULT":
        return default_settings(path.relative_to(CONF))
    return path


DataOption = Annotated[
    Path,
    typer.Option("--data", callback=settings_file, help="Data contract: a YAML file, e.g. conf/data/simulated.yaml."),
]
ModelOption = Annotated[
    Path, typer.Option("--model", callback=settings_file, help="Model preset: a YAML file of conf/model/.")
]
TrainOption = Annotated[
    Path,
    typer.Option("--train", callback=settings_file, help="Training settings; the preset's own `train` values win."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Change one setting, e.g. train.epochs=3; repeatable. Sections: data, model, train.",
    ),
]
DataSetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="DATA.KEY=VALUE", help="Change one setting of the data contract; repeatable."),
]
RootOption = Annotated[
    str | None,
    typer.Option("--root", help="Folder that relative paths of the contract start from; default: as it says."),
]
WorkOption = Annotated[
    Path, typer.Option("--work", help="Workspace: the folder of feature sets, runs, bundles and the MLflow store.")
]
BundleOption = Annotated[
    Path,
    typer.Option("--bundle", help="Folder of a bundle, or a pointer: bundles/NAME/CURRENT or bundles/NAME/NEWEST."),
]
RunOption = Annotated[
    str, typer.Option("--run", help="Run id, or `latest`: the newest finished run that is no trial of a sweep.")
]
PastsOption = Annotated[
    bool, typer.Option("--pasts", help="Bring the newest events of each user too; reads the raw log again.")
]
AsOfOption = Annotated[
    str | None,
    typer.Option("--as-of", help="Last day (UTC) to read, e.g. 2026-01-31; default: the day of the newest event."),
]
WindowOption = Annotated[
    str | None,
    typer.Option(
        "--window", help="Use the rows of the last N days only, e.g. 14d; default: all. Unchanged days are reused."
    ),
]
WarmStartOption = Annotated[
    str | None,
    typer.Option(
        "--warm-start",
        metavar="RUN",
        help="Go on from the weights of a finished run: its id, or `champion`; default: a full training.",
    ),
]

DEFAULT_MODEL = Path("conf/model/qin.yaml")
DEFAULT_TRAIN = Path("conf/train.yaml")
SECTIONS = ("data", "model", "train")
DATA_ALONE = ("data",)


def overrides_of(assignments: list[str] | None, sections: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`--set` values by section. Raises ConfigError for a section that the command does not read."""
    overrides = parse_overrides(assignments or [])
    for section in overrides:
        if section not in sections:
            raise ConfigError(
                f"--set {section}.…: this command reads no section of that name. It reads: {', '.join(sections)}."
            )
    return overrides


def name_of(data: Path, assignments: list[str] | None) -> str | None:
    """The name that a contract gives itself, also where the rest of it cannot be used; None where it has none.

    Args:
        data: file of the contract.
        assignments: values of `--set`.
    """
    set_here = [one.removeprefix("data.name=") for one in assignments or [] if one.startswith("data.name=")]
    set_here = [one.strip().strip("\"'") for one in set_here]
    name = set_here[-1] if set_here else _name_in(data)
    return name if re.fullmatch(NAME, name) else None


def _name_in(data: Path) -> str:
    try:
        return str(load_yaml(data).get("name"))
    except ConfigError:
        # A file that is no YAML may still have the line.
        text = data.read_bytes().decode(errors="replace") if data.is_file() else ""
        line = re.search(r"^name:\s*([^\s#]+)", text, re.MULTILINE)
        return line[1].strip("\"'") if line else ""


def settings_of(
    data: Path,
    assignments: list[str] | None,
    root: str | None,
    as_of: str | None,
    window: str | None,
    sections: Sequence[str] = SECTIONS,
) -> tuple[Source, dict[str, Any]]:
    """The contract with its own `--set` values on top and the days that are read of it; values of other sections.

    Args:
        data: file of the contract.
        assignments: values of `--set`.
        root: value of `--root`.
        as_of: value of `--as-of`.
        window: value of `--window`.
        sections: which of them the command reads; `data` is among them.

    Raises:
        ConfigError: a value cannot be used, or is of a section that the command does not read.
    """
    overrides = overrides_of(assignments, sections)
    contract = load_contract(data, overrides.pop("data", None), root)
    return Source(contract, as_of, parse_window(window)), overrides
