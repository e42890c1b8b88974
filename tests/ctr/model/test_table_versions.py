"""Tables with versions in training: target, history and user read those of the row's time, and serving the latest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ctr.config import ModelConfig
from ctr.data.batch import Batch
from ctr.data.feature_tables import frozen_tables
from ctr.data.loader import ItemVersions, Loader
from ctr.diagnosis.permutation_importance import permutation_importance
from ctr.export.parity import expected
from ctr.export.row_request import RowRequest
from ctr.model.click_model import ClickModel
from ctr.trees.feature_rows import feature_rows
from features.store.feature_set import FeatureSet, write_arrow
from features.store.schema import FIRST_VALUE, UNKNOWN
from features.store.versions import ITEM_VERSIONS, ROW, USER_VERSIONS, VALID_FROM, Versions
from tests.toy import DAYS, GENRES, HOUR_US, HOURS, SEGMENTS, TAGS, TAGS_LEN, toy_feature_set
from tests.trained import random_model

HALF = DAYS * 12 * HOUR_US  # the middle of the toy's log, on a full hour: rows lie before, at and after it
EARLY = 24 * HOUR_US


def toy_with_versions(folder: Path) -> FeatureSet:
    """Every other item has two versions, from `EARLY` and from `HALF` on; every third user two, for ever and `HALF`."""
    plain = toy_feature_set(folder, rows=600, users=30, parts=3)
    items, users = np.arange(FIRST_VALUE, plain.schema.items, 2), np.arange(FIRST_VALUE, plain.schema.users, 3)
    row_V = np.repeat(items, 2).astype(np.int32)
    old = np.arange(len(row_V)) % 2 == 0
    genre = np.where(old, FIRST_VALUE + (plain.items["genre"][row_V] - 1) % GENRES, plain.items["genre"][row_V])
    price = np.where(old, np.float32(9), plain.items["price"][row_V])
    tags = np.where(old[:, None], np.eye(1, TAGS_LEN, dtype=np.int32) * 3, plain.items["tags"][row_V])
    columns = {"genre": genre.astype(np.int32), "tags": tags.astype(np.int32), "price": price.astype(np.float32)}
    start = np.where(old, EARLY, HALF)
    write_arrow(folder / ITEM_VERSIONS, {ROW: row_V, VALID_FROM: start, **columns})
    user_V = np.repeat(users, 2).astype(np.int32)
    segment = np.where(np.arange(len(user_V)) % 2 == 0, UNKNOWN, plain.users["segment"][user_V]).astype(np.int32)
    start = np.where(np.arange(len(user_V)) % 2 == 0, 0, HALF)
    write_arrow(folder / USER_VERSIONS, {ROW: user_V, VALID_FROM: start, "segment": segment})
    return FeatureSet.open(folder)


@pytest.fixture(scope="module")
def feature_set(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    return toy_with_versions(tmp_path_factory.mktemp("toy"))


def literal(feature_set: FeatureSet, item: int, time: int) -> tuple[Any, ...]:
    """An item's columns at a time, by a plain loop over its versions."""
    known = [name for name in feature_set.items if name != "item_id"]
    versions = feature_set.item_versions
    assert versions is not None
    mine = [place for place, row in enumerate(versions.row_V) if row == item]
    begun = [place for place in mine if versions.valid_from_V[place] <= time]
    stacked = item if not mine else versions.size + begun[-1] if begun else UNKNOWN
    return (feature_set.items["item_id"][item].item(), *(repr(versions.stacked[name][stacked]) for name in known))


def in_batch(feature_set: FeatureSet, batch: Batch, place: int) -> tuple[Any, ...]:
    assert feature_set.item_versions is not None and batch.item_versions_U is not None
    at = int(batch.item_versions_U[place])
    known = (name for name in feature_set.items if name != "item_id")
    item_id = feature_set.items["item_id"][int(batch.items_U[place])].item()
    return (item_id, *(repr(feature_set.item_versions.stacked[name][at]) for name in known))


@pytest.mark.parametrize("split", ["train", "valid"])
@pytest.mark.parametrize("batch_size", [7, 10_000])
def test_target_and_history_are_read_as_of_the_rows_time(feature_set, split, batch_size):
    times, seen = np.concatenate([part["time"] for part in feature_set.rows(split)]).tolist(), 0
    rows = [
        (int(part["item"][i]), events["item"][part["history_end"][i] - part["history_len"][i] : part["history_end"][i]])
        for part, events in zip(feature_set.rows(split), feature_set.events(split), strict=True)
        for i in range(len(part["item"]))
    ]
    for batch in Loader(feature_set, split, batch_size).epoch(0):
        batch.validate()
        for b, (target, history) in enumerate(rows[seen : seen + len(batch)]):
            time = times[seen + b]
            assert in_batch(feature_set, batch, int(batch.target_B[b])) == literal(feature_set, target, time)
            places = [int(place) for place in batch.history_BS[b] if place]
            found = [in_batch(feature_set, batch, place) for place in places]
            assert found == [literal(feature_set, int(item), time) for item in history]
        seen += len(batch)
    assert seen == len(times) and (split == "valid" or min(times) < EARLY < HALF < max(times))


def test_users_are_read_as_of_the_rows_time(feature_set):
    loader = Loader(feature_set, "train", 10_000)
    (batch,) = loader.epoch(0)
    assert batch.user_versions_B is not None and feature_set.user_versions is not None
    segment = feature_set.user_versions.stacked["segment"][batch.user_versions_B.numpy()]
    user, time = loader.column("user"), loader.column("time")
    changes = (user - FIRST_VALUE) % 3 == 0
    wanted = np.where(changes & (time < HALF), UNKNOWN, feature_set.users["segment"][user])
    assert segment.tolist() == wanted.tolist()
    assert (changes & (time >= HALF)).any() and (segment != feature_set.users["segment"][user]).any()


def test_each_pair_of_item_and_version_is_in_a_batch_once(feature_set):
    (batch,) = Loader(feature_set, "train", 10_000).epoch(0)
    assert batch.item_versions_U is not None
    pairs = list(zip(batch.items_U.tolist(), batch.item_versions_U.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs) > len(set(batch.items_U.tolist()))


def test_items_before_their_first_version_stay_different_items():
    latest = {"a": np.arange(5)}
    versions = Versions(latest, {ROW: np.array([2, 4], np.int32), VALID_FROM: np.array([7, 7]), "a": np.array([2, 4])})
    known = ItemVersions(versions)
    numbers = known.number(np.array([0, 1, 2, 3, 4, 2, 4]), np.array([0, 0, 0, 0, 0, 7, 7]))
    items, rows = known.pairs(numbers)
    assert len(set(numbers.tolist())) == 7 and numbers[0] == 0 and numbers.max() < known.count
    assert items.tolist() == [0, 1, 2, 3, 4, 2, 4] and rows.tolist() == [0, 1, 1, 3, 1, 5, 6]


def test_without_versions_a_batch_names_none(tmp_path):
    batch = next(Loader(toy_feature_set(tmp_path, rows=100, users=10, parts=1), "train", 10).epoch(0))
    assert batch.item_versions_U is None and batch.user_versions_B is None


def model_on(feature_set: FeatureSet) -> ClickModel:
    return random_model(feature_set, ModelConfig(embedding_dim=4, attention_dim=4, layers=1, rows=2, cross_cells=64))


def test_a_model_sees_an_item_as_it_was(feature_set):
    model = model_on(feature_set)
    versions = feature_set.item_versions
    assert versions is not None
    item = int(versions.row_V[0])
    rows = torch.tensor([0, item, item, item])
    at = torch.tensor([0, versions.size, versions.size + 1, item])
    zero = torch.zeros(1, dtype=torch.int64)
    one = {"user_B": zero, "label_B": zero, "weight_B": zero, "history_BS": zero[None]}
    batch = Batch(
        items_U=rows,
        target_B=zero + 1,
        item_versions_U=at,
        events={"label": zero[None], "residual": zero[None].float()},
        context={"hour": zero, "load": zero.float()},
        candidate={"item_rate": zero.float()},
        **one,
    )
    x_UD = model.history(batch)._x_UD
    assert not torch.allclose(x_UD[1], x_UD[2])
    assert torch.equal(x_UD[2], x_UD[3])  # the newest version is what the table has now


def test_logits_of_a_batch_are_those_of_a_feature_set_frozen_at_that_time(feature_set, tmp_path):
    """The same toy with its tables as they were before `HALF`: rows of that time score alike."""
    frozen = toy_with_versions(tmp_path)
    model = model_on(frozen)
    (batch,) = Loader(feature_set, "train", 10_000).epoch(0)
    logits = model(batch)
    for name, versions in (("items", frozen.item_versions), ("users", frozen.user_versions)):
        assert versions is not None
        rows = versions.find(np.arange(versions.size), np.full(versions.size, HALF - 1))
        then = {column: values[rows] for column, values in versions.stacked.items()}
        (tmp_path / f"{name}.arrow").unlink()
        write_arrow(tmp_path / f"{name}.arrow", getattr(feature_set, name) | then)
        (tmp_path / f"{name[:-1]}_versions.arrow").unlink()
    frozen = FeatureSet.open(tmp_path)
    loader = Loader(feature_set, "train", 10_000)
    then_N = torch.from_numpy((loader.column("time") >= EARLY) & (loader.column("time") < HALF))
    assert then_N.any() and not then_N.all()
    model.attach(frozen_tables(frozen))
    (plain,) = Loader(frozen, "train", 10_000).epoch(0)
    assert plain.item_versions_U is None
    torch.testing.assert_close(model(plain)[then_N], logits[then_N], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(model(plain)[~then_N], logits[~then_N], rtol=1e-3, atol=1e-3)


def test_a_request_is_scored_on_the_latest_versions(feature_set):
    model = model_on(feature_set)
    case = RowRequest(
        user=FIRST_VALUE,
        history_item=np.array([2, 4]),
        candidate_item=np.array([2, 3]),
        context={"hour": np.array([2]), "load": np.array([0.5], np.float32)},
        history_events={"label": np.array([2, 3]), "residual": np.array([0.1, 0.2], np.float32)},
        candidate={"item_rate": np.array([0.1, 0.2], np.float32)},
    )
    with_versions = expected(model, case)
    tables = frozen_tables(feature_set)
    size = feature_set.schema.items
    latest = {name: values[:size] for name, values in tables.items.items()}
    users = {name: values[: feature_set.schema.users] for name, values in tables.users.items()}
    model.attach(replace(tables, items=latest, users=users, item_versions=0, user_versions=0))
    assert (expected(model, case) == with_versions).all()


def test_boosting_reads_target_and_user_as_of_the_rows_time(feature_set):
    made = feature_rows(feature_set, "train")
    loader = Loader(feature_set, "train", 10_000)
    items = feature_set.items_as_of(loader.column("item"), loader.column("time"))
    # Context and counter first (an hour each, load, rate), then genre, one feature a value.
    own = HOURS + 1 + 1
    genre = made[:, own : own + GENRES]
    assert (genre == (items["genre"][:, None] == np.arange(FIRST_VALUE, FIRST_VALUE + GENRES))).all()
    assert (items["genre"] != feature_set.items["genre"][loader.column("item")]).any()
    segment = made[:, own + GENRES + TAGS + 1 :][:, :SEGMENTS]
    users = feature_set.users_as_of(loader.column("user"), loader.column("time"))
    assert (segment == (users["segment"][:, None] == np.arange(FIRST_VALUE, FIRST_VALUE + SEGMENTS))).all()
    # The last feature: how far the price lies from the mean of the past, missing ones counted as 0.
    (batch,) = loader.epoch(0)
    assert feature_set.item_versions is not None and batch.item_versions_U is not None
    price_U = feature_set.item_versions.stacked["price"][batch.item_versions_U.numpy()]
    past_BS = np.where(batch.history_BS.numpy() > 0, np.nan_to_num(price_U[batch.history_BS.numpy()]), 0)
    distance = items["price"] - past_BS.sum(axis=1) / np.maximum(loader.column("history_len"), 1)
    np.testing.assert_allclose(made[:, -1], distance, rtol=1e-5, atol=1e-5)


def test_importance_shuffles_columns_that_change(feature_set):
    model = model_on(feature_set)
    found = permutation_importance(model, feature_set, "valid")
    drops = {(one.side, one.name): one.drop.value for one in found}
    assert drops[("item", "genre")] != 0 and drops[("user", "segment")] != 0
    (batch,) = Loader(feature_set, "valid", 10_000).epoch(0)
    before = model_on(feature_set)(batch)
    assert torch.equal(model(batch), before)
