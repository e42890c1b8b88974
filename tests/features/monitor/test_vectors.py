"""Vectors of items that two feature sets know: of another encoder, edited, or less another mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from features.encoding.vocabulary import Vocabulary
from features.monitor.drift.vectors import items_of_both, other_encoders
from features.store.feature_set import FeatureSet
from tests import grown
from tests.grown import grown_feature_set


@pytest.fixture(scope="module")
def monday(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    return grown_feature_set(tmp_path_factory.mktemp("monday"), 1)


def tuesday(folder: Path, monkeypatch: pytest.MonkeyPatch, change: Any, over: Any = None) -> FeatureSet:
    known = grown.vector_of
    monkeypatch.setattr(grown, "vector_of", lambda item: change(item, known(item)))
    return grown_feature_set(folder, 2, over)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda item, vector: vector, ()),
        # Turned by a right angle: as long as before, and 1.4 lengths away.
        (lambda item, vector: [-vector[1], vector[0], -vector[3], vector[2]], ("text",)),
        # A tenth of a length: another mean is taken away, say.
        (lambda item, vector: [1.1 * x for x in vector], ()),
        # A few were edited.
        (lambda item, vector: [-x for x in vector] if item < 110 else vector, ()),
    ],
)
def test_a_set_of_another_encoder_is_named(monday, tmp_path, monkeypatch, change, found):
    assert other_encoders(monday, tuesday(tmp_path, monkeypatch, change)) == found


def test_what_a_window_turns_by_itself_is_not_looked_at(monday, tmp_path, monkeypatch):
    reduced = {"embeddings": {"text": {"reduce": {"method": "pca", "dim": 4}}}}
    turned = tuesday(tmp_path, monkeypatch, lambda item, vector: [-x for x in vector], reduced)
    assert other_encoders(monday, turned) == ()


def test_a_set_of_another_width_is_not_compared(monday, tmp_path, monkeypatch):
    assert other_encoders(monday, tuesday(tmp_path, monkeypatch, lambda item, vector: vector[:2])) == ()


def test_an_encoder_that_the_contract_names_anew_is_meant(monday, tmp_path, monkeypatch):
    over = {"embeddings": {"text": {"version": "text-2"}}}
    assert other_encoders(monday, tuesday(tmp_path, monkeypatch, lambda item, vector: [-x for x in vector], over)) == ()


def test_ids_that_became_text_are_no_items_of_both() -> None:
    numbers, texts = Vocabulary(pl.Series([1, 2, 3])), Vocabulary(pl.Series(["1", "2", "x"]))
    for old, new in ((numbers, texts), (texts, numbers)):
        old_C, new_C = items_of_both(old, new)
        assert len(old_C) == 0
        assert len(new_C) == 0
