"""The preset that training is measured with: the paper's sizes."""

from __future__ import annotations

from benchmarks.harness.measured import ROOT

PAPER = ROOT / "conf" / "model" / "qin_paper.yaml"
DEFAULTS = ROOT / "conf" / "train.yaml"
