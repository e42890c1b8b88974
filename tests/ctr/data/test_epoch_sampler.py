from __future__ import annotations

from itertools import chain, pairwise

import numpy as np
import pytest

from ctr.data.epoch_sampler import EpochOrder
from features.errors import ConfigError

PARTS = (5, 0, 7, 1, 9, 3)  # 25 rows


def rows(order: EpochOrder, start: int = 0) -> list[list[int]]:
    return [batch.tolist() for batch in order.batches(start)]


def test_stored_order_is_kept_across_parts():
    assert rows(EpochOrder(PARTS, 10)) == [list(range(10)), list(range(10, 20)), list(range(20, 25))]
    assert rows(EpochOrder(PARTS, 10, drop_last=True)) == [list(range(10)), list(range(10, 20))]
    assert rows(EpochOrder((), 10)) == []


def test_a_small_set_is_permuted_as_a_whole_and_anew_each_epoch():
    first, again, second, other_seed = (
        list(chain(*rows(EpochOrder(PARTS, 4, seed=seed, epoch=epoch, shuffle=True))))
        for seed, epoch in ((3, 0), (3, 0), (3, 1), (4, 0))
    )
    assert sorted(first) == list(range(25))
    assert first == again
    assert first not in (second, other_seed, sorted(first))


@pytest.mark.parametrize("epoch", range(4))
@pytest.mark.parametrize(("window_rows", "largest"), [(1, 9), (8, 7 + 9)])
def test_windows_hold_whole_parts_in_random_order(epoch: int, window_rows: int, largest: int):
    order = EpochOrder(PARTS, 4, seed=1, epoch=epoch, shuffle=True, window_rows=window_rows)
    in_order = list(chain(*rows(order)))
    assert sorted(in_order) == list(range(25))
    starts = np.cumsum((0, *PARTS))
    part_of = (np.searchsorted(starts, in_order, side="right") - 1).tolist()
    # Where a window ends, each part has been read whole or not at all: never further apart than the largest window.
    ends = [end for end in range(26) if all(part_of[:end].count(part) in (0, size) for part, size in enumerate(PARTS))]
    assert ends[0] == 0 and ends[-1] == 25
    assert max(b - a for a, b in pairwise(ends)) <= largest
    assert in_order != sorted(in_order)


def test_batches_run_on_from_window_to_window():
    order = EpochOrder(PARTS, 6, seed=1, shuffle=True, window_rows=1)
    assert [len(batch) for batch in rows(order)] == [6, 6, 6, 6, 1]
    assert len(order) == 5


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("window_rows", [1, 8, 100])
def test_starting_later_skips_and_changes_nothing(shuffle: bool, window_rows: int):
    order = EpochOrder(PARTS, 4, seed=2, shuffle=shuffle, window_rows=window_rows)
    whole = rows(order)
    for start in range(len(order) + 1):
        assert rows(order, start) == whole[start:]


def test_batches_before_the_start_are_never_made(monkeypatch: pytest.MonkeyPatch):
    made: list[int] = []
    arange = np.arange

    def counted(*args: int) -> np.ndarray:
        result = arange(*args)
        made.append(len(result))
        return result

    order = EpochOrder((1_000,) * 50, 100, seed=2, shuffle=True, window_rows=1_000)
    monkeypatch.setattr(np, "arange", counted)
    next(iter(order.batches(490)))
    # The parts' own order, and the rows of the one window that batch 490 lies in.
    assert made == [50, 1_000]


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("window_rows", [8, 100])
@pytest.mark.parametrize("drop_last", [True, False])
def test_processes_share_the_global_order_exactly(processes: int, window_rows: int, drop_last: bool):
    batch = 30 // processes // 2
    alone = EpochOrder(PARTS, batch * processes, 7, 2, True, drop_last, window_rows=window_rows)
    shared = [
        EpochOrder(PARTS, batch, 7, 2, True, drop_last, process, processes, window_rows) for process in range(processes)
    ]
    assert {len(order) for order in shared} == {len(alone)}
    together = [list(chain(*parts)) for parts in zip(*(rows(order) for order in shared), strict=True)]
    assert together == rows(alone)
    sizes = [[len(one) for one in rows(order)] for order in shared]
    for of_batch in zip(*sizes, strict=True):
        assert max(of_batch) - min(of_batch) <= 1
    assert all(a >= b for of_process in sizes for a, b in pairwise(of_process))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("parts", [(25,), PARTS, (12, 12, 1)])
def test_a_rest_of_fewer_rows_than_processes_joins_the_batch_before(parts: tuple[int, ...], shuffle: bool):
    """25 rows, 3 processes of 4 rows: a rest of one row, which two of them would lack."""
    shared = [
        EpochOrder(parts, 4, shuffle=shuffle, process=process, processes=3, window_rows=5) for process in range(3)
    ]
    assert [len(order) for order in shared] == [2, 2, 2]
    batches = [rows(order) for order in shared]
    assert [[len(batch) for batch in of_process] for of_process in batches] == [[4, 4], [4, 4], [4, 5]]
    assert sorted(chain(*(chain(*of_process) for of_process in batches))) == list(range(25))
    assert [rows(order, 1) for order in shared] == [of_process[1:] for of_process in batches]


def test_a_rest_is_left_out_where_asked_for():
    dropping = EpochOrder((25,), 4, drop_last=True, process=2, processes=3)
    assert len(dropping) == 2 and rows(dropping) == [[8, 9, 10, 11], [20, 21, 22, 23]]


def test_fewer_rows_than_processes_are_refused():
    with pytest.raises(ConfigError, match=r"2 rows cannot be shared among 3 processes\. Start at most 2"):
        EpochOrder((1, 1), 4, processes=3)


# Lists of the parts above: rows of one list need not stand side by side.
LISTS = ([0, 1, 0, 2, 1], [], [0, 0, 0, 1, 2, 1, 3], [0], [1, 0, 1, 0, 1, 0, 1, 0, 1], [2, 1, 0])


def listed(**changed: int) -> EpochOrder:
    settings = {"seed": 3, "window_rows": 8, **changed}
    return EpochOrder(PARTS, 4, shuffle=True, lists_of=lambda part: np.array(LISTS[part], np.int32), **settings)


def list_of(row: int) -> tuple[int, int]:
    starts = np.cumsum((0, *PARTS))
    part = int(np.searchsorted(starts, row, side="right")) - 1
    return part, LISTS[part][row - starts[part]]


@pytest.mark.parametrize("window_rows", [1, 8, 100])
@pytest.mark.parametrize("epoch", range(3))
def test_lists_come_whole_and_each_row_once(epoch: int, window_rows: int):
    in_order = list(chain(*rows(listed(epoch=epoch, window_rows=window_rows))))
    assert sorted(in_order) == list(range(25))
    changes = 1 + sum(list_of(one) != list_of(other) for one, other in pairwise(in_order))
    assert changes == len({list_of(row) for row in in_order}) == 13


def test_lists_come_in_another_order_in_each_epoch_and_in_the_same_for_one_seed():
    first, again, second = (rows(listed(epoch=epoch, window_rows=100)) for epoch in (0, 0, 1))
    assert first == again and first != second
    in_order = [list_of(row) for row in chain(*first)]
    assert in_order != sorted(in_order)


def test_lists_of_all_parts_of_a_window_are_mixed():
    parts = [list_of(row)[0] for row in chain(*rows(listed(window_rows=100)))]
    assert sum(one != other for one, other in pairwise(parts)) > len(PARTS)


def test_lists_of_one_number_in_two_parts_are_two_lists():
    """Lists of the number 0 are in five parts: side by side in each epoch, they were one."""

    def spread(epoch: int) -> int:
        lists = list(dict.fromkeys(map(list_of, chain(*rows(listed(epoch=epoch, window_rows=100))))))
        places = [place for place, (_, number) in enumerate(lists) if number == 0]
        return max(places) - min(places)

    assert max(spread(epoch) for epoch in range(5)) > 4


def test_starting_later_skips_lists_that_were_read():
    whole = rows(listed())
    assert [rows(listed(), start) for start in range(8)] == [whole[start:] for start in range(8)]
