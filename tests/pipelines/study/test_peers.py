"""Peers are part of a checkout: found from a console script, and asked for before anything is trained."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from rich.console import Console

from benchmarks.peers import fuxictr_peer, fuxictr_rows
from features.contract.contract import load_contract
from features.errors import ConfigError
from pipelines import checkout as checkout_module
from pipelines.study import compare
from pipelines.study.peers import MODELS, peer_scores, require_peers
from pipelines.study.study import Peer, Study
from pipelines.workspace import Workspace
from tests.pipelines.cli.test_commands import ROOT
from tests.toy import toy_feature_set

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


def test_every_peer_is_a_model_with_settings() -> None:
    assert set(MODELS) == set(get_args(Peer))
    assert set(MODELS.values()) == set(fuxictr_rows.MODELS)


def test_a_peer_is_trained_with_as_many_seeds_and_scores_validation_rows_to_be_calibrated_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    feature_set = toy_feature_set(tmp_path / "toy", rows=100, users=10, items=10)

    def trained(path: Path, model: str, seeds: range, folder: Path) -> list[fuxictr_rows.PeerScores]:
        assert (path, model, folder) == (feature_set.path, "FinalMLP", tmp_path / "fuxictr")
        scores = [{"valid": np.full(3, seed), "test": np.full(5, -seed)} for seed in seeds]
        facts = [{"rows_per_second": 10.0 * seed, "parameters": 7.0} for seed in seeds]
        return [fuxictr_rows.PeerScores(*one) for one in zip(scores, facts, strict=True)]

    monkeypatch.setattr(fuxictr_rows, "train_peer", trained)
    scores, facts = peer_scores("fuxictr_finalmlp", feature_set, ["valid", "test"], 3, tmp_path)
    np.testing.assert_array_equal(scores["valid"], np.repeat([[1], [2], [3]], 3, axis=1))
    np.testing.assert_array_equal(scores["test"], np.repeat([[-1], [-2], [-3]], 5, axis=1))
    assert facts == {"rows_per_second": 20.0, "parameters": 7.0}
