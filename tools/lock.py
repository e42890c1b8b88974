"""Resolve requirements.lock from pyproject.toml, for every Python and platform: what `make lock` runs.

    python -m tools.lock --venv .venv

torch itself is left out of the resolution, and with it the CUDA packages that it would bring; what its CPU build
imports is named here. Versions that the lock pins already stay while they fit: delete the file for new ones.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

from tools.installers import InstallError, pip_settings, run, uv_environment

NEEDS_OF_TORCH = ("filelock", "fsspec", "jinja2", "networkx", "setuptools", "sympy", "typing-extensions")
# A machine's further indexes and folders of wheels may lack the wheels of other Pythons and platforms: only its main
# index is asked, so that every machine writes the same file.
HANDED_ON = ("index-url", "trusted-host", "cert", "client-cert", "proxy", "timeout")


def lock(root: Path, venv: Path) -> None:
    """Write requirements.lock. Raises InstallError where the dependencies cannot be resolved."""
    oldest = re.search(r'requires-python = ">=([\d.]+)', (root / "pyproject.toml").read_text(encoding="utf-8"))
    if not oldest:
        raise InstallError('pyproject.toml names no requires-python = ">=…"')
    settings = pip_settings(venv / "bin/python")
    with tempfile.TemporaryDirectory() as folder:
        left_out, needs = Path(folder, "left-out.txt"), Path(folder, "needs-of-torch.txt")
        left_out.write_text('torch ; sys_platform == "none"\n', encoding="utf-8")
        needs.write_text("\n".join(NEEDS_OF_TORCH), encoding="utf-8")
        run(
            [
                *(venv / "bin/uv", "pip", "compile", "--quiet", root / "pyproject.toml", needs, "--all-extras"),
                *("--universal", "--python-version", oldest[1], "--fork-strategy", "fewest", "--generate-hashes"),
                *("--override", left_out, "--no-emit-package", "torch", "--no-annotate"),
                *("--custom-compile-command", "make lock", "--output-file", root / "requirements.lock"),
            ],
            uv_environment({name: value for name, value in settings.items() if name in HANDED_ON}),
        )


def main() -> int:
    """Read the command line; 0 if the lock was written."""
    parser = argparse.ArgumentParser(description="Resolve requirements.lock from pyproject.toml.")
    parser.add_argument("--venv", type=Path, default=Path(".venv"), help="Environment that holds uv.")
    try:
        lock(Path.cwd(), parser.parse_args().venv.resolve())
    except InstallError as error:
        print(f"requirements.lock stays as it was: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
