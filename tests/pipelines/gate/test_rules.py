"""The rules of the gate, each just inside and just outside its bound, and what one broken slice does."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from ctr.evaluation.bootstrap import Interval
from ctr.evaluation.slices import Slice
from features.monitor.drift.compare import ColumnDrift, Drift
from features.monitor.profile.file import ColumnProfile, Profile, SplitProfile, VectorCoverage
from features.store.feature_set import Window
from pipelines.gate import rules
from pipelines.gate.rules import Scored
from pipelines.gate.settings import GateRules, LatencyRules, SizeRules, SliceRules
from pipelines.gate.verdict import Finding

GATE = GateRules()
NAN = math.nan
HOUR = 3_600_000_000


def window(last_time: int) -> Window:
    return Window(rows=10, positives=5, first_time=0, last_time=last_time)


DAYS = ("2026-03-01", "2026-03-07")
COMMAND = "quadrank drift --base old --new new --split test"


def drifted(*verdicts: str) -> Drift:
    return Drift(100, 100, DAYS, DAYS, tuple(ColumnDrift(f"c{i}", verdict) for i, verdict in enumerate(verdicts)))


# Just inside; then what is just outside, and no number at all where the rule can meet one.
BOUNDS: dict[str, tuple[Callable[[], Finding], ...]] = {
    "calibration low": (
        lambda: rules.calibrated(0.8, GATE),
        lambda: rules.calibrated(0.7999, GATE),
        lambda: rules.calibrated(NAN, GATE),
    ),
    "calibration high": (
        lambda: rules.calibrated(1.25, GATE),
        lambda: rules.calibrated(1.2501, GATE),
        lambda: rules.calibrated(NAN, GATE),
    ),
    "ece": (
        lambda: rules.small_ece(0.1, GATE),
        lambda: rules.small_ece(0.1001, GATE),
        lambda: rules.small_ece(NAN, GATE),
    ),
    "popularity": (
        lambda: rules.above_popularity(0.6501, 0.65),
        lambda: rules.above_popularity(0.65, 0.65),
        lambda: rules.above_popularity(0.7, NAN),
    ),
    "auc": (
        lambda: rules.not_worse({"auc": Interval(-0.01, -0.02, 0.0001)})[0],
        lambda: rules.not_worse({"auc": Interval(-0.01, -0.02, -0.0001)})[0],
        lambda: rules.not_worse({"auc": Interval(NAN, NAN, NAN)})[0],
    ),
    "requests": (
        lambda: rules.not_worse({"group_auc": Interval(-0.01, -0.02, 0.0001)})[1],
        lambda: rules.not_worse({"group_auc": Interval(-0.01, -0.02, -0.0001)})[1],
        lambda: rules.not_worse({"group_auc": Interval(-0.01, NAN, NAN)})[1],
    ),
    "log loss": (
        lambda: rules.not_worse({"log_loss": Interval(0.01, -0.0001, 0.02)})[2],
        lambda: rules.not_worse({"log_loss": Interval(0.01, 0.0001, 0.02)})[2],
        lambda: rules.not_worse({"log_loss": Interval(0.01, NAN, NAN)})[2],
    ),
    "freshness": (
        lambda: rules.newer_data(window(5 * HOUR), window(5 * HOUR)),
        lambda: rules.newer_data(window(5 * HOUR - 1), window(5 * HOUR)),
    ),
    "latency": (
        lambda: rules.fast_enough(100.0, None, LatencyRules()),
        lambda: rules.fast_enough(100.1, None, LatencyRules()),
        lambda: rules.fast_enough(NAN, None, LatencyRules()),
    ),
    "latency beside the champion": (
        lambda: rules.fast_enough(5.0, 2.0, LatencyRules()),
        lambda: rules.fast_enough(5.01, 2.0, LatencyRules()),
        lambda: rules.fast_enough(5.0, NAN, LatencyRules()),
    ),
    "size": (
        lambda: rules.small_enough(10 * 2**20, None, SizeRules(mib=10)),
        lambda: rules.small_enough(10 * 2**20 + 1, None, SizeRules(mib=10)),
    ),
    "size beside the champion": (
        lambda: rules.small_enough(46 * 2**20, 10 * 2**20, SizeRules()),
        lambda: rules.small_enough(46 * 2**20 + 1, 10 * 2**20, SizeRules()),
    ),
    "scores": (
        lambda: rules.finite_scores(np.array([0.0, 1.0])),
        lambda: rules.finite_scores(np.array([0.0, 1.0001])),
        lambda: rules.finite_scores(np.array([0.5, NAN])),
    ),
    "fresh rows": (
        lambda: rules.enough_rows(np.array([1.0] * 20 + [0.0] * 20), GATE),
        lambda: rules.enough_rows(np.array([1.0] * 19 + [0.0] * 400), GATE),
        lambda: rules.enough_rows(np.array([1.0] * 400 + [0.0] * 19), GATE),
    ),
    "drift": (
        lambda: rules.steady_data(drifted("stable", "too few rows", "drift"), ["c2"], GATE, COMMAND),
        lambda: rules.steady_data(drifted("stable", "drift"), ["c2"], GATE, COMMAND),
        lambda: rules.steady_data(drifted("only in new"), [], GATE, COMMAND),
    ),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_a_figure_on_its_bound_passes_and_one_beyond_does_not(name: str) -> None:
    inside, *outside = (one() for one in BOUNDS[name])
    assert inside.passed and inside.reason == ""
    assert [one.passed for one in outside] == [False] * len(outside)
    assert all(one.reason for one in outside)


def test_losses_are_judged_together() -> None:
    """One of three that is significant only for itself is noise."""
    alone, clear, none = Interval(-0.01, -0.019, -0.001), Interval(-0.02, -0.03, -0.01), Interval(0.0, -0.01, 0.01)
    assert [one.passed for one in rules.not_worse({"auc": alone})] == [False, True, True]
    together = {"auc": alone, "group_auc": none, "log_loss": none}
    assert [one.passed for one in rules.not_worse(together)] == [True, True, True]
    assert [one.passed for one in rules.not_worse(together | {"auc": clear})] == [False, True, True]


def test_a_loss_by_rounding_is_a_tie() -> None:
    tiny = Interval(-9e-6, -9e-6, -9e-6)
    assert rules.not_worse({"auc": tiny})[0].passed
    assert not rules.not_worse({"auc": Interval(-1.1e-5, -1.1e-5, -1.1e-5)})[0].passed


def test_a_figure_that_is_no_number_hides_no_other() -> None:
    found = rules.not_worse({"auc": Interval(NAN, NAN, NAN), "log_loss": Interval(0.02, 0.01, 0.03)})
    assert [one.passed for one in found] == [False, True, False]


def test_what_is_not_measured_says_so() -> None:
    assert "fewer than 1,000" in rules.small_ece(None, GATE).reason
    within = rules.not_worse({"auc": Interval(0, 0, 0), "log_loss": Interval(0, 0, 0)})[1]
    assert within.passed and "no request has both labels" in within.reason


def test_vectors_of_another_encoder_are_named_and_refused() -> None:
    assert rules.same_encoders(()).passed
    found = rules.same_encoders(("text", "image"))
    assert found.refuses and not found.passed and found.figure == 2
    assert found.reason.startswith("text, image: most items have other vectors")


def test_drift_warns_unless_it_is_to_refuse() -> None:
    found = drifted("drift")
    assert rules.steady_data(found, [], GATE, COMMAND).refuses is False
    assert rules.steady_data(found, [], GateRules(drift="refuse"), COMMAND).refuses is True


def test_drift_names_the_command_that_compares_the_same_rows() -> None:
    reason = rules.steady_data(drifted("drift", "stable"), [], GATE, COMMAND).reason
    assert reason == f"drift in 1 of 2 columns: c0. `{COMMAND}` shows how much"


def profile(train: SplitProfile, test: SplitProfile) -> Profile:
    return Profile(
        format=1,
        items=2,
        users=2,
        vector_coverage={},
        sampled_one_in=1,
        splits={"train": train, "test": test},
        periods=(),
        bins={},
        tallies={},
    )


def split(missing: dict[str, float], vectors: float) -> SplitProfile:
    columns = {name: ColumnProfile(missing=0, missing_share=share) for name, share in missing.items()}
    return SplitProfile(
        rows=10, history_length={}, vectors={"text": VectorCoverage(rows=vectors)}, columns=columns, days={}
    )


TRAINED = {"context.device": 0.05, "item.id": 0.0, "context.hour": 0.0}


@pytest.mark.parametrize(
    ("now", "vectors", "named"),
    [
        (TRAINED, 0.9, None),
        (TRAINED | {"context.device": 0.15}, 0.9, None),
        (TRAINED | {"context.device": 0.1501}, 0.9, "context.device (+10.0%)"),
        (TRAINED | {"item.id": 1.0}, 0.9, None),  # new items are no missing values
        (TRAINED, 0.79, "vectors.text (+11.0%)"),
        ({"context.hour": 0.0}, 0.9, "context.device (+100.0%)"),
        (TRAINED | {"context.hour": NAN}, 0.9, "context.hour (+nan%)"),
    ],
)
def test_columns_and_vectors_that_fresh_rows_lack(now: dict[str, float], vectors: float, named: str | None) -> None:
    found = rules.filled_columns(profile(split(TRAINED, 0.9), split(now, vectors)), "test", ("item.id",), GATE)
    assert (None if found.passed else found.reason.partition("training: ")[2].partition(". Look")[0]) == named


def scored(rows: int = 4000, seed: int = 0) -> Scored:
    """Rows of 100 users; champion and challenger know the true probabilities, but for a noise of their own."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=rows) - 0.5
    labels = (draw.random(rows) < 1 / (1 + np.exp(-logits))).astype(float)
    users = draw.integers(100, size=rows)

    def noisy() -> np.ndarray:
        return 1 / (1 + np.exp(-(logits + 0.1 * draw.normal(size=rows))))

    return Scored(labels, np.ones(rows), users, users, noisy(), noisy())


def halves(rows: int = 4000) -> list[Slice]:
    first = np.arange(rows) < rows // 2
    return [Slice("item", "old", first), Slice("item", "new", ~first)]


def with_challenger(of: Scored, challenger: np.ndarray) -> Scored:
    return Scored(of.labels, of.weights, of.users, of.groups, challenger, of.champion)


def test_slices_that_hold_are_one_finding() -> None:
    (found,) = rules.slice_findings(halves(), scored(), SliceRules())
    assert found.passed and found.rule == "slices" and found.figure == 6  # three figures of each slice


def test_a_slice_that_says_nothing_is_a_loss_against_the_champion() -> None:
    given = scored()
    broken = np.where(halves()[1].rows_N, np.random.default_rng(1).permutation(given.challenger), given.challenger)
    found = rules.slice_findings(halves(), with_challenger(given, broken), SliceRules())
    assert [one.rule for one in found] == ["slice loss"] and found[0].reason.startswith("item, new: AUC -0.")


def test_without_a_champion_a_slice_must_not_be_worse_than_chance() -> None:
    given = scored()
    alone = Scored(given.labels, given.weights, given.users, given.groups, given.challenger)
    assert rules.slice_findings(halves(), alone, SliceRules())[0].passed
    turned = np.where(halves()[1].rows_N, 1 - given.challenger, given.challenger)
    rate = given.labels.mean()
    turned = turned * rate / turned[halves()[1].rows_N].mean()  # as many clicks as there are
    alone = Scored(given.labels, given.weights, given.users, given.groups, np.clip(turned, 0, 1))
    found = rules.slice_findings(halves(), alone, SliceRules())
    assert [one.rule for one in found] == ["slice AUC"] and "item, new: AUC 0." in found[0].reason


def test_a_slice_of_twice_the_clicks_is_out_of_calibration() -> None:
    given = scored()
    low = np.where(halves()[0].rows_N, given.challenger / 2.2, given.challenger)
    found = rules.slice_findings(halves(), with_challenger(given, low), SliceRules())
    assert [one.rule for one in found] == ["slice calibration"] and "item, old" in found[0].reason


def test_small_slices_are_not_judged() -> None:
    given, few = scored(), Slice("item", "rare", np.arange(4000) < 299)
    broken = with_challenger(given, 1 - given.challenger)
    (found,) = rules.slice_findings([few], broken, SliceRules())
    assert found.passed and found.figure is None
    assert not rules.slice_findings([Slice("item", "rare", np.arange(4000) < 300)], broken, SliceRules())[0].passed


def test_a_slice_of_one_user_or_of_one_label_is_not_ranked() -> None:
    given = scored()
    one_user = Scored(given.labels, given.weights, given.users * 0, given.groups, 1 - given.challenger)
    one_label = Scored(given.labels * 0, given.weights, given.users, given.groups, given.challenger)
    for part in (one_user, one_label):
        assert "slice AUC" not in {one.rule for one in rules.slice_findings(halves(), part, SliceRules())}
