"""What only a checkout of the project has: `benchmarks/`, which is no part of the installed package."""

from __future__ import annotations

import sys
from pathlib import Path

from features.errors import ConfigError
from pipelines.revision import ROOT


def checkout(module: str, wanted_by: str) -> Path:
    """The checkout's folder, with `benchmarks` made importable: a console script does not have it on its path.

    Args:
        module: file in `benchmarks/` that is needed, without `.py`.
        wanted_by: what the user asked for, for the message.

    Raises:
        ConfigError: this is no checkout, or it has no such module.
    """
    if not (ROOT / "benchmarks" / f"{module}.py").is_file():
        raise ConfigError(
            f"{wanted_by}: needs {ROOT / 'benchmarks' / module}.py, which is not there. Benchmarks and peers are part "
            "of a checkout, not of the installed package: clone the project, run `make setup`, and use its "
            ".venv/bin/quadrank."
        )
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return ROOT
