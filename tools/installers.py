"""Installing into a virtual environment: with uv, and with pip where uv cannot be installed or fails.

uv does not read pip's configuration. What pip is told about indexes, certificates, proxies and constraints, by file or
by PIP_* variables, is read from `pip config list` and handed to uv in uv's own variables; UV_* variables that the user
has set win. Indexes go through the environment and not the command line, so that a password in an address is not seen
in the list of processes.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SHOWN_LINES = 12
# What says where packages come from. TORCH_INDEX replaces all four.
SOURCES = ("index-url", "extra-index-url", "find-links", "no-index")
# uv's variable for a pip setting, and what stands between several values there.
UV_VARIABLES = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "client-cert": ("SSL_CLIENT_CERT", " "),
    "proxy": ("ALL_PROXY", " "),
    "timeout": ("UV_HTTP_TIMEOUT", " "),
}


class InstallError(Exception):
    """An installation failed; the text is the installer's own account of it."""


def run(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> str:
    """Standard output of a command. Raises InstallError, with the command's own account, if it does not exit with 0."""
    try:
        done = subprocess.run(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, **(environment or {})},
        )
    except OSError as error:
        raise InstallError(str(error)) from error
    if done.returncode:
        raise InstallError(cause_in(done.stderr or done.stdout) or f"exit code {done.returncode}")
    return done.stdout


def cause_in(output: str) -> str:
    """The lines of an output from the first that says `error` on; without such a line, the last ones."""
    lines = [line.rstrip() for line in output.splitlines() if line.strip()]
    first = next((i for i, line in enumerate(lines) if line.lower().startswith("error")), None)
    return "\n".join(lines[first : first + SHOWN_LINES] if first is not None else lines[-SHOWN_LINES:])


def pip_settings(python: Path) -> dict[str, str]:
    """What pip is told: files under [global], over them those under [install], over both the PIP_* variables.

    Like pip, an empty value counts as not given.
    """
    found: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in run([python, "-m", "pip", "config", "list"]).splitlines():
        match = re.fullmatch(r"(global|install|:env:)\.([\w-]+)=(.*)", line)
        if match and (value := ast.literal_eval(match[3]).strip()):
            found[match[1]][match[2].replace("default-timeout", "timeout")] = value
    return found["global"] | found["install"] | found[":env:"]


def from_index(settings: Mapping[str, str], index: str) -> dict[str, str]:
    """The settings with one index as the only source of packages."""
    return {name: value for name, value in settings.items() if name not in SOURCES} | {"index-url": index}


def uv_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """pip's settings in uv's variables. pip takes the best version of all indexes alike, so uv does too."""
    given = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    for name, (variable, between) in UV_VARIABLES.items():
        if name in settings:
            given[variable] = between.join(settings[name].split())
    return given


def pip_environment(settings: Mapping[str, str]) -> dict[str, str]:
    """The settings as PIP_* variables that stand alone: no file and no other variable of a source adds to them."""
    sources = {f"PIP_{name.upper().replace('-', '_')}": "" for name in SOURCES}
    given = {f"PIP_{name.upper().replace('-', '_')}": value for name, value in settings.items()}
    return sources | given | {"PIP_CONFIG_FILE": os.devnull}


def pinned(lock: str, package: str) -> str:
    """The lines of a lock that pin one package, with its hashes; empty if it is not there."""
    match = re.search(rf"^{re.escape(package)}==.*?(?=^\S|\Z)", lock, re.MULTILINE | re.DOTALL)
    return match[0] if match else ""


def pins(lock: str) -> str:
    """A lock without its hashes: one `name==version` with its marker a line."""
    return "\n".join(line.rstrip(" \\") for line in lock.splitlines() if re.match(r"[A-Za-z0-9]", line)) + "\n"


@dataclass
class Installer:
    """Installs into the environment of one interpreter.

    Args:
        python: Interpreter of the environment; pip must be there.
        settings: What pip is told, from `pip_settings`.
        uv: The uv to use first; None: pip alone.
        warnings: What went another way than wanted, for the user to read.
    """

    python: Path
    settings: Mapping[str, str]
    uv: Path | None = None
    warnings: list[str] = field(default_factory=list)

    def fetch_uv(self, lock: Path) -> None:
        """Install the uv that the lock pins, its hash checked; on failure pip remains, with a warning."""
        requirement = pinned(lock.read_text(encoding="utf-8"), "uv")
        uv = self.python.parent / "uv"
        with tempfile.TemporaryDirectory() as folder:
            needed = Path(folder, "uv.txt")
            needed.write_text(requirement, encoding="utf-8")
            try:
                if not requirement:
                    raise InstallError(f"{lock.name} does not pin it")
                self._pip(["--no-deps", "--require-hashes", "-r", str(needed)], "")
                run([uv, "--version"])
            except InstallError as error:
                self.warnings.append(f"uv cannot be installed, pip does its work more slowly: {error}")
            else:
                self.uv = uv

    def install(self, *arguments: str, index: str = "") -> None:
        """Install what the arguments say, which mean the same to uv and pip.

        Args:
            arguments: Options and requirements of `pip install`.
            index: The only place to take packages from; empty: where pip's settings say.

        Raises:
            InstallError: uv failed or is not there, and then pip failed.
        """
        if self.uv:
            try:
                self._uv(self.uv, arguments, index)
                return
            except InstallError as error:
                self.warnings.append(f"uv failed, pip tries the same: {error}")
        self._pip(arguments, index)

    def _uv(self, uv: Path, arguments: Sequence[str], index: str) -> None:
        settings = from_index(self.settings, index) if index else self.settings
        environment = uv_environment(settings)
        if index:
            environment |= {"UV_INDEX": "", "UV_EXTRA_INDEX_URL": "", "UV_FIND_LINKS": ""}
        else:
            environment |= {name: os.environ[name] for name in environment if name in os.environ}
        options = ["--no-index"] if settings.get("no-index", "0").lower() in ("1", "true", "yes", "on") else []
        # Beside hashes uv takes no constraints: there every version is pinned anyway.
        constraints = [] if "--require-hashes" in arguments else settings.get("constraint", "").split()
        options += [word for path in constraints for word in ("--constraints", path)]
        command: list[str | Path] = [uv, "pip", "install", "--quiet", "--python", self.python, *options, *arguments]
        run(command, {**environment, "UV_SYSTEM_PYTHON": "0"})

    def _pip(self, arguments: Sequence[str], index: str) -> None:
        environment = pip_environment(from_index(self.settings, index)) if index else {}
        environment |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_USER": "0", "PIP_NO_INPUT": "1"}
        run([self.python, "-m", "pip", "install", "--quiet", *arguments], environment)
