"""One MM-CTR-shaped log for all tests of the peers."""

import pytest

from benchmarks.inputs import mmctr_shaped
from features.store.feature_set import FeatureSet
from tests.benchmarks.shaped import ITEMS, MAX_LEN, ROWS, USERS


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("shaped")
    built = mmctr_shaped.build(str(out), ROWS, USERS, ITEMS, MAX_LEN)
    return out, built, FeatureSet.open(out / "features" / "mmctr_shaped")
