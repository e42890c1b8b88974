"""`quadrank init`: write a project folder, with the simulated log's contract and one to fill in."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from features.contract.settings import unknown_key
from features.datasets.public import DATASETS
from features.errors import ConfigError
from pipelines.shipped import CONF, SIMULATED, shipped_conf

TEMPLATE = Path(__file__).parent / "template"
OWN = "yours"  # name of the contract to fill in
DATA_PLACE = "@DATA@"  # in the templates: name of the contract that `make` uses when none is named


def init_project(folder: Path, data: str, console: Console) -> dict[str, Any]:
    """Write a project folder and print the next steps; returns the JSON summary.

    Args:
        folder: made where it is not there; must be empty.
        data: name of the shipped contract that the Makefile uses by default.
        console: where messages are printed.

    Raises:
        ConfigError: no such contract is shipped; the folder is not empty, or a file.
    """
    contracts = sorted(path.stem for path in (shipped_conf() / "data").glob("*.yaml"))
    if data not in contracts:
        raise ConfigError(f"--data {data}: no contract of that name is shipped. {unknown_key(data, contracts)}")
    _refuse_taken(folder)
    files = _settings(data)
    for path, source in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / path)
    for name, template in {"Makefile": "Makefile", "README.md": "README.md", ".gitignore": "gitignore"}.items():
        text = (TEMPLATE / template).read_text(encoding="utf-8").replace(DATA_PLACE, data)
        (folder / name).write_text(text, encoding="utf-8")
    console.print(f"{folder}: a project of {len(files)} settings files, a Makefile and a README. Next:")
    console.print(f"  cd {shlex.quote(str(folder))}{_first_step(data)}")
    console.print(f"Your own data: fill in {CONF / 'data' / OWN}.yaml, then make train DATA={OWN}")
    written = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {"status": "done", "exit_code": 0, "folder": str(folder), "files": written}


def _settings(data: str) -> dict[Path, Path]:
    """Which file becomes which settings file of the project: all but contracts and studies of other data."""
    shipped = shipped_conf()
    wanted = [
        *shipped.glob("*.yaml"),
        *shipped.glob("model/*.yaml"),
        *shipped.glob("spaces/*.yaml"),
        shipped / "data" / f"{data}.yaml",
    ]
    wanted += [path for path in shipped.glob("studies/*.yaml") if _data_of(path) == f"{CONF / 'data' / data}.yaml"]
    files = {CONF / path.relative_to(shipped): path for path in sorted(wanted)}
    return {**files, CONF / "data" / f"{OWN}.yaml": TEMPLATE / f"{OWN}.yaml"}


def _first_step(data: str) -> str:
    """What comes after `cd FOLDER` in a project of a shipped contract."""
    if data == SIMULATED:
        return " && make train"
    if data in DATASETS:
        return f" && quadrank download {data}"
    contract = CONF / "data" / f"{data}.yaml"
    root = yaml.safe_load((shipped_conf() / "data" / contract.name).read_text(encoding="utf-8"))["root"]
    return f", put the files that {contract} names into {root}"


def _data_of(study: Path) -> str:
    return str(yaml.safe_load(study.read_text(encoding="utf-8"))["data"])


def _refuse_taken(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: a file. Name a new or an empty folder.")
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if found:
        raise ConfigError(
            f"{folder}: not empty, it holds {found[0]}, and nothing is written over. Name a new or an empty folder."
        )
