"""List the licence of every package that the lock files pin, by the metadata of what is installed: docs/licences.md.

    .venv/bin/python -m tools.licences

Packages of another platform are listed without one.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from ctr.export.layouts.parts_list import licence_of, serving_set

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "licences.md"
LOCKS = ("requirements.lock", "requirements-torch.lock")
PINNED = re.compile(r"^([a-z0-9][a-z0-9._-]*)==", re.MULTILINE | re.IGNORECASE)
HEAD = """# Licences

QuadRank itself is Apache-2.0. Each package that the lock files pin has the licence that its own metadata names.
**serving** is what `pip install quadrank` brings, and what `sbom.json` in each bundle lists with versions.
Written by `.venv/bin/python -m tools.licences`.

| package | licence | |
|---|---|---|
"""


def pinned() -> list[str]:
    """Names of all packages of the lock files, sorted."""
    text = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in LOCKS)
    return sorted({name.lower().replace("_", "-").replace(".", "-") for name in PINNED.findall(text)})


def page() -> str:
    """The page as it should be here."""
    serving = serving_set()
    lines = []
    for name in pinned():
        try:
            licence = licence_of(distribution(name)).replace("|", "/")
        except PackageNotFoundError:
            licence = "not installed here"
        lines.append(f"| {name} | {licence} | {'serving' if name in serving else ''} |\n")
    return HEAD + "".join(lines)


def main() -> int:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
