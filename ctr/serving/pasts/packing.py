"""A user's past as bytes: a version, the contract's fingerprint, then columns of values as MessagePack.

Byte 0 is the version, bytes 1 to 8 are the first of the contract's fingerprint (sha256).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from features.encoding.past import PastEvent

VERSION = 1
HEADER = 9  # bytes


class ForeignError(Exception):
    """A past of another contract, or in another format."""


class BrokenError(Exception):
    """Bytes that are no past."""


class _Columns(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    items: list[Any]
    times: list[int]
    columns: dict[str, list[Any]]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Columns).decode


def header_of(fingerprint: str) -> bytes:
    """What a past of a contract begins with.

    Args:
        fingerprint: of the contract, hexadecimal.
    """
    return bytes([VERSION]) + bytes.fromhex(fingerprint)[: HEADER - 1]


def pack(events: Sequence[PastEvent], header: bytes) -> bytes:
    """The events as bytes; columns that an event lacks are None there."""
    names = dict.fromkeys(name for event in events for name in event.columns)
    columns = {name: [event.columns.get(name) for event in events] for name in names}
    return pack_columns([event.item for event in events], [event.time for event in events], columns, header)


def pack_columns(items: list[Any], times: list[int], columns: dict[str, list[Any]], header: bytes) -> bytes:
    """As `pack`, of events given by column."""
    return header + _encode(_Columns(items, times, columns))


def unpack(blob: bytes | memoryview, header: bytes) -> list[PastEvent]:
    """The events, in the order in which they were packed.

    Raises:
        ForeignError: the blob begins with another header.
        BrokenError: it is cut short or was never a past.
    """
    if bytes(blob[:HEADER]) != header:
        if len(blob) < HEADER:
            raise BrokenError
        raise ForeignError
    try:
        found = _decode(blob[HEADER:])
    except msgspec.MsgspecError:
        raise BrokenError from None
    if any(len(values) != len(found.items) for values in (found.times, *found.columns.values())):
        raise BrokenError
    names = tuple(found.columns)
    rows = zip(*found.columns.values(), strict=True) if names else ((),) * len(found.items)
    return [
        PastEvent(item, time, dict(zip(names, row, strict=True)))
        for item, time, row in zip(found.items, found.times, rows, strict=True)
    ]
