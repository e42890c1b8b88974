"""Sizes of the models that are measured: those of the paper, or those that a preset ships with."""

from __future__ import annotations

from typing import Any

from benchmarks.harness.measured import ROOT

PAPER = ROOT / "conf" / "model" / "qin_paper.yaml"
DEFAULTS = ROOT / "conf" / "train.yaml"
SIZES = ("embedding_dim", "vector_dim", "attention_dim", "layers", "rows")


def shipped_sizes(preset: str) -> dict[str, Any]:
    """Widths, layers and rows of a preset of conf/model, as settings over those of the paper."""
    from ctr.config import load_preset

    model = load_preset(ROOT / "conf" / "model" / f"{preset}.yaml", DEFAULTS, {}).model
    return {name: getattr(model, name) for name in SIZES}
