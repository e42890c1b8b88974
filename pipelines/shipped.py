"""The settings files that come with QuadRank: `conf/` of a checkout, package data of an installed wheel."""

from __future__ import annotations

from pathlib import Path

from features.contract.settings import AbsentSettingsError, load_yaml
from features.errors import ConfigError
from pipelines.revision import ROOT

CONF = Path("conf")
SIMULATED = "simulated"  # name of the contract whose log `make train` writes, and that projects have by default


def shipped_conf() -> Path:
    """The folder of shipped settings, laid out as `conf/` is."""
    packaged = Path(__file__).parent / CONF
    return packaged if packaged.is_dir() else ROOT / CONF


def default_settings(name: str | Path) -> Path:
    """The settings file that a command reads when its user names none: `conf/NAME` here, else the shipped one.

    Args:
        name: of the file inside `conf/`, e.g. `train.yaml` or `model/qin.yaml`.
    """
    here = CONF / name
    return here if here.exists() else shipped_conf() / name


def with_the_way_to_it(error: AbsentSettingsError) -> ConfigError:
    """The error of a settings file that is not in the working folder, with how to get it where QuadRank ships it."""
    path = error.path
    if path.is_absolute() or path.parts[:1] != CONF.parts or not (shipped_conf() / path.relative_to(CONF)).is_file():
        return error
    data = _data_of(path)
    return ConfigError(
        f"{path}: no such file in {Path.cwd()}. QuadRank ships it: `quadrank init DIR{data}` writes a project "
        "folder that holds it; run the command there."
    )


def _data_of(path: Path) -> str:
    """The option of `quadrank init` with which a project holds a shipped file; empty where every project does."""
    if path.parent == CONF / "data":
        return f" --data {path.stem}"
    if path.parent != CONF / "studies":
        return ""
    name = Path(str(load_yaml(shipped_conf() / path.relative_to(CONF))["data"])).stem
    return "" if name == SIMULATED else f" --data {name}"
