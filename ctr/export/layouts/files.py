"""Copies of a bundle's files, compared with the hashes of its manifest."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from ctr.serving.bundle import MANIFEST, Bundle
from features.errors import DataError
from features.store.feature_set import sha256_of


def copy_files(bundle: Bundle, names: Iterable[str], folder: Path) -> None:
    """Copy files of a bundle below `folder`: as files of their own, which onnx's checker wants of tables.

    Raises:
        DataError: a copy is not what the manifest says.
    """
    for name in names:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.path / name, target)
        if sha256_of(target) != bundle.manifest.files[name].sha256:
            raise DataError(f"{bundle.path / name}: its copy is not what was exported. Publish it again.")


def require_copies(bundle: Bundle, names: Iterable[str], folder: Path) -> None:
    """Raise DataError where one of these files of a bundle is not below `folder` as it is in the bundle."""
    for name in names:
        target = folder / name
        if not target.is_file() or sha256_of(target) != bundle.manifest.files[name].sha256:
            raise DataError(f"{target}: is not what was published. Remove what lies there, and publish again.")


def copy_bundle(bundle: Bundle, folder: Path) -> None:
    """Copy a whole bundle. Raises DataError as `copy_files`."""
    copy_files(bundle, bundle.manifest.files, folder)
    shutil.copyfile(bundle.path / MANIFEST, folder / MANIFEST)
