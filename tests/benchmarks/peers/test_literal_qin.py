"""QIN written literally, its row-wise loader, and that both compute what ours do."""

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn import functional as F

from benchmarks.inputs import mmctr_shaped
from benchmarks.inputs.presets import DEFAULTS, PAPER
from benchmarks.peers.literal_loader import RowDataset, item_tables, row_loader
from benchmarks.peers.literal_qin import LiteralAttention, LiteralQIN, LiteralQuadraticLayer, LiteralStep
from ctr.config import load_preset
from ctr.data.feature_tables import frozen_tables
from ctr.data.loader import Loader
from ctr.model.click_model import ClickModel
from ctr.training.train_step import TrainStep
from tests.benchmarks.shaped import MAX_LEN, SIZES, TRAINED


def preset(**model):
    return load_preset(PAPER, DEFAULTS, {"model": SIZES | model, "train": {"batch_size": 128}})


def ours(feature_set, **model):
    """Our QIN, its every weight away from its start."""
    torch.manual_seed(5)
    net = ClickModel(preset(**model).model, feature_set.schema)
    net.attach(frozen_tables(feature_set))
    with torch.no_grad():
        for parameter in net.network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for table in (*net.item_encoder.columns.tables, *net.context_encoder.tables):
            table.weight[1:] += 0.3 * torch.randn_like(table.weight[1:])
        for layer in net.network.layers:
            layer.norm.running_mean.normal_()
            layer.norm.running_var.uniform_(0.5, 2)
    return net


def tag_rows(folder, feature_set):
    """Where each raw tag stands in our tag table: 0 for padding, 1 for tags that no item has."""
    raw_IT, _ = item_tables(folder)
    rows = torch.ones(mmctr_shaped.TAGS + 1, dtype=torch.int64)
    rows[raw_IT[1:]] = torch.from_numpy(feature_set.items["tags"][2:].astype(np.int64))
    rows[0] = 0
    return rows


def paired(net, folder, feature_set):
    """Each table or weight of ours as the literal model holds it, by name there: given a function of our tensors."""
    item_rows = torch.cat([torch.zeros(1, dtype=torch.int64), torch.from_numpy(feature_set.items["item_id"][2:])])
    level_rows = torch.tensor([0, *range(2, mmctr_shaped.LEVELS + 2)])
    columns, context = net.item_encoder.columns.tables, net.context_encoder.tables
    attention = net.attention
    pairs = {
        "item_id.weight": (columns[0].weight, item_rows),
        "item_tags.weight": (columns[1].weight, tag_rows(folder, feature_set)),
        "likes_level.weight": (context[0].weight, level_rows),
        "views_level.weight": (context[1].weight, level_rows),
        "projection.weight": (net.item_encoder.vectors[0].projection.weight, None),
        "logit.weight": (net.network.logit.weight, None),
        "logit.bias": (net.network.logit.bias, None),
    }
    for name in ("query", "key", "value", "output"):
        pairs[f"attention.{name}.weight"] = (getattr(attention, name).weight, None)
    for number, layer in enumerate(net.network.layers):
        place, width = f"layers.{number}", layer.rows.in_features
        for row in range(len(layer.rows.weight) // width):
            part = torch.arange(row * width, (row + 1) * width)
            pairs[f"{place}.rows.{row}.weight"] = (layer.rows.weight, part)
            pairs[f"{place}.rows.{row}.bias"] = (layer.rows.bias, part)
        pairs[f"{place}.norm.weight"] = (layer.norm.weight, None)
        pairs[f"{place}.norm.bias"] = (layer.norm.bias, None)
        pairs[f"{place}.activation.weight"] = (layer.activation.weight, None)
    return pairs


def literal_of(net, folder, feature_set):
    """The literal model with our weights."""
    model = LiteralQIN(net.config, *item_tables(folder), tags=mmctr_shaped.TAGS + 1, levels=mmctr_shaped.LEVELS + 1)
    pairs = paired(net, folder, feature_set)
    assert set(pairs) == {name for name, _ in model.named_parameters()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            source, rows = pairs[name]
            parameter.copy_(source if rows is None else source[rows])
        for mine, theirs in zip(net.network.layers, model.layers, strict=True):
            theirs.norm.load_state_dict(mine.norm.state_dict())
    return model


def as_ids(batch):
    """One of our batches as the literal loader would have it: catalogue row i + 1 is the raw id i, as is each level."""
    raw_U = (batch.items_U - 1).clamp(min=0)
    return {
        "item_id": raw_U[batch.target_B],
        "item_seq": raw_U[batch.history_BS],
        "likes_level": batch.context["likes_level"] - 1,
        "views_level": batch.context["views_level"] - 1,
        "label": batch.label_B,
    }


def first_batch(feature_set, rows=128):
    return next(iter(Loader(feature_set, "train", rows, shuffle=True, seed=2).epoch(0)))


def forward(model, ids):
    return model(ids["item_id"], ids["item_seq"], ids["likes_level"], ids["views_level"])


class TestTheLoader:
    def test_it_reads_the_rows_of_our_loader(self, world):
        out, _, feature_set = world
        mine = set()
        for batch in Loader(feature_set, "train", 512).epoch(0):
            ids = as_ids(batch)
            history_BS = F.pad(ids["item_seq"], (MAX_LEN - ids["item_seq"].shape[1], 0))
            mine |= set(
                zip(
                    *(ids[name].tolist() for name in ids if name != "item_seq"),
                    map(tuple, history_BS.tolist()),
                    strict=True,
                )
            )
        dataset = RowDataset(out)
        theirs = set()
        for row in (dataset[index] for index in range(len(dataset))):
            scalars = [row[name].item() for name in ("item_id", "likes_level", "views_level", "label")]
            theirs.add((*scalars, tuple(row["item_seq"].tolist())))
        assert len(dataset) == TRAINED and theirs == mine and len(mine) > 0.99 * TRAINED

    def test_a_batch(self, world):
        out, _, _ = world
        batches = list(row_loader(out, 300))
        assert len(batches) == TRAINED // 300
        shapes = {name: (tuple(values.shape), values.dtype) for name, values in batches[0].items()}
        assert shapes.pop("item_seq") == ((300, MAX_LEN), torch.int64)
        assert shapes.pop("label") == ((300,), torch.float32)
        assert set(shapes.values()) == {((300,), torch.int64)} and len(shapes) == 3
        assert not torch.equal(batches[0]["item_id"], batches[1]["item_id"])

    def test_item_tables(self, world):
        out, _, feature_set = world
        tags_IT, vector_IW = item_tables(out)
        assert not tags_IT[0].any() and not vector_IW[0].any()
        raw = pl.read_parquet(out / "raw" / "items.parquet")["item_tags"].to_list()
        assert [[tag for tag in tags if tag] for tags in tags_IT[1:].tolist()] == raw
        np.testing.assert_allclose(vector_IW[1:], feature_set.vectors("fused")[2:], atol=1e-6)


class TestTheModel:
    def test_the_papers_number_of_parameters(self):
        settings = load_preset(PAPER, DEFAULTS)
        with torch.device("meta"):
            tags_IT, vector_IW = torch.zeros(91_718, 5, dtype=torch.int64), torch.zeros(91_718, 128)
            model = LiteralQIN(settings.model, tags_IT, vector_IW, tags=11_740, levels=11)
        assert sum(parameter.numel() for parameter in model.parameters()) == 31_244_293

    def test_attention_by_hand(self):
        layer = LiteralAttention(item_dim=1, attention_dim=4)
        for weight in layer.parameters():
            torch.nn.init.ones_(weight)
        # q = (2, 2, 2, 2); scores of x_s = 3, -1, 5 are 4 * 2 x_s / sqrt(4) = 12, -4, 20: ReLU drops -4, the mask 20.
        # W_o Σ a_s W_v x_s = 4 * 12 * 3 = 144, and x_t = 2 on top.
        interest = layer(torch.tensor([[2.0]]), torch.tensor([[[3.0], [-1.0], [5.0]]]), torch.tensor([[1.0, 1.0, 0.0]]))
        assert interest.item() == pytest.approx(146.0)

    def test_a_quadratic_layer_by_hand(self):
        layer = LiteralQuadraticLayer(width=1, rows=2, dropout=0.5).eval()
        for weight in (*layer.rows[0].parameters(), *layer.rows[1].parameters()):
            torch.nn.init.ones_(weight)
        # h = 2 * z (z + 1) = 12 at z = 2 and 0 at z = -1, batch norm at its start divides by sqrt(1 + eps).
        torch.testing.assert_close(
            layer(torch.tensor([[2.0], [-1.0]])), torch.tensor([[14.0], [-1.0]]), atol=1e-3, rtol=0
        )

    def test_the_logits_are_ours(self, world):
        out, _, feature_set = world
        net = ours(feature_set).eval()
        batch = first_batch(feature_set)
        logit_B = forward(literal_of(net, out, feature_set).eval(), as_ids(batch))
        assert logit_B.std() > 0.1
        torch.testing.assert_close(logit_B, net(batch), atol=1e-5, rtol=1e-5)

    def test_the_gradients_are_ours(self, world):
        out, _, feature_set = world
        net = ours(feature_set)
        model = literal_of(net, out, feature_set)
        batch = first_batch(feature_set)
        loss = F.binary_cross_entropy_with_logits(net.train()(batch), batch.label_B)
        literal_loss = F.binary_cross_entropy_with_logits(forward(model.train(), as_ids(batch)), batch.label_B)
        assert literal_loss.item() == pytest.approx(loss.item(), abs=1e-6)
        loss.backward()
        literal_loss.backward()
        pairs = paired(net, out, feature_set)
        for name, parameter in model.named_parameters():
            source, rows = pairs[name]
            gradient = source.grad if rows is None else source.grad[rows]
            torch.testing.assert_close(
                parameter.grad, gradient, atol=1e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
            )

    def test_fifty_steps_have_our_losses(self, world):
        out, _, feature_set = world
        settings = preset()
        net = ours(feature_set)
        literal = LiteralStep(literal_of(net, out, feature_set).train(), settings.train)
        step = TrainStep(net.train(), settings.train, torch.device("cpu"))
        loader = Loader(feature_set, "train", settings.train.batch_size, seed=4, shuffle=True, drop_last=True)
        batches = [batch for epoch in range(5) for batch in loader.epoch(epoch)][:50]
        mine = [step((batch,), settings.train.learning_rate, number).item() for number, batch in enumerate(batches)]
        theirs = [literal(as_ids(batch)) for batch in batches]
        assert len(mine) == 50 and mine[-1] < mine[0] - 0.1
        np.testing.assert_allclose(theirs, mine, atol=1e-4, rtol=0)

    def test_l2_is_that_of_whole_tables_and_the_projection(self, world):
        out, _, feature_set = world
        model = literal_of(ours(feature_set), out, feature_set)
        parts = ("item_id", "item_tags", "likes_level", "views_level", "projection")
        by_name = dict(model.named_parameters())
        expected = sum(float(by_name[f"{part}.weight"].detach().double().pow(2).sum()) for part in parts) / 2
        assert model.l2().item() == pytest.approx(expected, rel=1e-5)
