"""What `benchmarks.bench_features` measures, each a function that runs in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.harness.measured import ROOT
from features.build.build import build_feature_set
from features.contract.contract import load_contract

CONTRACT = ROOT / "benchmarks" / "inputs" / "feature_build.yaml"
MOST_ITEMS = 50_000  # of the simulated catalogue
MAX_LEN = 64  # of histories, as in the published experiments of the model


def simulate(out: str, rows: int, users: int, items: int) -> float:
    """Write the raw log; returns its click rate."""
    from features.simulator.simulate import simulate as write

    return write(Path(out), rows=rows, users=users, items=items, seed=1).click_rate


def build(raw: str, out: str, max_len: int) -> dict[str, Any]:
    """Build the feature set of a simulated log; returns its folder and the seconds of each stage."""
    target = Path(out)
    target.mkdir(parents=True, exist_ok=True)
    contract = load_contract(CONTRACT, {"history": {"max_len": max_len}}, root=raw)
    built = build_feature_set(contract, target).feature_set
    return {"path": str(built.path), "stages": built.manifest.seconds}
