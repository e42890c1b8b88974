"""Peers are part of a checkout: found from a console script, and asked for before anything is trained."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.peers import fuxictr_peer
from features.contract.contract import load_contract
from features.errors import ConfigError
from pipelines import checkout as checkout_module
from pipelines.study import compare
from pipelines.study.peers import require_peers
from pipelines.study.study import Study
from pipelines.workspace import Workspace
from tests.pipelines.cli.test_commands import ROOT

STUDY = Study.model_validate(
    {"name": "tiny", "data": str(ROOT / "conf/data/simulated.yaml"), "variants": {"lr": {}}, "peers": ["fuxictr_din"]}
)
CONTRACT = load_contract(ROOT / "conf/data/simulated.yaml")


def test_a_console_script_finds_the_benchmarks(tmp_path: Path) -> None:
    """Its sys.path has the packages of the project, as an editable install maps them, and not the checkout."""
    for package in ("ctr", "features", "pipelines"):
        (tmp_path / package).symlink_to(ROOT / package)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from pathlib import Path\n"
        "from pipelines import checkout\n"
        f"checkout.ROOT = Path({str(ROOT)!r})\n"
        "checkout.checkout('peers/fuxictr_rows', 'peer fuxictr_din')\n"
        "import benchmarks.peers.fuxictr_rows as found\n"
        "print(found.__file__)"
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=tmp_path, env={})
    assert done.stdout.strip() == str(ROOT / "benchmarks" / "peers" / "fuxictr_rows.py"), done.stderr


def test_outside_a_checkout_a_study_with_peers_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkout_module, "ROOT", tmp_path)
    with pytest.raises(ConfigError, match=r"peers fuxictr_din: needs .*fuxictr_rows\.py.*clone the project"):
        require_peers(STUDY.peers, CONTRACT, tmp_path)
    require_peers((), CONTRACT, tmp_path)


def test_tables_that_change_are_no_data_for_peers(tmp_path: Path) -> None:
    assert CONTRACT.items is not None
    changing = CONTRACT.model_copy(update={"items": CONTRACT.items.model_copy(update={"valid_from": "since"})})
    with pytest.raises(ConfigError, match=r"peers fuxictr_din: simulated has tables with `valid_from`"):
        require_peers(STUDY.peers, changing, tmp_path)


def test_an_environment_that_cannot_be_made_stops_a_study_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def fails(venv: Path) -> Path:
        asked.append(venv)
        raise ConfigError("no environment for FuxiCTR")

    def trained(*_: object, **__: object) -> None:
        raise AssertionError("something was built or trained first")

    monkeypatch.setattr(fuxictr_peer, "environment", fails)
    for name in ("build", "run_trials"):
        monkeypatch.setattr(compare, name, trained)
    with pytest.raises(ConfigError, match="no environment for FuxiCTR"):
        compare.run_comparison(
            compare.Comparison(STUDY, ROOT / "conf/train.yaml", None, Workspace(tmp_path), 1, Console(quiet=True))
        )
    assert asked == [(tmp_path / "comparisons" / "tiny" / "fuxictr" / "venv").absolute()]
