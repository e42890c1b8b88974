"""What `quadrank bench serve` needs made, each in a process of its own: two bundles to serve, and bodies to send."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.inputs import mmctr_shaped
from benchmarks.inputs.presets import shipped_sizes
from benchmarks.jobs.rank import as_it_begins, request_of
from features.store.pointer import point_at

BUNDLES = ("first", "second")
PRESET = "qin"
USERS = 500


def bundles(out: str, rows: int, items: int, max_len: int, paper: bool, sizes: dict[str, Any]) -> dict[str, Any]:
    """Export QIN with the weights that it begins with, twice under two names, beside a pointer to the first.

    Args:
        out: folder; gets `log`, and `bundles` with both and `CURRENT`.
        rows, items, max_len: of the log (`benchmarks.inputs.mmctr_shaped`), whose events have their feedback.
        paper: the widths, layers and rows of the paper; false: those of conf/model/qin.yaml.
        sizes: model settings over those.

    Returns:
        `mib` of a bundle, and `pointer`.
    """
    from ctr.export.export_bundle import GRAPHS_ALONE, export_bundle
    from features.store.feature_set import FeatureSet

    users = min(USERS, max(rows // (4 * max_len), 1))
    log = mmctr_shaped.build(str(Path(out) / "log"), rows, users, items, max_len, feedback=True)
    data = FeatureSet.open(Path(log["feature_set"]))
    model = as_it_begins(data, PRESET, ({} if paper else shipped_sizes(PRESET)) | sizes)
    folder = Path(out) / "bundles"
    exported = export_bundle(
        model,
        data,
        folder / BUNDLES[0],
        model_version=PRESET,
        architecture=PRESET,
        metrics={},
        controls={},
        git_revision="",
        extras=GRAPHS_ALONE,
    )
    shutil.copytree(folder / BUNDLES[0], folder / BUNDLES[1])
    return {"mib": round(exported.bytes / 2**20, 1), "pointer": str(point_at(folder, BUNDLES[0]))}


def bodies(bundle: str, out: str, candidates: list[int], count: int) -> None:
    """Write bodies of `POST /v1/rank`, one a line, of users with full histories.

    Args:
        bundle: that ranks them.
        out: file.
        candidates: sizes, in turn.
        count: how many.
    """
    from features.encoding.encoder import Encoder

    encoder = Encoder.load(Path(bundle))
    lines = [json.dumps(request_of(encoder, candidates[k % len(candidates)], seed=k)) for k in range(count)]
    Path(out).write_text("\n".join(lines) + "\n", encoding="utf-8")


def new_items(first: int, count: int) -> bytes:
    """A body of `POST /v1/items`: items with ids from `first` on."""
    draw = np.random.default_rng(first)
    vectors = draw.standard_normal((count, mmctr_shaped.VECTOR_WIDTH)).round(4).tolist()
    items = [
        {"item": first + place, "columns": {"tags": [1 + place]}, "vectors": {"fused": vector}}
        for place, vector in enumerate(vectors)
    ]
    return json.dumps({"items": items}).encode()
