"""The loader: every row once, histories equal to a row-by-row reading, and a thread that leaves no trace."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ctr.data.batch import Batch
from ctr.data.loader import DistinctItems, Loader, list_numbers, newest_before, prefetch
from features.build.build import build_feature_set
from features.errors import DataError
from features.store.feature_set import FeatureSet, read_arrow, write_arrow
from tests.listed import START, built_lists, listed_contract, write_listed
from tests.toy import toy_feature_set

ROW = ("user", "item", "label", "weight", "hour", "load", "item_rate")
EVENT = ("item", "label", "residual")


@pytest.fixture(scope="module")
def feature_set(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    return toy_feature_set(tmp_path_factory.mktemp("toy"), rows=500, users=30, parts=3)


def row_by_row(feature_set: FeatureSet, split: str) -> list[tuple]:
    """What every row of a split holds, read with plain loops, in stored order."""
    found = []
    for rows, events in zip(feature_set.rows(split), feature_set.events(split), strict=True):
        for i in range(len(rows["item"])):
            end, length = int(rows["history_end"][i]), int(rows["history_len"][i])
            past = [tuple(events[name][j].item() for name in EVENT) for j in range(end - length, end)]
            row = {name: rows[name][i].item() for name in ROW}
            found.append((*row.values(), past))
    return found


def rows_of(batch: Batch) -> list[tuple]:
    """The same tuples out of a batch; checks that padding stands in front and only there."""
    batch.validate()
    items_U = batch.items_U.tolist()
    columns = zip(
        batch.user_B.tolist(),
        [items_U[place] for place in batch.target_B.tolist()],
        batch.label_B.tolist(),
        batch.weight_B.tolist(),
        batch.context["hour"].tolist(),
        batch.context["load"].tolist(),
        batch.candidate["item_rate"].tolist(),
        strict=True,
    )
    events = (batch.events["label"].tolist(), batch.events["residual"].tolist())
    found = []
    for row, places, *of_events in zip(columns, batch.history_BS.tolist(), *events, strict=True):
        past = [(items_U[place], *event) for place, *event in zip(places, *of_events, strict=True)]
        length = sum(item != 0 for item, *_ in past)
        # Also where a missing number (NaN) lies in the place that padding is read from.
        assert past[: len(past) - length] == [(0, 0, 0.0)] * (len(past) - length)
        found.append((*row, past[len(past) - length :]))
    return found


def key(row: tuple) -> str:
    # NaN differs from itself; its text does not.
    return repr(row)


def read(loader: Loader, epoch: int = 0, start: int = 0) -> list[str]:
    return [key(row) for batch in loader.epoch(epoch, start) for row in rows_of(batch)]


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize("batch_size", [1, 7, 64, 10_000])
def test_stored_order_equals_a_row_by_row_reading(feature_set, split, batch_size):
    loader = Loader(feature_set, split, batch_size)
    expected = [key(row) for row in row_by_row(feature_set, split)]
    assert read(loader) == expected
    assert loader.rows == len(expected)
    assert len(loader) == -(-len(expected) // batch_size)


def test_labels_follow_the_stored_order(feature_set):
    labels = [row[2] for row in row_by_row(feature_set, "valid")]
    loader = Loader(feature_set, "valid", 16)
    assert loader.labels.tolist() == labels and loader.labels.dtype == np.float32
    assert np.concatenate([batch.label_B for batch in loader.epoch(0)]).tolist() == labels


def test_a_shuffled_epoch_holds_every_row_once(feature_set):
    expected = [key(row) for row in row_by_row(feature_set, "train")]
    shuffled = read(Loader(feature_set, "train", 32, shuffle=True, seed=5))
    assert shuffled != expected
    assert sorted(shuffled) == sorted(expected)


def test_the_order_follows_from_seed_and_epoch(feature_set):
    def order(seed: int, epoch: int) -> list[str]:
        return read(Loader(feature_set, "train", 32, shuffle=True, seed=seed), epoch)

    assert order(5, 1) == order(5, 1)
    assert order(5, 1) != order(5, 2)
    assert order(5, 1) != order(6, 1)
    assert order(-1, 0) != order(1, 0)


def test_an_epoch_can_start_in_the_middle(feature_set):
    loader = Loader(feature_set, "train", 32, shuffle=True, seed=5)
    assert read(loader, epoch=3, start=4) == read(loader, epoch=3)[4 * 32 :]
    assert read(loader, epoch=3, start=len(loader)) == []


def test_drop_last_leaves_out_an_incomplete_batch(feature_set):
    rows = Loader(feature_set, "train", 1).rows
    batch_size = rows - 1
    loader = Loader(feature_set, "train", batch_size, shuffle=True, drop_last=True)
    assert len(loader) == 1
    assert [len(batch) for batch in loader.epoch(0)] == [batch_size]
    # Another row is left out each epoch.
    everything = set(read(Loader(feature_set, "train", 32)))
    assert everything - set(read(loader, 0)) != everything - set(read(loader, 1))


def test_history_is_as_wide_as_the_longest_of_the_batch(feature_set):
    lengths = np.concatenate([part["history_len"] for part in feature_set.rows("train")])
    batches = list(Loader(feature_set, "train", 1).epoch(0))
    assert [batch.history_BS.shape[1] for batch in batches] == np.maximum(lengths, 1).tolist()
    assert 0 in lengths and feature_set.schema.history_max_len in lengths


def test_rows_without_weights_weigh_one(feature_set, tmp_path):
    bare = toy_feature_set(tmp_path, rows=100, users=10, parts=1)
    path = tmp_path / "rows/train/part-00000.arrow"
    columns = {name: values.copy() for name, values in read_arrow(path).items() if name != "weight"}
    path.unlink()
    write_arrow(path, columns)
    batch = next(Loader(bare, "train", 10).epoch(0))
    assert batch.weight_B.tolist() == [1.0] * 10


@pytest.mark.parametrize("column", ["hour", "item_rate"])
def test_a_missing_column_is_named(tmp_path, column):
    bare = toy_feature_set(tmp_path, rows=100, users=10, parts=2)
    path = tmp_path / "rows/train/part-00001.arrow"
    columns = {name: values.copy() for name, values in read_arrow(path).items() if name != column}
    path.unlink()
    write_arrow(path, columns)
    with pytest.raises(DataError, match=rf"train/part-00001\.arrow: no column '{column}'"):
        Loader(bare, "train", 10)


@given(st.lists(st.lists(st.integers(0, 19), max_size=30), min_size=1, max_size=4))
def test_distinct_items_equal_numpy_unique(calls):
    """One scratch array serves many batches: nothing of a batch may leak into the next."""
    distinct = DistinctItems(20)
    for items in calls:
        items_U, place = distinct.find(np.array(items, np.int32))
        assert items_U.tolist() == sorted({0, *items})
        assert items_U[place[items]].tolist() == items if items else items_U.tolist() == [0]


def test_two_epochs_at_once_do_not_disturb_each_other(feature_set):
    loader = Loader(feature_set, "train", 16)
    expected = read(loader)
    both = [
        (key(row), key(other))
        for one, two in zip(loader.epoch(0), loader.epoch(0), strict=True)
        for row, other in zip(rows_of(one), rows_of(two), strict=True)
    ]
    assert both == list(zip(expected, expected, strict=True))


def threads() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


def test_prefetch_ends_its_thread_when_the_consumer_stops_early():
    taken: list[int] = []

    def endless() -> Iterator[int]:
        for number in range(10**9):
            taken.append(number)
            yield number

    before = threads()
    stream = prefetch(endless(), ahead=2)
    assert [next(stream), next(stream)] == [0, 1]
    assert threads() == before + 1
    stream.close()
    assert threads() == before
    assert len(taken) <= 6  # two consumed, two waiting, one at the door, one in the making


def test_prefetch_does_not_run_far_ahead():
    taken: list[int] = []

    def source() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    stream = prefetch(source(), ahead=3)
    assert next(stream) == 0
    # One was consumed, three wait, one is held by the thread that made it: it gets so far, and never further.
    until = time.monotonic() + 60
    while len(taken) < 1 + 3 + 1 and time.monotonic() < until:
        time.sleep(0.001)
    time.sleep(0.05)
    assert len(taken) == 1 + 3 + 1
    assert list(stream) == list(range(1, 100))


def test_prefetch_raises_what_the_source_raised_after_its_results():
    def source() -> Iterator[int]:
        yield 1
        raise OSError("disk gone")

    seen = []
    before = threads()
    with pytest.raises(OSError, match="disk gone"):
        for value in prefetch(source()):
            seen.append(value)
    assert seen == [1]
    assert threads() == before


def test_indices_are_int32_all_the_way(tmp_path):
    batch = next(Loader(toy_feature_set(tmp_path, rows=300), "train", 32).epoch(0))
    whole = [batch.items_U, batch.target_B, batch.history_BS, batch.user_B]
    whole += [values for values in (*batch.events.values(), *batch.context.values()) if not values.is_floating_point()]
    assert {tensor.dtype for tensor in whole} == {torch.int32}


def test_the_newest_events_are_copied_as_runs():
    events = np.arange(10, 20, dtype=np.int32)
    out = np.full((4, 3), -1, np.int32)
    newest_before(events, np.array([3, 10, 5, 4]), out)
    assert out.tolist() == [[10, 11, 12], [17, 18, 19], [12, 13, 14], [11, 12, 13]]
    # Before the first event there is nothing: those places may hold anything, the others what they should.
    newest_before(events, np.array([0, 2, 3, 1]), out)
    assert out[1, 1:].tolist() == [10, 11] and out[2].tolist() == [10, 11, 12] and out[3, 2] == 10
    newest_before(events[:2], np.array([2, 0, 1, 2]), out)
    assert out[0, 1:].tolist() == [10, 11] and out[2, 2] == 10 and out[3, 1:].tolist() == [10, 11]


def test_processes_load_the_rows_of_one_epoch_between_them(tmp_path):
    feature_set = toy_feature_set(tmp_path, rows=300)

    def users_and_targets(loader: Loader) -> list[tuple[int, int]]:
        return [
            (user, int(batch.items_U[target]))
            for batch in loader.epoch(1)
            for user, target in zip(batch.user_B.tolist(), batch.target_B.tolist(), strict=True)
        ]

    alone = Loader(feature_set, "train", 32, seed=5, shuffle=True)
    shared = [Loader(feature_set, "train", 16, seed=5, shuffle=True, process=p, processes=2) for p in (0, 1)]
    assert {len(loader) for loader in shared} == {len(alone)}
    together = [pair for loader in shared for pair in users_and_targets(loader)]
    assert sorted(together) == sorted(users_and_targets(alone))


@pytest.mark.parametrize("chosen", [[0, 3, 250, 251, 399], [7], list(range(100, 300))])
def test_chosen_rows_are_read_and_no_others(feature_set: FeatureSet, chosen: list[int]):
    loader = Loader(feature_set, "train", 64, seed=3, shuffle=True, chosen=np.array(chosen))
    every = row_by_row(feature_set, "train")
    batches = list(loader.epoch(1))
    assert loader.rows == len(chosen) and len(batches) == len(loader) == -(-len(chosen) // 64)
    assert sorted(map(repr, (row for batch in batches for row in rows_of(batch)))) == sorted(
        repr(every[number]) for number in chosen
    )


def test_rows_of_equal_keys_are_one_list_and_those_without_a_request_are_alone():
    request, user = np.array([7, -1, 7, 7, -1, 3]), np.array([1, 1, 2, 1, 1, 2])
    number = list_numbers(request, user).tolist()
    assert number[0] == number[3] and sorted(set(number)) == [0, 1, 2, 3, 4]
    assert list_numbers(np.empty(0, np.int64), np.empty(0, np.int32)).tolist() == []


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    return built_lists(tmp_path_factory.mktemp("lists"))


def pages(batch: Batch) -> list[tuple[int, int]]:
    """The user and the number of the list of each row."""
    assert batch.list_B is not None
    return list(zip(batch.user_B.tolist(), batch.list_B.tolist(), strict=True))


def sizes_of_pages(feature_set: FeatureSet) -> dict[tuple[int, int], int]:
    found: dict[tuple[int, int], int] = {}
    for part in feature_set.rows("train"):
        for page in zip(part["user"].tolist(), part["request"].tolist(), strict=True):
            found[page] = found.get(page, 0) + 1
    return found


def test_one_batch_of_all_rows_holds_each_request_as_a_list(lists):
    (batch,) = Loader(lists, "train", 10_000, shuffle=True, by_request=True).epoch(0)
    batch.validate()
    counted = np.bincount(batch.list_B)
    assert sorted(counted.tolist()) == sorted(sizes_of_pages(lists).values())
    assert len(set(pages(batch))) == len(counted)


def test_requests_are_whole_but_for_the_ends_of_batches(lists):
    loader = Loader(lists, "train", 16, shuffle=True, by_request=True, seed=2)
    batches = list(loader.epoch(1))
    found = sum(int(batch.list_B.max()) + 1 for batch in batches)
    pages_in_all = len(sizes_of_pages(lists))
    assert sum(len(batch) for batch in batches) == loader.rows
    assert pages_in_all < found <= pages_in_all + len(batches) - 1


def test_pages_of_one_number_of_two_users_are_two_requests(lists):
    """Were they one, users would come in their stored order, once for each of the twelve numbers."""
    users = [int(batch.user_B[0]) for batch in Loader(lists, "train", 1, shuffle=True, by_request=True).epoch(0)]
    assert sum(after < before for before, after in pairwise(users)) > 20


def test_a_request_over_midnight_is_two_lists_of_a_daily_build(tmp_path):
    day = 86_400
    shown = [(0, 100), (1, 101), (day - 1, 102), (day, 103), (2 * day, 100), (3 * day, 101)]
    table = {
        "user": ["u"] * 6,
        "item": [item for _, item in shown],
        "time": [START + time for time, _ in shown],
        "clicked": [0, 1, 0, 1, 0, 1],
        "page": [1, 1, 2, 2, 3, 4],
        "load": [0.5] * 6,
    }
    write_listed(tmp_path, pl.DataFrame(table))
    over = {"split": {"by": "days", "valid": 1, "test": 1}, "interactions": {"user_min_count": 1}}
    built = build_feature_set(listed_contract(tmp_path, over), tmp_path / "out", window=4).feature_set
    (batch,) = Loader(built, "train", 10, shuffle=True, by_request=True).epoch(0)
    assert sorted(np.bincount(batch.list_B).tolist()) == [1, 1, 2]


def test_lists_go_where_their_batch_goes(lists):
    batch = next(Loader(lists, "train", 16, by_request=True).epoch(0))
    assert batch.list_B is not None
    moved = batch.map(lambda tensor: tensor + 1).list_B
    assert moved is not None and torch.equal(moved, batch.list_B + 1)


def test_chosen_rows_are_listed_among_themselves(lists):
    rows = Loader(lists, "train", 1).rows
    loader = Loader(lists, "train", 16, shuffle=True, by_request=True, chosen=np.arange(3, rows, 2))
    first = list(loader.epoch(0))
    assert sum(len(batch) for batch in first) == loader.rows == len(range(3, rows, 2))
    assert max(int(np.bincount(batch.list_B).max()) for batch in first) >= 3


def test_nobody_is_listed_who_did_not_ask(lists):
    assert next(Loader(lists, "train", 16, shuffle=True).epoch(0)).list_B is None


def test_requests_that_a_feature_set_does_not_have_are_named(feature_set):
    with pytest.raises(DataError, match=r"rows/train/part-00000.arrow: no column 'request'"):
        Loader(feature_set, "train", 16, by_request=True)


@pytest.mark.parametrize(
    ("number", "words"), [([0, 5], "list_B: numbers outside 0 to 1"), ([0], "list_B: expected sh")]
)
def test_lists_that_a_batch_cannot_have_are_named(lists, number, words):
    batch = next(Loader(lists, "train", 2, by_request=True).epoch(0))
    with pytest.raises(DataError, match=words):
        replace(batch, list_B=torch.tensor(number)).validate()
