from __future__ import annotations

import numpy as np
import pytest
import torch

from ctr.config import ModelConfig
from ctr.models import build_model
from ctr.stress import StressConfig, in_float32, item_orders, load_stress_config, plan, stress_model, stressed
from ctr.tables import FrozenTables, frozen_tables
from features.errors import ConfigError
from features.progress import silent
from tests.toy import toy_feature_set

CONFIG = StressConfig(shares=(1.0,), orders=("random",), noise=(1.0,), stale=(0.1,))


@pytest.fixture(scope="module")
def feature_set(tmp_path_factory):
    return toy_feature_set(tmp_path_factory.mktemp("toy") / "toy")


def tables() -> FrozenTables:
    draw = torch.Generator().manual_seed(0)
    present = torch.tensor([False, False, True, True, True, False, True])
    vectors = torch.randn(7, 3, generator=draw) * present.unsqueeze(-1)
    return FrozenTables(items={}, vectors={"a": vectors, "b": vectors.clone()}, present={"a": present, "b": present})


ORDER, NEWEST = np.array([4, 2, 6, 3, 5]), np.array([6, 3, 2, 4, 5])


def strike(kind: str, level: float) -> FrozenTables:
    return stressed(tables(), ["a"], kind, level, ORDER, NEWEST, seed=1)


def test_removal_takes_the_first_and_leaves_other_sets_alone():
    found, before = strike("remove", 0.4), tables()
    assert found.present["a"].tolist() == [False, False, False, True, False, False, True]
    assert found.vectors["a"][[2, 4]].abs().sum() == 0
    assert torch.equal(found.vectors["a"][[3, 6]], before.vectors["a"][[3, 6]])
    assert torch.equal(found.vectors["b"], before.vectors["b"]) and before.present["a"][4]


def test_stale_takes_the_newest():
    assert strike("stale", 0.4).present["a"].tolist() == [False, False, True, False, True, False, False]


def test_a_swap_keeps_the_vectors_and_gives_none_to_who_had_none():
    found, before = strike("swap", 1.0).vectors["a"], tables().vectors["a"]
    assert sorted(found.sum(1).tolist()) == pytest.approx(sorted(before.sum(1).tolist()))
    assert found[5].abs().sum() == 0 and not torch.equal(found, before)


def test_noise_keeps_norms_and_turns_by_its_level():
    wide = FrozenTables(
        items={}, vectors={"a": torch.randn(500, 400)}, present={"a": torch.ones(500, dtype=torch.bool)}
    )
    found = stressed(wide, ["a"], "noise", 1.0, np.arange(2, 500), np.arange(2, 500), seed=1).vectors["a"]
    torch.testing.assert_close(found.norm(dim=1), wide.vectors["a"].norm(dim=1))
    # As long as the vector and at a right angle to it: cosine 1 / sqrt(2).
    cosine = torch.nn.functional.cosine_similarity(found, wide.vectors["a"]).mean()
    assert cosine.item() == pytest.approx(0.5**0.5, abs=0.02)


def test_int8_errs_by_half_a_step_at_most():
    found, before = strike("int8", 1.0).vectors["a"], tables().vectors["a"]
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


def test_full_strikes_come_once():
    kinds = [one for one in plan(StressConfig(shares=(0.5, 1.0))) if one[0] == "remove"]
    assert len(kinds) == 3 + 1


def test_an_ignored_set_is_told_and_the_tables_come_back(feature_set):
    torch.manual_seed(0)
    model = build_model(ModelConfig(embedding_dim=4, vector_dim=4, layers=1), feature_set.schema)
    model.attach(frozen_tables(feature_set))
    with torch.no_grad():
        model.item_encoder.vectors[0].projection.weight.mul_(20)
        model.item_encoder.vectors[1].projection.weight.zero_()
        model.item_encoder.vectors[1].missing.zero_()
    vectors = model.tables.vectors(torch.arange(5))[0]
    found = stress_model(model, feature_set, "test", CONFIG, silent)
    assert "image" in found.ignored
    by_name = {(one.sets, one.kind): one for one in found.stresses}
    assert by_name["image", "remove"].moved < 1e-7 < 0.01 < by_name["text", "swap"].moved
    assert {one.sets for one in found.stresses} == {"text", "image", "all"}
    assert torch.equal(model.tables.vectors(torch.arange(5))[0], vectors)


def test_a_wrong_key_is_named(tmp_path):
    path = tmp_path / "stress.yaml"
    path.write_text("share: [1.0]\n")
    with pytest.raises(ConfigError, match="shares"):
        load_stress_config(path)
