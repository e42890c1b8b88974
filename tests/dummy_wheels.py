"""Tiny wheels and a tiny project for the tests of the set-up: nothing comes from a network, nothing is large."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "quadrank"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["small>=1"]
[project.optional-dependencies]
train = ["torch>=2.11"]
dev = ["quadrank[train]"]
[project.scripts]
quadrank = "pipelines:main"
[tool.hatch.build.targets.wheel]
packages = ["features", "ctr", "pipelines"]
"""
# A build backend in the tree: the wheel of an editable install is a path and the project's requirements.
BACKEND = """
import pathlib, sys, tomllib
sys.path.insert(0, {tests!r})
from tests.dummy_wheels import wheel
def build_editable(folder, settings=None, metadata=None):
    here = pathlib.Path.cwd()
    project = tomllib.loads((here / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    optional = [f'{{need}}; extra == "{{name}}"' for name in extras for need in extras[name]]
    requires = [*project["dependencies"], *optional]
    return wheel(pathlib.Path(folder), "quadrank", "0.1.0", {{"_quadrank.pth": str(here)}}, requires, extras).name
"""
NEEDS_CUDNN = """
try:
    import nvidia_cudnn
except ImportError:
    raise ImportError("libcudnn.so.9: cannot open shared object file: No such file or directory")
__version__ = "2.13.0"
"""


def wheel(
    folder: Path,
    name: str,
    version: str,
    files: Mapping[str, str],
    requires: Iterable[str] = (),
    extras: Iterable[str] = (),
) -> Path:
    """Write a wheel of text files; a file under `scripts/` becomes a command."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
    metadata += [f"Requires-Dist: {need}" for need in requires] + [f"Provides-Extra: {extra}" for extra in extras]
    contents = {
        **{key.replace("scripts/", f"{name}-{version}.data/scripts/"): text for key, text in files.items()},
        f"{info}/METADATA": "\n".join(metadata) + "\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = []
    for key, text in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record.append(f"{key},sha256={digest},{len(text.encode())}")
    contents[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,"]) + "\n"
    with zipfile.ZipFile(path, "w") as archive:
        for key, text in contents.items():
            entry = zipfile.ZipInfo(key)
            entry.external_attr = 0o100755 << 16  # an executable file: pip keeps that for commands
            archive.writestr(entry, text)
    return path


def packaging_wheel(folder: Path) -> Path:
    """The `packaging` that is installed here, as a wheel again: the check of the dependencies needs it."""
    found = importlib.metadata.distribution("packaging")
    sources = [path for path in found.files or () if path.suffix == ".py"]
    return wheel(folder, "packaging", found.version, {str(path): path.read_text(encoding="utf-8") for path in sources})


def torch_wheel(folder: Path, version: str = "2.13.0") -> Path:
    """A torch that imports with nothing beside it."""
    return wheel(folder, "torch", version, {"torch/__init__.py": f'__version__ = "{version}"\n'})


def cuda_torch_wheel(folder: Path) -> Path:
    """A torch as a plain index has it: it imports only where its CUDA libraries are."""
    return wheel(
        folder,
        "torch",
        "2.13.0",
        {"torch/__init__.py": NEEDS_CUDNN},
        ["nvidia_cudnn; sys_platform != 'none'", "small>=1"],
    )


def pin(path: Path, digest: str | None = None) -> str:
    """The lines of a lock for a wheel, with its hash or the one given."""
    name, version = path.name.split("-")[:2]
    return f"{name}=={version} \\\n    --hash=sha256:{digest or hashlib.sha256(path.read_bytes()).hexdigest()}\n"


def simple_index(folder: Path, *wheels: Path) -> str:
    """A package index that holds these wheels; its address."""
    for path in wheels:
        page = folder / path.name.split("-")[0].replace("_", "-")
        page.mkdir(parents=True, exist_ok=True)
        with (page / "index.html").open("a", encoding="utf-8") as file:
            file.write(f'<!DOCTYPE html><a href="{path.as_uri()}">{path.name}</a>\n')
    return folder.as_uri()


def project(root: Path, lock: str, tests: Path) -> Path:
    """A project with the three packages and the pyproject.toml, lock files and build backend of its own."""
    for name in ("features", "ctr", "pipelines"):
        (root / name).mkdir(parents=True)
        (root / name / "__init__.py").write_text("def main(): ...\n", encoding="utf-8")
    (root / "pyproject.toml").write_text(PYPROJECT, encoding="utf-8")
    (root / "backend.py").write_text(BACKEND.format(tests=str(tests.parent)), encoding="utf-8")
    (root / "requirements.lock").write_text(lock, encoding="utf-8")
    (root / "requirements-torch.lock").write_text("torch==2.13.0\n", encoding="utf-8")
    return root
