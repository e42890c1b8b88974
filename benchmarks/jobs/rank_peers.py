"""Peers of the ranker as ONNX graphs that take a row a candidate: the literal QIN, torch-rechub's DIN, boosting."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from benchmarks.harness.measured import ROOT
from benchmarks.inputs.mmctr_shaped import LEVELS
from benchmarks.inputs.presets import DEFAULTS, PAPER
from benchmarks.jobs.literal import literal_model
from ctr.config import load_preset
from ctr.export.onnx_export import quiet_exporter
from features.errors import ConfigError

REQUIREMENTS = ROOT / "benchmarks" / "peers" / "rank" / "requirements.txt"
OPSET = 20
MLP, ATTENTION = [512, 128, 64], [64]  # units of DIN, as FuxiCTR's in `bench train`
BOOSTED_ROWS, BOOSTED_COLUMNS, TREES, LEAVES = 5_000, 20, 300, 31


def literal(folder: str, out: str, max_len: int, sizes: dict[str, Any]) -> dict[str, Any]:
    """Export the literal QIN at the sizes of the paper: inputs `item` [N], `history` [N, S], `likes`, `views` [N]."""
    model = literal_model(Path(folder), load_preset(PAPER, DEFAULTS, {"model": sizes})).eval()
    item_N = torch.ones(2, dtype=torch.int64)
    examples = (item_N, torch.ones(2, max_len, dtype=torch.int64), item_N, item_N)
    _export(_Probability(model), examples, ("item", "history", "likes", "views"), out)
    return {"parameters": sum(parameter.numel() for parameter in model.parameters())}


def rechub_din(site: str, out: str, items: int, max_len: int) -> dict[str, Any]:
    """Export torch-rechub's DIN with its own exporter: ids alone, embeddings as wide as QIN's.

    Args:
        site: folder that `install` filled.
        out: the graph.
        items, max_len: of the catalogue and of a history.
    """
    sys.path.append(site)
    from torch_rechub.basic.features import SequenceFeature, SparseFeature
    from torch_rechub.models.ranking import DIN
    from torch_rechub.utils.onnx_export import ONNXExporter

    width = load_preset(PAPER, DEFAULTS, {}).model.embedding_dim
    model = DIN(
        [SparseFeature(name, LEVELS + 1, width) for name in ("likes", "views")],
        [SequenceFeature("history", items + 1, width, pooling="concat", shared_with="item")],
        [SparseFeature("item", items + 1, width)],
        {"dims": MLP},
        {"dims": ATTENTION},
    )
    ids_N = torch.ones(2, dtype=torch.int64)
    example = {"item": ids_N, "likes": ids_N, "views": ids_N, "history": torch.ones(2, max_len, dtype=torch.int64)}
    with quiet_exporter():
        ONNXExporter(model).export(out, dummy_input=example, opset_version=OPSET, onnx_export_kwargs={"dynamo": False})
    return {"parameters": sum(parameter.numel() for parameter in model.parameters())}


def boosting(site: str, out: str) -> dict[str, Any]:
    """Export scikit-learn's gradient boosting through skl2onnx: input `rows`, float32 [N, columns]."""
    sys.path.append(site)
    from skl2onnx import to_onnx
    from sklearn.ensemble import GradientBoostingClassifier

    generator = np.random.default_rng(1)
    rows_BF = generator.standard_normal((BOOSTED_ROWS, BOOSTED_COLUMNS)).astype(np.float32)
    logit_B = np.sin(rows_BF).sum(axis=1) + rows_BF[:, 0] * rows_BF[:, 1]
    label_B = generator.random(BOOSTED_ROWS) < 1 / (1 + np.exp(-logit_B))
    # Not its histogram form: skl2onnx 1.20 writes attributes of that which onnx 1.23.2 refuses. The trees are alike.
    model = GradientBoostingClassifier(n_estimators=TREES, max_leaf_nodes=LEAVES, max_depth=None, subsample=0.3)
    model.fit(rows_BF, label_B)
    graph = to_onnx(model, rows_BF[:1], options={"zipmap": False}, target_opset={"": OPSET, "ai.onnx.ml": 3})
    graph.graph.input[0].name = "rows"
    for node in graph.graph.node:
        node.input[:] = ["rows" if name == "X" else name for name in node.input]
    onnx.save(graph, out)
    return {"trees": TREES}


def install(site: Path) -> Path:
    """Install the peers' packages into a folder of their own, unless they are there.

    Raises:
        ConfigError: they cannot be installed; says why.
    """
    marker, wanted = site / ".ready", REQUIREMENTS.read_text(encoding="utf-8")
    if marker.is_file() and marker.read_text(encoding="utf-8") == wanted:
        return site
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), "--upgrade"]
    done = subprocess.run([*command, "-r", str(REQUIREMENTS)], capture_output=True, text=True)
    if done.returncode:
        said = "\n".join(done.stderr.splitlines()[-5:])
        raise ConfigError(f"{site}: the peers of {REQUIREMENTS.relative_to(ROOT)} cannot be installed:\n{said}")
    marker.write_text(wanted, encoding="utf-8")
    return site


class _Probability(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.model(*inputs))


def _export(model: nn.Module, examples: tuple[torch.Tensor, ...], names: tuple[str, ...], out: str) -> None:
    rows = torch.export.Dim("rows")
    with quiet_exporter():
        torch.onnx.export(
            model,
            examples,
            out,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(names),
            output_names=["score"],
            dynamic_shapes=(tuple({0: rows} for _ in examples),),
            verbose=False,
        )
