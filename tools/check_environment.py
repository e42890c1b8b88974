"""Import torch and our packages, and look for unmet dependencies: the last step of the set-up.

    .venv/bin/python tools/check_environment.py FOLDER_OF_PYPROJECT

Run by the environment's own Python. Only what quadrank needs, with all extras, is looked at: a base Python that lends
its torch may hold other packages that do not fit one another.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

# A torch that imports has of these what it needs: a CPU build nothing, a GPU machine's own build what the system holds.
LIBRARIES_OF_TORCH = re.compile(r"nvidia-|cuda-|triton|pytorch-triton")


def unmet(root: str) -> list[str]:
    """Sentences about each dependency of a distribution, near or far, that is not installed or too old or new."""
    problems: dict[str, None] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(root, extra) for extra in ("", *distribution(root).metadata.get_all("Provides-Extra", []))]
    while waiting:
        pair = waiting.pop()
        if pair in seen:
            continue
        seen.add(pair)
        name, extra = pair
        for text in distribution(name).requires or []:
            needed = Requirement(text)
            if needed.marker and not needed.marker.evaluate({"extra": extra}):
                continue
            if name == "torch" and LIBRARIES_OF_TORCH.match(canonicalize_name(needed.name)):
                continue
            try:
                found = distribution(needed.name)
            except PackageNotFoundError:
                problems[f"{name} needs {needed.name}, which is not installed"] = None
                continue
            if not needed.specifier.contains(version_of(found), prereleases=True):
                problems[f"{name} needs {needed.name}{needed.specifier}, and {found.version} is installed"] = None
            waiting += [(canonicalize_name(needed.name), part) for part in ("", *needed.extras)]
    return list(problems)


def version_of(found: Distribution) -> str:
    """A version as it is compared: a container's own torch, 2.11.0a0+nv, counts as 2.11.0."""
    return Version(found.version).base_version if found.metadata["Name"] == "torch" else found.version


def import_all(packages: list[str]) -> None:
    """Import torch and every module of the packages. Raises what an import raises."""
    for name in ["torch", *packages]:
        module = importlib.import_module(name)
        if name in packages:
            for found in pkgutil.walk_packages(module.__path__, f"{name}."):
                importlib.import_module(found.name)


def main() -> int:
    """0 if everything imports and no dependency is unmet; otherwise the problems are written to standard error."""
    with Path(sys.argv[1], "pyproject.toml").open("rb") as file:
        settings = tomllib.load(file)
    import_all(settings["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])
    problems = unmet(settings["project"]["name"])
    print("\n".join(problems), file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
