"""Files of a feature set that were damaged are named, with the way out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from features.encoding.encoder import ENCODER, Encoder
from features.encoding.vocabulary import Vocabulary
from features.errors import DataError
from features.store.feature_set import FeatureSet, read_arrow, write_arrow


@pytest.mark.parametrize("cut", [0, 8, 200])
def test_columns_cut_short_are_named(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "rows.arrow"
    write_arrow(path, {"user": np.arange(100)})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"rows\.arrow: cannot be read: .*\. It was damaged: build or export again\."):
        read_arrow(path)


def test_columns_whose_content_is_lost_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.arrow"
    write_arrow(path, {"user": np.arange(100)})
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DataError, match=r"rows\.arrow: cannot be read: .*\. It was damaged: build or export again\."):
        read_arrow(path)


def test_columns_that_are_not_there_are_no_damage(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_arrow(tmp_path / "rows.arrow")


def test_a_folder_in_the_place_of_the_manifest_makes_no_feature_set(tmp_path: Path) -> None:
    (tmp_path / "MANIFEST.json").mkdir()
    with pytest.raises(DataError, match=r"no MANIFEST\.json: not a feature set"):
        FeatureSet.open(tmp_path)


def test_a_vocabulary_whose_content_is_lost_is_named(tmp_path: Path) -> None:
    path = tmp_path / "items.arrow"
    Vocabulary(pl.Series([1, 2])).save(path)
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(DataError, match=r"items\.arrow: cannot be read: .*\. It was damaged: build or export again\."):
        Vocabulary.load(path)


def test_an_encoder_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / ENCODER).write_bytes(b'{"contract": "\xff"}')
    with pytest.raises(DataError, match=r"encoder\.json: cannot be read: .* Build or export again\."):
        Encoder.load(tmp_path)
