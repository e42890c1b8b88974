"""Show the owner and terms of a public data set, and fetch it if the user accepts them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from rich.console import Console

from features.datasets.archives import fetch_archive
from features.datasets.public import Dataset, find_dataset
from features.progress import progress


def download(name: str, out: Path, agreed: bool, console: Console) -> dict[str, Any]:
    """Show owner and terms; fetch and unpack below `out` if `agreed` and the owner lets anyone.

    Args:
        name: of the data set.
        out: folder to unpack into.
        agreed: the user has read and accepts the terms (`--yes`).
        console: where messages are printed.

    Returns:
        The JSON summary; `folder` is None where nothing was fetched.

    Raises:
        ConfigError: no such data set.
        DataError: the download failed or is not what was expected.
    """
    dataset = find_dataset(name)
    console.print(describe(dataset))
    summary = {"exit_code": 0, "name": name, "contract": dataset.contract, "page": dataset.page}
    if dataset.archive is None:
        return {"status": "by hand", **summary, "folder": None}
    if not agreed:
        command = shlex.join(["quadrank", "download", name, "--yes", "--out", str(out)])
        console.print(f"\nIf you accept the terms: {command}")
        return {"status": "terms shown", **summary, "folder": None}
    folder = fetch_archive(dataset.archive, out, progress)
    command = shlex.join(["quadrank", "features", "--data", dataset.contract, "--root", str(folder)])
    console.print(f"\nin {folder}; now: {command}")
    return {"status": "done", **summary, "folder": str(folder)}


def describe(dataset: Dataset) -> str:
    """For people: a few lines, and the steps by hand where there are any."""
    lines = [
        dataset.title,
        f"  owner     {dataset.owner}",
        f"  terms     {dataset.terms}",
        f"  page      {dataset.page}",
        f"  size      {dataset.size}",
        f"  contract  {dataset.contract}",
    ]
    if dataset.archive is not None:
        lines.append(f"  address   {dataset.archive.url}")
    lines += [f"  {number}. {step}" for number, step in enumerate(dataset.steps, start=1)]
    return "\n".join(lines)
