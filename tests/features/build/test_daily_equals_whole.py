"""Whatever the contract says and whatever happens between builds: added day by day equals built at once.

By design these differ, and are compared by what they mean instead:

- rows of catalogues and indices of vocabularies: by raw values. A kept day has a value as unknown that was so when it
  was encoded, and a vocabulary keeps values that have left the window; so one side may be unknown, but the day must be
  kept (or the event carried on from one), or the value old. What was hashed from the same raw column is compared
  exactly.
- values of a full vocabulary (`max_size`): either side may know one that the other has no room for. Of tags those are
  compared that both vocabularies have.
- the scale of numbers: by the number before scaling. Edges of quantiles (`load_decile`): each index must be the one
  that the feature set's own edges give to the raw number.
- the mean that rates are drawn towards is that of the first of the kept builds: one constant here.
- transforms learned from vectors stay those of the kept build: compared are sets that learn nothing.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, event, given, settings

from features.build.build import build_feature_set
from features.contract.contract import Contract
from features.contract.settings import validate
from features.errors import ConfigError, DataError
from features.point_in_time import counter_pass
from features.store.feature_set import FeatureSet
from tests.features.compared_builds import assert_same
from tests.features.drawn_builds import FIRST, Case, RawFiles, cases

# Not shrunk: a step of it is several builds, and the case as drawn is short enough to read.
ANY: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "derandomize": "DAILY_EXAMPLES" not in os.environ,
    "phases": (Phase.explicit, Phase.generate),
    "database": None,
}


@pytest.fixture(autouse=True, scope="module")
def one_mean() -> Iterator[None]:
    """The mean that rates are drawn towards, the same in both builds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counter_pass, "label_mean", lambda *args: 0.4)
        yield


@settings(max_examples=30, **ANY)
@given(cases())
def test_added_day_by_day_equals_built_at_once(case: Case) -> None:
    compare(case)


@pytest.mark.slow
@pytest.mark.timeout(3_600)
@settings(max_examples=int(os.environ.get("DAILY_EXAMPLES", "300")), **ANY)
@given(cases())
def test_added_day_by_day_equals_built_at_once_300_times(case: Case) -> None:
    compare(case)


def compare(case: Case) -> None:
    """Run the steps, and build at once what the last one built."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        contract = contract_of(case, folder)
        if contract is None:
            event("the contract is refused")
            return
        files = RawFiles(folder / "raw", case)
        before: FeatureSet | None = None
        touched = 0
        inodes: set[int] = set()
        for what, how in case.steps:
            if what != "build":
                files.step(what, how)
                touched = min(touched, changed_from(case, what, how))
                continue
            built = build(contract, folder / "daily", *how)
            if isinstance(built, FeatureSet):
                if before is not None:
                    inodes |= inodes_of(before)
                    if not admits_ids_by_day(case):
                        assert_kept(before, built, touched, inodes)
                before, touched = built, 10**6
        at_once = build(contract, folder / "whole", *how)
        if not isinstance(built, FeatureSet) or not isinstance(at_once, FeatureSet):
            event("no build: " + " ".join(str(built).split()[-8:]))
            assert isinstance(built, Exception) and isinstance(at_once, Exception), (built, at_once)
            return
        event("days kept" if inodes & inodes_of(built) else "no day kept")
        assert_same(built, at_once, inodes)


def contract_of(case: Case, folder: Path) -> Contract | None:
    """None where the contract is refused."""
    try:
        return validate(Contract, case.content | {"root": str(folder / "raw")}, "drawn.yaml")
    except ConfigError:
        return None


def build(contract: Contract, out: Path, as_of: int | None, window: int) -> FeatureSet | DataError:
    """A feature set; or the error, if it is that a window has no rows, or none that vectors can be learned from."""
    day = None if as_of is None else (FIRST + timedelta(days=as_of)).isoformat()
    try:
        return build_feature_set(contract, out, as_of=day, window=window).feature_set
    except DataError as error:
        if not any(words in str(error) for words in ("window has no rows", "fewer than the set's width")):
            raise
        return error


def changed_from(case: Case, what: str, how: Any) -> int:
    """The first day whose input a step may have changed, as a number."""
    if what in ("late", "rewrite", "copy"):
        return int(how)
    if what == "items":
        return -(10**6) if asks_tables(case) else 10**6
    return int(how) - (4 if what == "gap" else 1)


def asks_tables(case: Case) -> bool:
    """Whether rows of ids that a table does not name are put aside: a changed table then changes every day."""
    return "quarantine" in {case.content["checks"].get(name) for name in ("unknown_item", "unknown_user")}


def admits_ids_by_day(case: Case) -> bool:
    """Whether a later day lets in rows of earlier ones, whose id has its first version by then."""
    return asks_tables(case) and any("valid_from" in case.content.get(name, {}) for name in ("items", "users"))


def assert_kept(before: FeatureSet, after: FeatureSet, touched: int, inodes: set[int]) -> None:
    """The window's first days that the build before has, and whose input no step touched, are files of earlier builds.

    Not always of the one before: another may have more of the window's days.
    """
    days = {part.day for part in before.manifest.parts}
    for part in sorted(after.manifest.parts, key=lambda part: str(part.day)):
        number = (np.datetime64(part.day) - np.datetime64(FIRST)).astype(int)
        if part.day not in days or number >= touched:
            return
        assert {(after.path / name).stat().st_ino for name in (part.rows, part.events)} <= inodes


def inodes_of(built: FeatureSet) -> set[int]:
    """Of the files of rows and events."""
    return {(built.path / name).stat().st_ino for part in built.manifest.parts for name in (part.rows, part.events)}


def test_most_contracts_are_taken(tmp_path: Path) -> None:
    """Refused ones are left out of the property: they must stay few."""
    refused = []

    @settings(max_examples=150, **ANY)
    @given(cases())
    def count(case: Case) -> None:
        refused.append(contract_of(case, tmp_path) is None)

    count()
    assert np.mean(refused) < 0.2
