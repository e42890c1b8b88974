"""Of every test: the environment of commands, how hypothesis draws, and which files come first."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

from pipelines.cli.threads import sleep_soon

# Under `make test PYTHON=…` a make that a test starts would take over flags and variables of the outer one.
OF_MAKE = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "PYTHON", "VENV", "TORCH_INDEX", "SET", "ROOT", "WHY")
HERE = Path(__file__).parent
for name in OF_MAKE:
    os.environ.pop(name, None)
sleep_soon()  # two workers share the cores: threads that wait awake take a third of the time

# Hypothesis judges what the code does, never how fast a busy machine draws examples.
# In a fresh clone hypothesis first builds its Unicode tables, a second or more inside whichever test draws text first.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# `make mutants`: the same examples for each mutant, so that a score can be repeated, and none are made smaller.
settings.register_profile(
    "mutants",
    settings.get_profile("any machine"),
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
)
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole jobs first: with a file a worker (`--dist loadfile`), what ends last is then short."""
    items.sort(key=lambda item: "pipelines" not in item.path.relative_to(HERE).parts)


def pytest_runtest_setup() -> None:
    """The exporter's table of operators, a fifth of a small export, is made once a process and not at each export."""
    exporter = sys.modules.get("torch.onnx._internal.exporter._registration")
    if exporter is not None and not hasattr(exporter.ONNXRegistry.from_torchlib, "cache_info"):
        exporter.ONNXRegistry.from_torchlib = staticmethod(cache(exporter.ONNXRegistry.from_torchlib))
