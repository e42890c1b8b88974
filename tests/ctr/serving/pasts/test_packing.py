"""Pasts as bytes, and what is kept of two lists of events."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctr.serving.pasts.packing import BrokenError, ForeignError, header_of, pack, unpack
from ctr.serving.pasts.source import kept_events, merged
from features.contract.log import History
from features.encoding.past import PastEvent

HEADER = header_of("ab" * 32)
EVENTS = [
    PastEvent(101, 1_700_000_000_000_000, {"clicked": 1, "load": 2.5}),
    PastEvent(2**63 - 1, 1_700_000_000_000_001, {"clicked": None, "load": 0.5}),
]


def test_a_past_comes_back_as_it_was_packed() -> None:
    assert unpack(pack(EVENTS, HEADER), HEADER) == EVENTS
    assert unpack(memoryview(pack(EVENTS, HEADER)), HEADER) == EVENTS
    assert unpack(pack([], HEADER), HEADER) == []
    bare = [PastEvent("å", -5), PastEvent("b", 7)]
    assert unpack(pack(bare, HEADER), HEADER) == bare


def test_the_bytes_are_a_version_a_fingerprint_and_messagepack_by_column() -> None:
    blob = pack(EVENTS, HEADER)
    assert blob[:9] == bytes([1]) + b"\xab" * 8
    items, times, columns = msgspec.msgpack.decode(blob[9:])
    assert items == [101, 2**63 - 1] and times == [1_700_000_000_000_000, 1_700_000_000_000_001]
    assert columns == {"clicked": [1, None], "load": [2.5, 0.5]}


def test_a_column_that_one_event_lacks_is_none_there() -> None:
    found = unpack(pack([PastEvent(1, 1, {"a": 3}), PastEvent(2, 2, {"b": 4})], HEADER), HEADER)
    assert [dict(event.columns) for event in found] == [{"a": 3, "b": None}, {"a": None, "b": 4}]


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version_or_contract_is_foreign(version: int) -> None:
    blob = pack(EVENTS, HEADER)
    with pytest.raises(ForeignError):
        unpack(bytes([version]) + blob[1:], HEADER)
    with pytest.raises(ForeignError):
        unpack(blob, header_of("ab" * 7 + "cd" * 25))


def test_a_blob_that_is_cut_anywhere_is_broken() -> None:
    blob = pack(EVENTS, HEADER)
    for length in range(len(blob)):
        with pytest.raises(BrokenError):
            unpack(blob[:length], HEADER)
    with pytest.raises(BrokenError):
        unpack(blob + b"\x00", HEADER)


@pytest.mark.parametrize(
    "content",
    [[[1], [1]], [[1], [1], {}, 0], {"items": []}, [[1, 2], [1], {}], [[1], [1], {"a": []}], [[1], ["t"], {}], 7],
)
def test_what_is_no_past_is_broken(content: object) -> None:
    with pytest.raises(BrokenError):
        unpack(HEADER + msgspec.msgpack.encode(content), HEADER)


@given(st.binary(max_size=60))
def test_no_bytes_end_in_another_error(content: bytes) -> None:
    try:
        found = unpack(HEADER + content, HEADER)
    except BrokenError:
        return
    assert all(isinstance(event, PastEvent) for event in found)


def test_merged_by_time_the_newest_stay_and_the_last_word_on_an_event_counts() -> None:
    stored = [PastEvent(1, 10, {"label": None}), PastEvent(2, 20), PastEvent(3, 20)]
    added = [PastEvent(9, 15), PastEvent(1, 10, {"label": 1}), PastEvent(2, 20), PastEvent(2, 30)]
    every = [PastEvent(1, 10, {"label": 1}), PastEvent(9, 15), PastEvent(2, 20), PastEvent(3, 20), PastEvent(2, 30)]
    assert merged(stored, added, 9) == every
    assert merged(stored, added, 3) == every[-3:]
    assert merged([], [], 3) == []


@pytest.mark.parametrize(
    ("history", "kept"),
    [
        ({"max_len": 50}, 51),
        ({"max_len": 50, "within": "3d", "session_gap": "1h", "events": "label == 1"}, 51),
        ({"max_len": 50, "repeats": "first"}, 201),
        ({"max_len": 50, "delay": "5m"}, 201),
    ],
)
def test_how_many_are_kept(history: dict[str, object], kept: int) -> None:
    assert kept_events(History.model_validate(history)) == kept
