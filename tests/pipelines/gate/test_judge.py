"""Real bundles at the gate: what it lets pass, and that it refuses each kind of bad one for what is bad in it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from ctr.config import ModelConfig, TrainConfig
from ctr.serving.bundle import open_bundle
from features.build.build import build_feature_set
from features.contract.contract import Contract
from features.errors import ConfigError, NumericalError, StoreAwayError
from features.monitor.drift.compare import ColumnDrift, Drift
from features.store.feature_set import FeatureSet
from pipelines.gate import fresh, pointers
from pipelines.gate import judge as judging
from pipelines.gate.judge import judge
from pipelines.gate.settings import GateRules
from pipelines.gate.verdict import Verdict
from pipelines.workspace import Workspace
from tests.pipelines.gate.bundles import Shop

ROWS, USERS, ITEMS, DAYS = 8_000, 200, 40, 20
CONFIG = ModelConfig(attention="mean", tower="linear", embedding_dim=4)
TRAIN = TrainConfig(epochs=2, batch_size=128, evaluations_per_epoch=1, learning_rate=0.05, device="cpu")
RULES = GateRules()


def contract(raw: Path) -> Contract:
    return Contract.model_validate(
        {
            "name": "shop",
            "root": str(raw),
            "interactions": {
                "path": "log.parquet",
                "user": "user",
                "item": "item",
                "time": "time",
                "label": "clicked",
                "context": {"device": {"type": "categorical"}},
            },
            "checks": {"earliest": "1970-01-01"},
            "history": {"max_len": 4},
        }
    )


def write_log(raw: Path) -> None:
    """Clicks that item and device decide; the last five items come in the last third of the days."""
    raw.mkdir()
    draw = np.random.default_rng(0)
    time = np.sort(draw.integers(DAYS * 86_400, size=ROWS))
    items = np.where(time > DAYS * 86_400 * 2 / 3, ITEMS, ITEMS - 5)
    item = (draw.random(ROWS) ** 2 * items).astype(np.int64)  # the first ones are shown most
    likes = np.random.default_rng(1).permutation(np.linspace(-2.5, 1.5, ITEMS))
    device = draw.integers(2, size=ROWS)
    logits = likes[item] + np.where(device == 1, 1.0, -1.0)
    pl.DataFrame(
        {
            "user": draw.integers(USERS, size=ROWS),
            "item": item,
            "time": time,
            "clicked": (draw.random(ROWS) < 1 / (1 + np.exp(-logits))).astype(np.int64),
            "device": np.array(["phone", "desk"])[device],
        }
    ).write_parquet(raw / "log.parquet")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    root = tmp_path_factory.mktemp("gate")
    write_log(root / "raw")
    sets = Workspace(root).feature_sets
    old, new = (build_feature_set(contract(root / "raw"), sets, as_of=day).feature_set for day in ("1970-01-17", None))
    return Shop(root, old, new, CONFIG, TRAIN)


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both bundles take two milliseconds: a machine that other tests share is no clock."""
    monkeypatch.setattr(judging, "latencies", lambda ours, theirs, rules: (2.0, None if theirs is None else 2.0))


def broken(verdict: Verdict) -> set[str]:
    return {one.rule for one in verdict.broken}


def test_a_good_bundle_passes_beside_a_champion_of_older_data(shop: Shop) -> None:
    verdict = shop.judged("good", champion="old")
    assert verdict.passed, verdict.reason
    assert verdict.champion == "old" and verdict.rows == shop.new.manifest.windows["test"].rows
    assert verdict.metrics["auc"] > 0.7 and 0.6 < verdict.metrics["champion.auc"] < 0.99


def test_the_first_bundle_is_judged_for_itself(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pointers.Registry, "version_tags", lambda registry, name, alias: {})
    (shop.bundles / "CURRENT").unlink(missing_ok=True)
    verdict = shop.judged("good", champion=None)
    assert verdict.passed and verdict.champion is None
    assert not {one.rule for one in verdict.findings} & {"AUC", "log loss", "freshness", "drift", "champion"}


def test_a_job_does_not_wait_for_a_registry_that_could_name_a_champion(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise StoreAwayError("server: does not answer")

    monkeypatch.setattr(pointers.Registry, "version_tags", away)
    (shop.bundles / "CURRENT").unlink(missing_ok=True)
    verdict = shop.judged("good", champion=None)
    (found,) = [one for one in verdict.findings if one.rule == "champion"]
    assert (found.passed, found.refuses, verdict.passed) == (False, False, True)
    assert found.reason == "compared with nothing: no CURRENT is here, and server: does not answer"


def test_a_tie_passes(shop: Shop) -> None:
    verdict = shop.judged("good", champion="good")
    assert verdict.passed, verdict.reason
    figures = {one.rule: one.figure for one in verdict.findings}
    assert (figures["AUC"], figures["AUC within requests"], figures["log loss"]) == (0, 0, 0)


def test_a_copy_that_is_read_from_the_raw_log_is_a_tie_too(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores that summation order alone sets apart are no loss."""
    both = iter([fresh.scores_as_stored, fresh.scores_from_log])
    monkeypatch.setattr(judging, "scores_of", lambda ranker, rows: next(both)(ranker, rows))
    verdict = shop.judged("good", champion="good")
    assert verdict.passed, verdict.reason


@pytest.mark.slow  # a third model is trained
def test_shuffled_labels_are_refused(shop: Shop) -> None:
    shop.shuffled()
    assert broken(shop.judged("shuffled")) >= {"popularity", "AUC", "AUC within requests", "log loss"}


def test_a_stale_model_is_refused(shop: Shop) -> None:
    verdict = shop.judged("old", champion="good")
    assert "freshness" in broken(verdict)
    (found,) = [one for one in verdict.findings if one.rule == "freshness"]
    assert found.figure == pytest.approx(3 * 24, abs=1) and "quadrank rollback" in found.reason


def test_logits_times_two_are_refused(shop: Shop) -> None:
    shop.doubled()
    found = broken(shop.judged("doubled"))
    assert "log loss" in found and "AUC" not in found  # the order of rows is the same


def test_one_broken_slice_is_refused(shop: Shop) -> None:
    shop.sliced()
    verdict = shop.judged("sliced", slices={"rows": 100})
    assert any(one.reason.startswith("item popularity, torso: AUC -0.") for one in verdict.broken)


def test_a_bundle_ten_times_slower_is_refused(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "latencies", lambda ours, theirs, rules: (20.0, 2.0))
    assert broken(shop.judged("good")) == {"latency"}


def test_a_bundle_too_large_is_refused(shop: Shop) -> None:
    assert broken(shop.judged("good", size={"mib": 0.001})) == {"size"}


def test_broken_parity_is_refused_and_nothing_else_is_asked(shop: Shop) -> None:
    copy = shop.unlike("unlike")
    verdict = shop.judged("unlike")
    assert broken(verdict) == {"parity"} and len(verdict.findings) == 2  # and the champion's own
    assert "scores" in verdict.reason and copy.name in verdict.reason


def test_a_champion_that_scores_otherwise_here_lets_nothing_pass_unless_it_is_left_out(shop: Shop) -> None:
    shop.unlike("skewed")
    verdict = shop.judged("good", champion="skewed")
    assert broken(verdict) == {"champion"} and "gate.compare=false" in verdict.reason
    assert shop.judged("good", champion="skewed", compare=False).passed


def test_a_damaged_champion_lets_nothing_pass(shop: Shop) -> None:
    copy = shutil.copytree(shop.bundles / "good", shop.bundles / "damaged")
    (copy / "more.txt").touch()
    verdict = shop.judged("good", champion="damaged")
    assert broken(verdict) == {"champion"} and verdict.champion == "damaged"


@pytest.mark.parametrize("lost", [0, -1])
def test_a_score_that_is_no_number_is_refused(shop: Shop, monkeypatch: pytest.MonkeyPatch, lost: int) -> None:
    scores_of = judging.scores_of

    def with_nan(ranker: Any, rows: Any) -> np.ndarray:
        scores = scores_of(ranker, rows)
        scores[lost] = math.nan
        return scores

    monkeypatch.setattr(judging, "scores_of", with_nan)
    assert broken(shop.judged("good")) == {"scores"}


def test_a_graph_that_gives_no_number_is_refused(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(ranker: Any, rows: Any) -> np.ndarray:
        raise NumericalError("3 of 9 scores are not finite")

    monkeypatch.setattr(judging, "scores_of", fails)
    verdict = shop.judged("good")
    assert broken(verdict) == {"scores"} and "3 of 9" in verdict.reason


def test_too_few_clicks_are_refused(shop: Shop) -> None:
    assert broken(shop.judged("good", clicks=10_000)) == {"fresh rows"}


def test_drift_is_a_warning_that_the_job_reads(shop: Shop) -> None:
    verdict = shop.judged("good", champion="old")
    found = {one.rule: one for one in verdict.findings}["drift"]
    assert found.refuses is False and verdict.passed and verdict.drifted is (not found.passed)
    assert "drift" not in {one.rule for one in shop.judged("good", champion="old", drift="ignore").findings}


def test_drift_names_the_command_that_shows_it(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    day = ("2026-03-01", "2026-03-01")
    drifted = Drift(9, 9, day, day, (ColumnDrift("context.load", "drift"),))
    monkeypatch.setattr(judging, "compare", lambda *profiles, **rows: drifted)
    found = {one.rule: one for one in shop.judged("good", champion="old").findings}["drift"]
    command = f"quadrank drift --base {shop.old.path} --new {shop.new.path} --split test"
    assert found.reason == f"drift in 1 of 1 columns: context.load. `{command}` shows how much"


def test_vectors_of_another_encoder_under_the_same_version_are_refused(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def turned(old: FeatureSet, new: FeatureSet) -> tuple[str, ...]:
        asked.extend((old.path, new.path))
        return ("text",)

    monkeypatch.setattr(judging, "other_encoders", turned)
    assert broken(shop.judged("good", champion="old")) == {"vectors"}
    assert asked == [shop.old.path, shop.new.path]


def test_a_champion_whose_data_is_gone_is_not_compared_by_drift(shop: Shop) -> None:
    profile = shop.old.path / "profile.json"
    hidden = profile.rename(profile.with_suffix(".hidden"))
    try:
        verdict = shop.judged("good", champion="old")
    finally:
        hidden.rename(profile)
    assert "is not here any more" in {one.rule: one for one in verdict.findings}["drift"].reason and verdict.passed


def test_the_verdict_is_written_beside_the_bundle_and_not_into_it(shop: Shop) -> None:
    verdict = shop.judged("good")
    written = json.loads((shop.bundles / "good.gate.json").read_text())
    assert written == {"gate": verdict.as_json()} and written["gate"]["passed"] is True
    open_bundle(shop.bundles / "good")  # its files are those of its manifest


def test_a_bundle_whose_feature_set_is_elsewhere_says_the_way_out(shop: Shop, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"feature_sets/shop/.*: the bundle was trained on this .* --work"):
        judge(shop.bundles / "good", Workspace(tmp_path), RULES, Console(quiet=True))
