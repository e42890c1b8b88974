"""The settings files that come with QuadRank: `conf/` of a checkout, package data of an installed wheel."""

from __future__ import annotations

from pathlib import Path

from features.errors import ConfigError
from pipelines.revision import ROOT

CONF = Path("conf")


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


def refuse_absent(path: Path) -> None:
    """Say how to get a settings file that a user named and that is not here, where it is a shipped one.

    Raises:
        ConfigError: there is no such file in the working folder, and QuadRank ships one of this name.
    """
    if path.exists() or path.is_absolute() or path.parts[:1] != CONF.parts:
        return
    if not (shipped_conf() / path.relative_to(CONF)).is_file():
        return
    data = f" --data {path.stem}" if path.parent == CONF / "data" else ""
    raise ConfigError(
        f"{path}: no such file in {Path.cwd()}. QuadRank ships it: `quadrank init DIR{data}` writes a project "
        "folder that holds it; run the command there."
    )
