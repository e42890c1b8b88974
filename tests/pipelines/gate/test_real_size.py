"""The gate at a real size: what it refuses of a simulated log of 100,000 rows, and why; figures of docs/gate.md.

.venv/bin/python -m pytest -n 0 -s -m slow tests/pipelines/gate/test_real_size.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from ctr.config import load_preset
from ctr.evaluation.slices import slices
from ctr.serving.ranker import Ranker
from features.build.build import build_feature_set
from features.contract.contract import load_contract
from features.simulator.simulate import simulate
from pipelines.gate import judge as judging
from pipelines.gate.fresh import FreshRows
from pipelines.gate.verdict import Verdict
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
    print("\n| bundle | verdict | rules that refuse, with their figures |\n|---|---|---|")
    print("\n".join(rows))


def line(name: str, verdict: Verdict) -> str:
    why = "; ".join(f"{one.rule}: {one.reason.partition(' against the champion')[0]}" for one in verdict.broken[:4])
    more = f"; {len(verdict.broken) - 4} more" if len(verdict.broken) > 4 else ""
    return f"| {name} | {'passed' if verdict.passed else 'refused'} | {why}{more} |"


def slower(shop: Shop) -> Verdict:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "latencies", lambda ours, theirs, rules: (20.0, 2.0))
        return shop.judged("good")


def made(name: str) -> Callable[[Shop], Verdict]:
    def verdict(shop: Shop) -> Verdict:
        getattr(shop, name)()
        return shop.judged(name)

    return verdict


def exchanged(shop: Shop) -> Verdict:
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
        return shop.judged("good")


CASES: dict[str, tuple[Callable[[Shop], Verdict], str | None]] = {
    "good, beside a champion of data that ends a week before": (lambda shop: shop.judged("good", champion="old"), None),
    "a tie: the champion itself": (lambda shop: shop.judged("good"), None),
    "trained on shuffled labels": (made("shuffled"), "AUC"),
    "stale: data ends a week before the champion's": (lambda shop: shop.judged("old"), "freshness"),
    "logits times two": (made("doubled"), "log loss"),
    "one broken slice: scores of rarely clicked items exchanged": (exchanged, "slice loss"),
    "ten times slower (clock set so)": (slower, "latency"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_it_lets_pass_and_what_it_refuses(shop: Shop, told: list[str], name: str) -> None:
    run, rule = CASES[name]
    verdict = run(shop)
    told.append(line(name, verdict))
    assert verdict.passed if rule is None else rule in {one.rule for one in verdict.broken}, verdict.reason
