"""A bundle with one flipped bit is refused, whichever file has it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from ctr.serving.bundle import MANIFEST, open_bundle
from features.errors import DataError

FLIPS = 200


def test_two_hundred_flipped_bits_spread_over_all_files_are_refused(copy: Path):
    draw = random.Random(0)
    files = sorted(path for path in copy.rglob("*") if path.is_file() and path.name != MANIFEST and path.stat().st_size)
    assert len(files) > 8 and open_bundle(copy)
    for flip in range(FLIPS):
        file = files[flip % len(files)]
        sound = file.read_bytes()
        content = bytearray(sound)
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
        with pytest.raises(DataError, match=f"{file.name}: changed since"):
            open_bundle(copy)
        file.write_bytes(sound)
    assert open_bundle(copy)
