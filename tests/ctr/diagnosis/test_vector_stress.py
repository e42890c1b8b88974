from __future__ import annotations

import numpy as np
import pytest
import torch

from ctr.config import ModelConfig, TrainConfig
from ctr.data.feature_tables import FrozenTables, frozen_tables
from ctr.diagnosis.vector_stress import (
    CorruptionResult,
    StressConfig,
    StressResult,
    corrupted,
    in_float32,
    is_ignored,
    item_orders,
    load_stress_config,
    plan,
    stress_model,
)
from ctr.evaluation.bootstrap import Interval
from ctr.model.click_model import ClickModel
from ctr.reporting.figures import BLUE, GREY
from ctr.reporting.run_figures import stress_plot
from ctr.training.loop import fit, predict
from features.errors import ConfigError
from features.progress import silent
from tests.toy import toy_feature_set

CONFIG = StressConfig(shares=(), noise=(1.0,), stale=(0.1,))


@pytest.fixture(scope="module")
def feature_set(tmp_path_factory):
    return toy_feature_set(tmp_path_factory.mktemp("toy") / "toy")


def tables() -> FrozenTables:
    draw = torch.Generator().manual_seed(0)
    present = torch.tensor([False, False, True, True, True, False, True])
    vectors = torch.randn(7, 3, generator=draw) * present.unsqueeze(-1)
    return FrozenTables(items={}, vectors={"a": vectors, "b": vectors.clone()}, present={"a": present, "b": present})


ORDER = np.array([4, 2, 6, 3, 5])


def corrupt(kind: str, level: float) -> FrozenTables:
    return corrupted(tables(), ["a"], kind, level, ORDER, seed=1)


def test_removal_takes_the_first_and_leaves_other_sets_alone():
    found, before = corrupt("remove", 0.4), tables()
    assert found.present["a"].tolist() == [False, False, False, True, False, False, True]
    assert found.vectors["a"][[2, 4]].abs().sum() == 0
    assert torch.equal(found.vectors["a"][[3, 6]], before.vectors["a"][[3, 6]])
    assert torch.equal(found.vectors["b"], before.vectors["b"]) and before.present["a"][4]


def test_stale_is_a_removal_of_who_comes_first_in_the_order():
    assert corrupt("stale", 0.4).present["a"].tolist() == [False, False, False, True, False, False, True]


@pytest.mark.parametrize(("level", "changed"), [(1.0, [2, 3, 4, 6]), (0.6, [2, 4, 6]), (0.4, [2, 4])])
def test_a_swap_keeps_the_vectors_and_leaves_nobody_their_own(level, changed):
    swapped = corrupt("swap", level)
    found, before = swapped.vectors["a"], tables().vectors["a"]
    assert sorted(found.tolist()) == sorted(before.tolist())
    assert (found != before).any(1).nonzero().flatten().tolist() == changed  # item 5 has none to exchange
    assert torch.equal(swapped.present["a"], tables().present["a"])


def test_noise_keeps_norms_and_turns_by_its_level():
    drawn = torch.randn(500, 400, generator=torch.Generator().manual_seed(0))
    wide = FrozenTables(items={}, vectors={"a": drawn}, present={"a": torch.ones(500, dtype=torch.bool)})
    found = corrupted(wide, ["a"], "noise", 1.0, np.arange(2, 500), seed=1).vectors["a"]
    torch.testing.assert_close(found.norm(dim=1), wide.vectors["a"].norm(dim=1))
    # As long as the vector and at a right angle to it: cosine 1 / sqrt(2).
    cosine = torch.nn.functional.cosine_similarity(found, wide.vectors["a"]).mean()
    assert cosine.item() == pytest.approx(0.5**0.5, abs=0.02)


def test_int8_errs_by_half_a_step_at_most():
    found, before = corrupt("int8", 1.0).vectors["a"], tables().vectors["a"]
    assert ((found - before).abs() <= before.abs().amax(1, keepdim=True) / 127 / 2 + 1e-7).all()
    assert not torch.equal(found, before)


def test_stored_vectors_are_decoded():
    coarse = FrozenTables(
        items={},
        vectors={"a": torch.tensor([[100, -50]], dtype=torch.int8)},
        present={"a": torch.tensor([True])},
        scales={"a": torch.tensor([0.02])},
    )
    assert in_float32(coarse).vectors["a"].tolist() == [[2.0, -1.0]] and not in_float32(coarse).scales


def test_orders_follow_training_rows_and_first_rows(feature_set):
    orders = item_orders(feature_set, seed=1)
    item = np.concatenate([part["item"] for part in feature_set.rows("train")])
    rows = np.bincount(item, minlength=feature_set.schema.items)
    assert (np.diff(rows[orders["popular_first"]]) <= 0).all() and (np.diff(rows[orders["rare_first"]]) >= 0).all()
    newest = orders["newest"][:6]  # the toy's newest tenth is not seen in training
    assert rows[newest].sum() == 0 and sorted(orders["newest"]) == list(range(2, feature_set.schema.items))


def test_an_item_without_rows_is_not_among_the_newest(tmp_path):
    few = toy_feature_set(tmp_path / "few", rows=60, items=60)
    seen = {item for split in ("train", "valid", "test") for part in few.rows(split) for item in part["item"]}
    assert len(seen) < 60 and set(item_orders(few, seed=1)["newest"]) == seen


def test_corruptions_of_all_items_come_once_and_always():
    kinds = [one for one in plan(StressConfig(shares=(0.5, 1.0))) if one[0] == "remove"]
    assert len(kinds) == 3 + 1
    assert [one[:2] for one in plan(CONFIG)] == [
        ("remove", 1.0),
        ("swap", 1.0),
        ("noise", 1.0),
        ("stale", 0.1),
        ("int8", 1.0),
    ]
    assert {kind: order for kind, _, order in plan(CONFIG)}["stale"] == "newest"


def test_an_ignored_set_is_told_and_the_tables_come_back(feature_set):
    torch.manual_seed(0)
    model = ClickModel(ModelConfig(embedding_dim=4, vector_dim=4, layers=1), feature_set.schema)
    model.attach(frozen_tables(feature_set))
    with torch.no_grad():
        model.item_encoder.vectors[0].projection.weight.mul_(20)
        model.item_encoder.vectors[1].projection.weight.zero_()
        model.item_encoder.vectors[1].missing.zero_()
    vectors = model.tables.vectors(torch.arange(5))[0]
    found = stress_model(model, feature_set, "test", CONFIG, silent)
    assert "image" in found.ignored
    by_name = {(one.sets, one.kind): one for one in found.stresses}
    assert by_name["image", "remove"].mean_abs_change < 1e-7 < 0.01 < by_name["text", "swap"].mean_abs_change
    assert {one.sets for one in found.stresses} == {"text", "image", "all"}
    assert torch.equal(model.tables.vectors(torch.arange(5))[0], vectors)
    assert "text" not in found.ignored


NOTHING = Interval(0.0, -0.0001, 0.0001)


@pytest.mark.parametrize(
    ("auc_drop", "mean_abs_change", "ignored"),
    [
        (NOTHING, 1e-5, True),
        (NOTHING, 0.02, False),  # scores move, for no better and no worse
        (Interval(-0.05, -0.06, -0.04), 0.02, False),  # a set that harms is read
        (Interval(0.0004, -0.01, 0.011), 0.02, False),  # too few rows to resolve a loss
        (Interval(0.0009, 0.0005, 0.0013), 9e-4, False),  # small, but no luck
    ],
)
def test_a_set_is_ignored_when_neither_auc_nor_scores_change(auc_drop, mean_abs_change, ignored):
    removed = CorruptionResult("text", "remove", 1.0, "random", 0.7, 0.5, NOTHING, 0.0)
    swapped = CorruptionResult("text", "swap", 1.0, "random", 0.7, 0.5, auc_drop, mean_abs_change)
    partly = CorruptionResult("text", "swap", 0.5, "random", 0.6, 0.5, Interval(0.1, 0.09, 0.11), 0.1)
    assert is_ignored([removed, swapped, partly], CONFIG) is ignored
    assert is_ignored([swapped, removed], CONFIG) is ignored


def test_a_model_trained_on_vectors_needs_them(feature_set, tmp_path):
    torch.manual_seed(0)
    model = ClickModel(ModelConfig(embedding_dim=4, vector_dim=8, layers=1), feature_set.schema)
    model.attach(frozen_tables(feature_set))
    fit(model, feature_set, TrainConfig(epochs=2, batch_size=128, device="cpu"), tmp_path, progress=silent)
    before = predict(model, feature_set, "valid")
    found = stress_model(model, feature_set, "valid", CONFIG, silent)
    assert not found.ignored and found.split == "valid"
    moved = {one.kind: one.mean_abs_change for one in found.stresses if one.sets == "all"}
    assert moved["int8"] < 0.1 * min(moved["remove"], moved["swap"], moved["noise"])
    assert 0 < moved["stale"] < moved["remove"]
    np.testing.assert_array_equal(predict(model, feature_set, "valid"), before)


def test_the_plot_has_a_panel_a_set_and_tells_luck_from_loss():
    losses = {"text": Interval(0.02, 0.01, 0.03), "all": Interval(0.001, -0.001, 0.003)}
    stresses = [CorruptionResult(sets, "swap", 1.0, "random", 0.7, 0.5, loss, 0.1) for sets, loss in losses.items()]
    figure = stress_plot(StressResult("test", 0.72, 0.5, stresses, ["text"]))
    assert [axes.get_title() for axes in figure.axes] == ["text (ignored)", "all sets"]
    assert [axes.lines[0].get_color() for axes in figure.axes] == [BLUE, GREY]
    assert figure.axes[0].lines[0].get_xdata().tolist() == [0.01, 0.03]
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["swap all"]


@pytest.mark.parametrize("wrong", [{"shares": [1.5]}, {"stale": [0.0]}, {"noise": [-1.0]}, {"orders": ["newest"]}])
def test_an_impossible_level_is_refused(tmp_path, wrong):
    path = tmp_path / "stress.yaml"
    path.write_text("seed: 1\n")
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        load_stress_config(path, wrong)


def test_a_wrong_key_is_named(tmp_path):
    path = tmp_path / "stress.yaml"
    path.write_text("share: [1.0]\n")
    with pytest.raises(ConfigError, match="shares"):
        load_stress_config(path)


def test_a_seed_below_zero_is_refused_before_anything_is_scored(tmp_path):
    path = tmp_path / "stress.yaml"
    path.write_text("seed: -1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="seed: Input should be greater than or equal to 0"):
        load_stress_config(path)
