from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ctr.config import ModelConfig, load_preset
from ctr.model.click_model import ClickModel
from features.errors import ConfigError, DataError
from features.store.schema import UNKNOWN, Field, Schema, VectorSet
from tests.ctr import literal, small_world
from tests.ctr.small_world import SCHEMA, category, in_dtype, random_batch

CONF = Path(__file__).parents[3] / "conf"

MMCTR = Schema(
    items=91_718,
    users=1_000_001,
    item=(category("item_id", 91_718), Field(name="item_tags", kind="tags", size=11_740, max_len=5)),
    user=(category("user_id", 1_000_001),),
    context=(category("likes_level", 11), category("views_level", 11)),
    vectors=(VectorSet(name="item_emb_d128", width=128),),
    history_max_len=64,
)


@pytest.mark.parametrize(("rows", "parameters"), [(4, 31_244_293), (3, 27_045_893)])
def test_the_paper_preset_has_the_papers_parameter_count(rows: int, parameters: int):
    preset = load_preset(CONF / "model/qin_paper.yaml", CONF / "train.yaml", {"model": {"rows": rows}})
    with torch.device("meta"):
        model = ClickModel(preset.model, MMCTR)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_the_paper_preset_trains_as_the_paper_does():
    train = load_preset(CONF / "model/qin_paper.yaml", CONF / "train.yaml").train
    assert (train.batch_size, train.learning_rate, train.embedding_l2) == (8192, 2e-3, 2e-4)
    assert (train.clip_norm, train.schedule) == (10.0, "plateau")


def test_the_default_preset_is_valid():
    assert load_preset(CONF / "model/qin.yaml", CONF / "train.yaml").model == ModelConfig(
        embedding_dim=8, merge_rows=True, cross_cells=400
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("settings", [{}, {"use_history": False}, {"use_user_id": True}])
def test_equals_the_literal_equations(dtype: torch.dtype, tolerance: float, training: bool, settings: dict):
    model = small_world.model(dtype, dropout=0.0, **settings).train(training)
    batch = in_dtype(random_batch(), dtype)
    parameters = list(model.parameters())
    expected = literal.logits(model, small_world.tables(), batch)
    logits = model(batch)
    assert logits.std() > 0.1
    torch.testing.assert_close(logits, expected, atol=tolerance, rtol=tolerance)
    ours = torch.autograd.grad(logits.sigmoid().square().sum(), parameters)
    theirs = torch.autograd.grad(expected.sigmoid().square().sum(), parameters)
    # |a - b| <= tolerance (1 + |b|): entries of a summed gradient reach 10, where float32 has steps of 1e-6.
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


def test_without_vectors_and_tags_nothing_is_compared():
    bare = SCHEMA.model_copy(update={"item": (SCHEMA.item[0], SCHEMA.item[2]), "vectors": ()})
    config = ModelConfig(evidence_heads=2, match_features=True)
    model = ClickModel(config, bare)
    model.attach(small_world.tables())
    assert model.match is None and model.eval()(random_batch()).isfinite().all()


@pytest.mark.parametrize("positions", [0, 5])
def test_empty_histories_are_finite_and_equal_the_literal_equations(positions: int):
    model = small_world.model().eval()
    batch = in_dtype(small_world.batch(torch.arange(1, 5), torch.zeros(4, positions, dtype=torch.int64)), torch.float64)
    expected = literal.logits(model, small_world.tables(), batch)
    torch.testing.assert_close(model(batch), expected, atol=1e-10, rtol=1e-10)
    model.train()(batch).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_building_distinct_items_once_equals_building_every_position():
    model = small_world.model(dropout=0.0)
    target, history = torch.tensor([5, 5, 1, 9]), torch.tensor([[0, 5, 9], [9, 9, 1], [0, 0, 0], [0, 0, 5]])
    results = []
    for distinct in (True, False):
        batch = in_dtype(small_world.batch(target, history, distinct=distinct), torch.float64)
        logits = model(batch)
        results.append((len(batch.items_U), logits, torch.autograd.grad(logits.sum(), list(model.parameters()))))
    (few, logits, grads), (many, expected, expected_grads) = results
    assert few == 4 and many == 17
    torch.testing.assert_close(logits, expected, atol=1e-10, rtol=1e-10)
    for one, other in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-10)


def test_the_padding_row_is_zeros_although_it_has_columns():
    x = small_world.model().item_rows(torch.tensor([0, 1, 2, 0]))
    assert torch.equal(x[[0, 3]], torch.zeros_like(x[[0, 3]]))
    assert (x[[1, 2]].abs().sum(-1) > 0).all()


def test_the_target_only_control_knows_no_history():
    model = small_world.model(use_history=False).eval()
    assert not [name for name, _ in model.named_parameters() if "attention" in name or "event" in name]
    batch = in_dtype(random_batch(), torch.float64)
    other = replace(batch, history_BS=torch.zeros_like(batch.history_BS), events={})
    assert torch.equal(model(batch), model(other))
    with_history = small_world.model().eval()
    assert not torch.equal(
        with_history(batch), with_history(replace(batch, history_BS=torch.zeros_like(batch.history_BS)))
    )


def test_the_user_id_is_read_only_on_request():
    batch = in_dtype(random_batch(), torch.float64)
    swapped = small_world.tables()
    swapped.users["user_id"].copy_(swapped.users["user_id"] % 7 + 1)
    for use_user_id in (False, True):
        model = small_world.model(use_user_id=use_user_id).eval()
        before = model(batch)
        model.attach(swapped)
        assert torch.equal(model(batch), before) is not use_user_id


def test_a_schema_of_ids_alone_works():
    schema = Schema(
        items=small_world.ITEMS,
        users=small_world.USERS,
        item=SCHEMA.item[:1],
        user=SCHEMA.user[:1],
        history_max_len=6,
    )
    model = small_world.model(schema=schema).eval()
    batch = random_batch()
    expected = literal.logits(model, small_world.tables(), batch)
    torch.testing.assert_close(model(batch), expected, atol=1e-10, rtol=1e-10)


def test_tables_stay_out_of_the_checkpoint():
    model = small_world.model()
    with_tables = model.state_dict()
    fresh = ClickModel(model.config, SCHEMA).double()
    assert not [name for name in with_tables if name.startswith("tables")]
    fresh.load_state_dict(with_tables)
    fresh.attach(small_world.tables())
    batch = in_dtype(random_batch(), torch.float64)
    assert torch.equal(fresh.eval()(batch), model.eval()(batch))


def test_l2_takes_tables_crosses_and_vector_projections_only():
    model = small_world.model(cross_cells=30)
    names = {id(p): name for name, p in model.named_parameters()}
    assert sorted(names[id(p)] for p in model.regularized_parameters()) == [
        "context_encoder.tables.0.weight",
        "context_encoder.tables.1.weight",
        "context_encoder.tables.2.weight",
        "crosses.tables.0.weight",
        "event_encoder.tables.0.weight",
        "item_encoder.columns.tables.0.weight",
        "item_encoder.columns.tables.1.weight",
        "item_encoder.columns.tables.2.weight",
        "item_encoder.vectors.0.projection.weight",
        "item_encoder.vectors.1.projection.weight",
    ]


def test_foreign_tables_are_refused_by_name():
    model = small_world.model()
    tables = small_world.tables()
    with pytest.raises(DataError, match=r"item table: no 'price'"):
        model.attach(replace(tables, items={k: v for k, v in tables.items.items() if k != "price"}))
    short = {name: values[:-1] for name, values in tables.vectors.items()}
    with pytest.raises(DataError, match=r"vector table 'text': 29 rows where the schema has 30"):
        model.attach(replace(tables, vectors=short))


def test_one_training_row_is_refused():
    model = small_world.model().train()
    batch = in_dtype(random_batch(rows=1), torch.float64)
    with pytest.raises(ConfigError, match="batch_size"):
        model(batch)


def test_a_share_of_ids_is_unknown_in_training_alone():
    model = small_world.model(torch.float32, id_dropout=0.4, dropout=0.0)
    batch = random_batch()
    tables = small_world.tables()
    seen: list[torch.Tensor] = []
    model.item_encoder.columns.tables[0].register_forward_hook(lambda _, args, __: seen.append(args[0]))
    ids_U = tables.items["item_id"][batch.items_U]
    model.eval()(batch)
    assert torch.equal(seen.pop(), ids_U)
    torch.manual_seed(0)
    drawn = []
    for _ in range(300):
        model.train()(batch)
        drawn.append(seen.pop())
    read_DU = torch.stack(drawn)
    known_U = ids_U > UNKNOWN
    # An item is whole or unknown; padding, and what is unknown anyway, stays.
    assert ((read_DU == ids_U) | (read_DU == UNKNOWN)).all() and (read_DU[:, ~known_U] == ids_U[~known_U]).all()
    share_U = (read_DU[:, known_U] == UNKNOWN).float().mean(dim=0)
    assert (share_U - 0.4).abs().max() < 0.12 and known_U.sum() > 5


def test_the_unknown_row_learns_from_ids_that_were_hidden():
    gradients = {}
    for share in (0.0, 0.9):
        model = small_world.model(torch.float32, id_dropout=share).train()
        batch = random_batch()
        known = replace(batch, items_U=batch.items_U.clone())
        torch.manual_seed(1)
        model(known).sum().backward()
        (table,) = (one for one in model.item_encoder.columns.tables if len(one.weight) == 20)
        gradients[share] = float(table.weight.grad[UNKNOWN].abs().sum())
    assert gradients[0.9] > gradients[0.0]
