"""A bundle is on disk before it has its name: the order of flushes and renames when it is published."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctr.serving.bundle import MANIFEST, publish, seal
from tests.ctr.serving.test_bundle import METADATA
from tests.disk import steps_of


def test_a_bundle_is_flushed_then_renamed_then_its_folder_is_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bundle"
    with publish(out) as staging:
        (staging / "vocabularies").mkdir()
        (staging / "vocabularies" / "genre.arrow").write_text("words")
        (staging / "ranker.onnx").write_text("graph")
        seal(staging, METADATA)
        steps = steps_of(monkeypatch)
    inside = [MANIFEST, "ranker.onnx", "vocabularies", "vocabularies/genre.arrow"]
    flushed = [("flush", staging / name) for name in inside]
    assert steps == [*flushed, ("flush", staging), ("rename", out), ("flush", tmp_path)]


def test_a_bundle_that_fails_inside_never_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = steps_of(monkeypatch)
    with pytest.raises(ValueError, match="no parity"), publish(tmp_path / "bundle") as staging:
        (staging / "ranker.onnx").write_text("graph")
        seal(staging, METADATA)
        raise ValueError("no parity")
    assert not [path for step, path in steps if step == "rename" and path.name == "bundle"]
    assert list(tmp_path.iterdir()) == []
