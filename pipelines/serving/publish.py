"""`quadrank publish`: a bundle in the form that another program takes, loaded back and replayed before it appears."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from ctr.serving.bundle import MANIFEST, Bundle, open_bundle, publish
from ctr.serving.ranker import Ranker
from features.errors import ConfigError, NumericalError
from features.store.pointer import NEWEST, point_at

FOLDER, TRITON, MLFLOW = "folder", "triton", "mlflow"
LAYOUTS = (FOLDER, TRITON, MLFLOW)
MARKS = {TRITON: "config.pbtxt", MLFLOW: "MLmodel"}  # what a layout has, and a bundle has not
Write = Callable[[Bundle, Path], float]


def publish_bundle(bundle: Path, to: Path, layout: str, console: Console) -> dict[str, Any]:
    """Write a bundle in one of the layouts, or leave nothing there; returns what was done, for JSON.

    `to` is what the other program is pointed at: for `folder` a folder of versions, whose `NEWEST` then names the copy;
    for `triton` a model repository, which gets a model of the contract's name; for `mlflow` the model's own folder.

    Args:
        bundle: its folder, or a pointer to it.
        to: see above; what it gets must not be there yet, but for what the same command wrote, as one leaves it that
            was killed before it moved `NEWEST` or told anyone. It is loaded and replayed, and stays.
        layout: one of `LAYOUTS`.
        console: where messages are printed.

    Raises:
        ConfigError: no such layout, something is there already, or it lies below a file or in a bundle.
        DataError: not a bundle, or a changed one.
        NumericalError: what was written does not give the golden requests their scores.
    """
    started = time.perf_counter()
    if layout not in LAYOUTS:
        raise ConfigError(f"--layout {layout}: choose one of {', '.join(LAYOUTS)}.")
    opened = open_bundle(bundle)
    names = {FOLDER: opened.path.name, TRITON: opened.manifest.name, MLFLOW: ""}
    out = to / names[layout]
    difference = _replayed_copy(opened, out, layout)
    if difference is None:
        difference = _written(opened, out, layout)
    if layout == FOLDER:
        point_at(to, out.name, NEWEST)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    version = opened.manifest.model_version
    console.print(
        f"{out}: {version} as {layout}, {size / 2**20:.1f} MiB; loaded back, golden requests within "
        f"{difference:.1e} in logits"
    )
    return {
        "layout": layout,
        "published": str(out),
        "model_version": version,
        "max_logit_difference": difference,
        "bytes": size,
        "seconds": time.perf_counter() - started,
    }


def _written(bundle: Bundle, out: Path, layout: str) -> float:
    """Write the layout at `out`; the largest `logit_difference` of its replay."""
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise ConfigError(f"{out}: is there already. Name another folder with --to, or remove this one yourself.")
    write = _writer(layout)
    with publish(out) as folder:
        try:
            return write(bundle, folder)
        except NumericalError as error:
            raise NumericalError(f"{out}: not published, since what was written scores otherwise. {error}") from None


def _replayed_copy(bundle: Bundle, out: Path, layout: str) -> float | None:
    """The largest `logit_difference` of what was published of the bundle already; None where nothing of it was."""
    if out.is_symlink() or not (out / MANIFEST).is_file() or out.resolve() == bundle.path.resolve():
        return None
    if layout == FOLDER:
        copy = open_bundle(out)
        return Ranker.of(copy).replay() if copy.manifest == bundle.manifest else None
    # A bundle has the same manifest, and is none of these layouts.
    if not (out / MARKS[layout]).exists() or (out / MANIFEST).read_bytes() != (bundle.path / MANIFEST).read_bytes():
        return None
    return _replayer(layout)(bundle, out)


def _replayer(layout: str) -> Write:
    if layout == TRITON:
        from ctr.export.layouts.triton import replay_triton

        return replay_triton
    from ctr.reporting.mlflow_flavor import replay_flavor

    return replay_flavor


def _writer(layout: str) -> Write:
    """What fills the folder; only the layouts that edit the graph need packages of the extra `train`."""
    if layout == TRITON:
        from ctr.export.layouts.triton import write_triton

        return write_triton
    if layout == MLFLOW:
        from ctr.reporting.mlflow_flavor import write_flavor

        return write_flavor
    from ctr.export.layouts.folder import write_copy

    return write_copy
