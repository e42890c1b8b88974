"""One simulated feature set for all tests of FuxiCTR on a feature set's own rows."""

import pytest

from features.build.build import build_feature_set
from features.contract.contract import load_contract
from features.simulator.simulate import simulate
from tests.pipelines.cli.test_commands import ROOT


@pytest.fixture(scope="session")
def simulated(tmp_path_factory):
    """Each categorical column of its rows has a vocabulary, without which FuxiCTR's loader takes none."""
    folder = tmp_path_factory.mktemp("peer")
    simulate(folder / "raw", rows=4_000, users=100, items=80, seed=1)
    contract = load_contract(ROOT / "conf/data/simulated.yaml", root=str(folder / "raw"))
    return build_feature_set(contract, folder).feature_set
