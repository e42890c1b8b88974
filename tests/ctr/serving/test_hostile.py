"""A bundle that somebody made who knows the format: it reads nothing outside its folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest

from ctr.serving.bundle import ITEM_TABLE, MANIFEST, RANKER, BundleManifest, seal
from ctr.serving.ranker import Ranker
from features.errors import DataError


def resealed(bundle: Path) -> None:
    """Its manifest again, with the hashes of what is there now."""
    manifest = BundleManifest.model_validate_json((bundle / MANIFEST).read_bytes())
    (bundle / MANIFEST).unlink()
    seal(bundle, manifest)


def test_a_bundle_that_is_sealed_again_opens(copy: Path) -> None:
    (copy / "MODEL_CARD.md").write_text("another card")
    resealed(copy)
    Ranker.load(copy)


@pytest.mark.parametrize("absolute", [False, True])
def test_a_graph_that_reads_its_table_outside_the_bundle_is_refused(copy: Path, absolute: bool) -> None:
    outside = copy.parent / "outside.bin"
    shutil.copy(copy / ITEM_TABLE, outside)
    graph = onnx.load(copy / RANKER, load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = str(outside) if absolute else "../outside.bin"
    (copy / RANKER).write_bytes(graph.SerializeToString())
    resealed(copy)
    with pytest.raises(DataError, match=r"ranker\.onnx: ONNX Runtime does not load it: .*[Ee]xternal data"):
        Ranker.load(copy)
