"""A bundle with one flipped bit is refused, whichever file has it."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from ctr.serving import verified
from ctr.serving.bundle import MANIFEST, open_bundle
from features.errors import DataError

FLIPS = 200


@pytest.mark.parametrize(
    ("was", "becomes"), [('"auc": 0.71', '"auc": 0.91'), ('"model_version": "run-1"', '"model_version": "run-7"')]
)
def test_a_manifest_that_reads_well_and_says_something_else_is_refused(copy: Path, was: str, becomes: str):
    text = (copy / MANIFEST).read_text()
    assert was in text
    (copy / MANIFEST).write_text(text.replace(was, becomes))
    with pytest.raises(DataError, match=r"MANIFEST\.json: changed since it was exported"):
        open_bundle(copy)


def test_flipped_bits_are_refused_though_all_files_were_found_sound_before(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Their time of change is put back, as a careful copy does."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(verified, "LARGE", 1)
    monkeypatch.setattr(verified, "SETTLED_NS", 0)
    draw = random.Random(1)
    files = sorted(path for path in copy.rglob("*") if path.is_file() and path.stat().st_size)
    for flip in range(FLIPS):
        if flip % len(files) == 0:
            assert open_bundle(copy)
            time.sleep(0.02)  # longer than the clock of a file system stands still
        file = files[flip % len(files)]
        before, sound = file.stat(), file.read_bytes()
        content = bytearray(sound)
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        with file.open("r+b") as opened:
            opened.write(content)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        with pytest.raises(DataError, match=f"{file.name}: changed since" if file.name != MANIFEST else None):
            open_bundle(copy)
        with file.open("r+b") as opened:
            opened.write(sound)
    assert len(list((tmp_path / "cache/quadrank/verified").iterdir())) > len(files)


def test_two_hundred_flipped_bits_spread_over_all_files_are_refused(copy: Path):
    draw = random.Random(0)
    files = sorted(path for path in copy.rglob("*") if path.is_file() and path.stat().st_size)
    assert len(files) > 8 and open_bundle(copy)
    for flip in range(FLIPS):
        file = files[flip % len(files)]
        sound = file.read_bytes()
        content = bytearray(sound)
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(content)
        # A manifest with a flipped bit may be no JSON any more, or lack a key, or name another file.
        said = None if file.name == MANIFEST else f"{file.name}: changed since"
        with pytest.raises(DataError, match=said):
            open_bundle(copy)
        file.write_bytes(sound)
    assert open_bundle(copy)
