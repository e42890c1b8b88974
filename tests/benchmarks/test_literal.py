"""The references beside us: the MM-CTR-shaped log, QIN written literally, the row-wise loader, FuxiCTR's input."""

import json
import math

import numpy as np
import polars as pl
import pytest
import torch
from torch.nn import functional as F

from benchmarks import fuxictr_peer, literal_jobs, mmctr_shaped
from benchmarks.literal_loader import RowDataset, item_tables, row_loader
from benchmarks.literal_qin import LiteralAttention, LiteralQIN, LiteralQuadraticLayer, LiteralStep
from ctr.config import load_preset
from ctr.data.feature_tables import frozen_tables
from ctr.data.loader import Loader
from ctr.model.click_model import ClickModel
from ctr.training.train_step import TrainStep
from features.errors import ConfigError
from features.store.feature_set import FeatureSet

ROWS, USERS, ITEMS, MAX_LEN = 2_000, 40, 300, 8
TRAINED = 1_600
SIZES = {"embedding_dim": 6, "vector_dim": 5, "attention_dim": 16, "layers": 2, "rows": 3, "dropout": 0.0}
PRESET = {"model": SIZES, "train": {"device": "cpu"}}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp("shaped")
    built = mmctr_shaped.build(str(out), ROWS, USERS, ITEMS, MAX_LEN)
    return out, built, FeatureSet.open(out / "features" / "mmctr_shaped")


def preset(**model):
    return load_preset(
        literal_jobs.PAPER, literal_jobs.DEFAULTS, {"model": SIZES | model, "train": {"batch_size": 128}}
    )


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


class TestTheLog:
    def test_what_build_says(self, world):
        out, built, feature_set = world
        assert built["rows"] == feature_set.manifest.windows["train"].rows == TRAINED
        assert built["feature_set"] == str(feature_set.path) and built["raw"] == str(out / "raw")
        log = pl.read_parquet(out / "raw" / "interactions.parquet").sort("timestamp").head(TRAINED)
        before = log.select(pl.int_range(pl.len()).over("user_id").clip(upper_bound=MAX_LEN))
        assert built["mean_history"] == pytest.approx(before.to_series().mean(), abs=0.005)

    def test_its_shape_is_that_of_the_challenge(self, world):
        out, _, feature_set = world
        log = pl.read_parquet(out / "raw" / "interactions.parquet")
        assert log["label"].mean() == 0.25
        assert log["timestamp"].is_unique().all() and log["user_id"].n_unique() == USERS
        for level in ("likes_level", "views_level"):
            assert sorted(log[level].unique()) == list(range(1, 11))
        items = pl.read_parquet(out / "raw" / "items.parquet")
        lengths = items["item_tags"].list.len()
        assert (lengths.min(), lengths.max()) == (1, 5)
        assert (items["item_tags"].list.n_unique() == lengths).all()
        vectors = pl.read_parquet(out / "raw" / "vectors.parquet")["item_emb_d128"].to_numpy()
        assert vectors.shape == (ITEMS, 128) and 1.5 < np.abs(vectors).max() < 3.5
        schema = feature_set.schema
        assert [field.name for field in schema.item] == ["item_id", "tags"] and not schema.event
        assert [field.name for field in schema.context] == ["likes_level", "views_level"]
        assert schema.vectors[0].width == 128 and schema.vectors[0].complete

    def test_every_item_has_an_embedding_of_its_own_and_some_are_popular(self, world):
        out, _, feature_set = world
        assert feature_set.schema.item[0].size == ITEMS + 2
        shown = pl.read_parquet(out / "raw" / "interactions.parquet")["item_id"].value_counts()["count"]
        assert len(shown) == ITEMS and shown.max() > 20 * shown.median()

    def test_the_label_can_be_learned(self, world):
        out, _, _ = world
        by_item = (
            pl.read_parquet(out / "raw" / "interactions.parquet")
            .group_by("item_id")
            .agg(pl.col("label").mean(), pl.len())
        )
        rate, rows = by_item["label"].to_numpy(), by_item["len"].to_numpy()
        noise = (0.25 * 0.75 / rows)[rows > 20].mean()
        assert rate[rows > 20].var() > 2 * noise

    def test_the_seed_decides_it(self, world, tmp_path):
        out, _, _ = world
        logs = []
        for seed in (1, 2):
            mmctr_shaped.build(str(tmp_path / str(seed)), ROWS, USERS, ITEMS, MAX_LEN, seed=seed)
            logs.append(pl.read_parquet(tmp_path / str(seed) / "raw" / "interactions.parquet"))
        assert logs[0].equals(pl.read_parquet(out / "raw" / "interactions.parquet"))
        assert not logs[0].equals(logs[1])

    def test_too_few_rows_for_the_items(self, tmp_path):
        with pytest.raises(ConfigError, match=r"100 rows have 80 .* 81 items.* at least 103 rows"):
            mmctr_shaped.build(str(tmp_path), 100, 5, 81, MAX_LEN)

    def test_copied_histories(self, tmp_path):
        log = {
            "user_id": np.array([1, 2, 1, 1, 1]),
            "item_id": np.array([5, 6, 7, 8, 9]),
            "likes_level": np.arange(1, 6),
            "views_level": np.arange(1, 6),
            "label": np.array([0, 1, 0, 1, 0]),
        }
        mmctr_shaped._copy_histories(tmp_path / "rows.parquet", log, max_len=2)
        rows = pl.read_parquet(tmp_path / "rows.parquet").sort("item_id")
        assert rows["item_seq"].to_list() == [[0, 0], [0, 0], [0, 5], [5, 7], [7, 8]]
        assert rows["label"].to_list() == [0, 1, 0, 1, 0]


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
        settings = load_preset(literal_jobs.PAPER, literal_jobs.DEFAULTS)
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


class TestTheJobs:
    def test_train(self, world):
        out, _, _ = world
        done = literal_jobs.train(str(out), 64, steps=3, warmup=1, preset=PRESET)
        seconds = sum(done["step_seconds"]) + sum(done["load_seconds"])
        assert len(done["step_seconds"]) == len(done["load_seconds"]) == 3
        assert done["rows_per_s"] == pytest.approx(3 * 64 / seconds)
        assert 0 < done["before_mib"] <= done["peak_mib"] and 0 < done["loss"] < 5

    def test_loader(self, world):
        assert literal_jobs.loader(str(world[0]), 64, batches=2)["rows_per_s"] > 0


class TestFuxiCTR:
    def test_its_rows_are_ours(self, world, tmp_path):
        out, _, _ = world
        assert fuxictr_peer.write_data(out, tmp_path / "fuxictr") == MAX_LEN
        users = pl.read_parquet(tmp_path / "fuxictr" / "user_info.parquet")["full_item_seq"].to_list()
        rows = pl.read_parquet(tmp_path / "fuxictr" / "train.parquet")
        copied = pl.read_parquet(out / "rows.parquet")
        for name, other in (("item_index", "item_id"), ("label", "label"), ("views_level", "views_level")):
            assert rows[name].to_list() == copied[other].to_list()
        # What its collator does: the first `seq_len` items of the user, of those the newest, zeros in front.
        for user, length, history in zip(
            rows["user_index"], rows["seq_len"], copied["item_seq"].to_list(), strict=True
        ):
            newest = users[user][:length][-MAX_LEN:]
            assert [0] * (MAX_LEN - len(newest)) + newest == history
        items = pl.read_parquet(tmp_path / "fuxictr" / "item_info.parquet")
        assert items["item_index"].to_list() == items["item_id"].to_list() == list(range(ITEMS + 1))
        np.testing.assert_allclose(np.stack(items["item_emb_d128"].to_list()), item_tables(out)[1], atol=1e-6)

    def test_its_feature_map(self, world, tmp_path):
        fuxictr_peer.write_data(world[0], tmp_path)
        described = fuxictr_peer.feature_map(tmp_path, width=128)
        features = {
            name: spec for entry in json.loads(json.dumps(described))["features"] for name, spec in entry.items()
        }
        columns = {
            *pl.read_parquet_schema(tmp_path / "train.parquet"),
            *pl.read_parquet_schema(tmp_path / "item_info.parquet"),
        }
        assert {*features, *described["labels"]} == columns
        assert features["item_id"]["vocab_size"] == ITEMS + 1 and features["item_tags"]["vocab_size"] == 11_740
        assert {name for name, spec in features.items() if spec.get("source") == "item"} == {
            "item_id",
            "item_tags",
            "item_emb_d128",
        }

    def test_an_environment_that_cannot_be_made(self, tmp_path, monkeypatch):
        requirements = fuxictr_peer.ROOT / "benchmarks" / "fuxictr" / "requirements.txt"
        monkeypatch.setattr(fuxictr_peer.sys, "executable", "false")
        assert requirements == fuxictr_peer.REQUIREMENTS
        with pytest.raises(ConfigError, match=r"no environment for FuxiCTR.*requirements.txt"):
            fuxictr_peer.environment(tmp_path / "venv")
        assert not (tmp_path / "venv" / ".ready").exists()

    def test_an_environment_of_the_same_requirements_is_used_again(self, tmp_path, monkeypatch):
        monkeypatch.setattr(fuxictr_peer.sys, "executable", "false")
        (tmp_path / ".ready").write_text(fuxictr_peer.REQUIREMENTS.read_text())
        assert fuxictr_peer.environment(tmp_path) == tmp_path / "bin" / "python"
        (tmp_path / ".ready").write_text("fuxictr==1.0\n")
        with pytest.raises(ConfigError, match="no environment"):
            fuxictr_peer.environment(tmp_path)

    def test_what_the_script_prints_is_the_result(self, world, tmp_path, monkeypatch):
        python = tmp_path / "bin" / "python"
        python.parent.mkdir()
        python.write_text('#!/bin/sh\necho a warning\necho "{\\"rows_per_s\\": 7.5, \\"given\\": $2}"\n')
        python.chmod(0o755)
        (tmp_path / ".ready").write_text(fuxictr_peer.REQUIREMENTS.read_text())
        done = fuxictr_peer.train(str(world[0]), str(tmp_path), 64, steps=2, warmup=1)
        assert done["rows_per_s"] == 7.5
        given = done["given"]
        assert (given["batch_size"], given["steps"], given["warmup"], given["max_len"]) == (64, 2, 1, MAX_LEN)
        assert given["embedding_dim"] == 128 and math.isclose(given["embedding_l2"], 2e-4)
        python.write_text("#!/bin/sh\necho out of luck >&2\nexit 1\n")
        with pytest.raises(RuntimeError, match="out of luck"):
            fuxictr_peer.train(str(world[0]), str(tmp_path), 64, steps=2, warmup=1)
        python.write_text("#!/bin/sh\nkill -9 $$\n")
        with pytest.raises(ConfigError, match=r"killed by signal 9.*batch size \(64\)"):
            fuxictr_peer.train(str(world[0]), str(tmp_path), 64, steps=2, warmup=1)
