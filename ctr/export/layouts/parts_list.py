"""The packages that serve a bundle, as a software bill of materials: CycloneDX 1.6, of what is installed here.

It lists what `pip install quadrank` brings: what a ranking server needs, and nothing of training.
"""

from __future__ import annotations

import json
import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

OURS = "quadrank"
SBOM = "sbom.json"


def write_parts_list(path: Path) -> None:
    """Write the list. The same packages give the same bytes: it has no time and no serial number."""
    found = serving_set()
    ours = _component(found.pop(OURS)) if OURS in found else {"type": "application", "name": OURS}
    content = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {**ours, "type": "application"}},
        "components": [_component(found[name]) for name in sorted(found)],
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def serving_set() -> dict[str, Distribution]:
    """QuadRank and all that it needs without extras, near or far, by canonical name; empty if it is not installed."""
    found: dict[str, Distribution] = {}
    waiting = [OURS]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue  # of another platform, say
        needed = [Requirement(text) for text in found[name].requires or []]
        waiting += [one.name for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    return found


def licence_of(package: Distribution) -> str:
    """A package's licence as its metadata names it: the SPDX expression, else classifiers, else the first line."""
    described = package.metadata
    if expressions := described.get_all("License-Expression"):
        return str(expressions[0])
    classifiers = [text for text in described.get_all("Classifier") or [] if text.startswith("License ::")]
    if named := [text.rpartition(" :: ")[2] for text in classifiers if text.count(" :: ") > 1]:
        return "; ".join(dict.fromkeys(named))
    first = "".join(described.get_all("License") or []).strip().partition("\n")[0]
    return re.sub(r"\s+", " ", first)[:60] or "not stated"


def _component(package: Distribution) -> dict[str, Any]:
    name, version = canonicalize_name(package.metadata["Name"]), package.version
    return {
        "type": "library",
        "name": name,
        "version": version,
        "purl": f"pkg:pypi/{name}@{version}",
        "licenses": [{"license": {"name": licence_of(package)}}],
    }
