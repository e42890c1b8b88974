"""The gate at a real size: what it refuses of a simulated log of 100,000 rows, and why; figures of docs/gate.md.

.venv/bin/python -m pytest -n 0 -s -m slow tests/pipelines/gate/test_real_size.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from ctr.config import load_preset
from ctr.evaluation.slices import slices
from ctr.reporting.mlflow_registry import Registry
from ctr.serving.ranker import Ranker
from features.build.build import build_feature_set
from features.contract.contract import load_contract
from features.simulator.simulate import simulate
from features.store.pointer import point_at
from pipelines.gate import judge as judging
from pipelines.gate.fresh import FreshRows
from pipelines.gate.history import read_moves
from pipelines.gate.pointers import ALIAS, mend, registered_name
from pipelines.gate.promote import promote_bundle
from pipelines.gate.settings import GateRules
from pipelines.workspace import Workspace
from tests.documents import ROOT
from tests.pipelines.gate.bundles import Shop

pytestmark = pytest.mark.slow
SLICE = ("item popularity", "tail")
TRAIN = {"train": {"epochs": 3, "batch_size": 256, "evaluations_per_epoch": 1, "device": "cpu"}}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    root = tmp_path_factory.mktemp("real")
    simulate(root / "raw", rows=100_000, users=2_000, items=1_000, seed=1)
    contract = load_contract(ROOT / "conf/data/simulated.yaml", None, str(root / "raw"))
    sets = Workspace(root).feature_sets
    old, new = (build_feature_set(contract, sets, as_of=day).feature_set for day in ("2025-04-06", None))
    preset = load_preset(ROOT / "conf/model/lr.yaml", ROOT / "conf/train.yaml", TRAIN)
    return Shop(root, old, new, preset.model, preset.train)


@pytest.fixture(scope="module")
def told() -> Iterator[list[str]]:
    """Rows of a table, printed at the end."""
    rows: list[str] = []
    yield rows
    print("\n| bundle | exit code | rules that refuse, with their figures |\n|---|---:|---|")
    print("\n".join(rows))


@dataclass(frozen=True)
class Serving:
    """What servers follow, and how often it was moved."""

    current: str
    champion: str | None
    moves: int

    @classmethod
    def of(cls, shop: Shop) -> Serving:
        tags = Registry(shop.root).version_tags(registered_name(shop.new.manifest.name), ALIAS)
        current = (shop.bundles / "CURRENT").read_text(encoding="utf-8")
        return cls(current, tags.get("model_version"), len(read_moves(shop.bundles)))


@dataclass(frozen=True)
class Ending:
    """How `quadrank promote` ended, and what served before and after."""

    summary: dict[str, Any]
    before: Serving
    after: Serving

    @property
    def broken(self) -> list[dict[str, Any]]:
        """Findings that refuse."""
        return [one for one in self.summary["gate"]["findings"] if one["refuses"] and not one["passed"]]


def promoted(shop: Shop, name: str, champion: str = "good") -> Ending:
    point_at(shop.bundles, champion)
    mend(shop.new.manifest.name, shop.workspace)
    before = Serving.of(shop)
    summary = promote_bundle(shop.bundles / name, shop.workspace, GateRules(), Console(quiet=True))
    return Ending(summary, before, Serving.of(shop))


def line(name: str, ending: Ending) -> str:
    why = [f"{one['rule']}: {one['reason'].partition(' against the champion')[0]}" for one in ending.broken]
    more = f"; {len(why) - 4} more" if len(why) > 4 else ""
    return f"| {name} | {ending.summary['exit_code']} | {'; '.join(why[:4])}{more} |"


def slower(shop: Shop) -> Ending:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "latencies", lambda ours, theirs, rules: (20.0, 2.0))
        return promoted(shop, "good")


def made(name: str) -> Callable[[Shop], Ending]:
    def ending(shop: Shop) -> Ending:
        getattr(shop, name)()
        return promoted(shop, name)

    return ending


def unlike(shop: Shop) -> Ending:
    shop.unlike("unlike")
    return promoted(shop, "unlike")


def exchanged(shop: Shop) -> Ending:
    """The scores of one slice, dealt out among its rows: as many clicks are promised, of the wrong items."""
    scores_of, calls = judging.scores_of, []
    (tail,) = (one.rows_N for one in slices(shop.new, "test") if (one.dimension, one.name) == SLICE)

    def broken(ranker: Ranker, rows: FreshRows) -> np.ndarray:
        scores = scores_of(ranker, rows)
        calls.append(ranker)
        if len(calls) == 1:  # of the challenger
            inside = np.flatnonzero(tail[rows.place_N])
            scores[inside] = scores[np.random.default_rng(0).permutation(inside)]
        return scores

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "scores_of", broken)
        return promoted(shop, "good")


CASES: dict[str, tuple[Callable[[Shop], Ending], str | None]] = {
    "good, beside a champion of data that ends a week before": (lambda shop: promoted(shop, "good", "old"), None),
    "a tie: the champion itself": (lambda shop: promoted(shop, "good"), None),
    "trained on shuffled labels": (made("shuffled"), "AUC"),
    "stale: data ends a week before the champion's": (lambda shop: promoted(shop, "old"), "freshness"),
    "logits times two": (made("doubled"), "log loss"),
    "one broken slice: scores of rarely clicked items exchanged": (exchanged, "slice loss"),
    "ten times slower (clock set so)": (slower, "latency"),
    "parity broken: golden requests ask for half of their scores": (unlike, "parity"),
}


PASSED = {name for name, (_, rule) in CASES.items() if rule is None}


@pytest.mark.parametrize("name", sorted(PASSED))
def test_what_it_lets_pass_serves(shop: Shop, told: list[str], name: str) -> None:
    ending = CASES[name][0](shop)
    told.append(line(name, ending))
    assert ending.summary["exit_code"] == 0, ending.broken
    assert (ending.after.current, ending.after.champion) == ("good", "good")


@pytest.mark.parametrize("name", [name for name in CASES if name not in PASSED])
def test_what_it_refuses_ends_with_6_and_leaves_the_champion(shop: Shop, told: list[str], name: str) -> None:
    run, rule = CASES[name]
    ending = run(shop)
    told.append(line(name, ending))
    assert ending.summary["exit_code"] == 6
    assert rule in {one["rule"] for one in ending.broken}
    assert ending.after == ending.before
