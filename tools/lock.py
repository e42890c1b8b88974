"""Resolve requirements.lock from pyproject.toml, for every Python and platform: what `make lock` runs.

    python -m tools.lock [--upgrade]

No environment of the project is needed, which cannot be made again before the lock fits pyproject.toml: the uv that the
lock pins is installed into a temporary one. torch itself is left out of the resolution, and with it the CUDA packages
that it would bring; what its CPU build imports is named here. Versions that the lock pins already stay while they fit,
but with --upgrade.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

from tools.installers import Installer, InstallError, pip_settings, run, uv_environment

NEEDS_OF_TORCH = ("filelock", "fsspec", "jinja2", "networkx", "setuptools", "sympy", "typing-extensions")
# A machine's further indexes and folders of wheels may lack the wheels of other Pythons and platforms: only its main
# index is asked, so that every machine writes the same file.
HANDED_ON = ("index-url", "trusted-host", "cert", "client-cert", "proxy", "timeout")


def lock(options: list[str]) -> None:
    """Write requirements.lock of the current folder, with more options for uv.

    Raises:
        InstallError: uv is not to be had, or the dependencies cannot be resolved.
    """
    oldest = re.search(r'requires-python = ">=([\d.]+)', Path("pyproject.toml").read_text(encoding="utf-8"))
    if not oldest:
        raise InstallError('pyproject.toml names no requires-python = ">=…"')
    with tempfile.TemporaryDirectory() as folder:
        run([sys.executable, "-m", "venv", Path(folder, "venv")])
        python = Path(folder, "venv/bin/python")
        installer = Installer(python, pip_settings(python))
        installer.fetch_uv(Path("requirements.lock"))
        if not installer.uv:
            raise InstallError(installer.warnings[0])
        left_out, needs = Path(folder, "left-out.txt"), Path(folder, "needs-of-torch.txt")
        left_out.write_text('torch ; sys_platform == "none"\n', encoding="utf-8")
        needs.write_text("\n".join(NEEDS_OF_TORCH), encoding="utf-8")
        compile_all = [str(installer.uv), "pip", "compile", "--quiet", "pyproject.toml", str(needs), "--all-extras"]
        everywhere = ["--universal", "--python-version", oldest[1], "--fork-strategy", "fewest", "--generate-hashes"]
        without_torch = ["--override", str(left_out), "--no-emit-package", "torch", "--no-annotate"]
        written = ["--custom-compile-command", "make lock", "--output-file", "requirements.lock"]
        run(
            [*compile_all, *everywhere, *without_torch, *written, *options],
            uv_environment({name: value for name, value in installer.settings.items() if name in HANDED_ON}),
        )


def main() -> int:
    """0 if the lock was written."""
    try:
        lock(sys.argv[1:])
    except InstallError as error:
        print(f"requirements.lock stays as it was: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
