"""The parts of a windowed build: one a day and shard; days with unchanged input come from the version before."""

from __future__ import annotations

import os
import shutil
from datetime import date
from pathlib import Path

import numpy as np

from features.build.history_tail import TAILS
from features.build.parts import Part, window_of
from features.build.plan import Plan
from features.calendar import DAY, first_instant
from features.store.feature_set import FileEntry, PartEntry, part_file, write_arrow


def write_days(part: Part, number: int, plan: Plan, folder: Path) -> list[PartEntry]:
    """Write the part's new days, each with exactly the events that its histories need."""
    entries = []
    day_R = part.rows["time"] // DAY
    order = np.argsort(day_R, kind="stable")
    bounds = np.searchsorted(day_R[order], [*(first_instant(day) // DAY for day in plan.new), np.iinfo(np.int64).max])
    for day, start, stop in zip(plan.new, bounds, bounds[1:], strict=False):
        chosen = {name: values[order[start:stop]] for name, values in part.rows.items()}
        name = f"{day}/{part_file(number)}"
        rows, events = _with_own_events(chosen, part.events)
        write_arrow(folder / "rows" / name, rows)
        write_arrow(folder / "events" / name, events)
        entries.append(
            PartEntry(
                split=plan.split_of(day),
                rows=f"rows/{name}",
                events=f"events/{name}",
                window=window_of(rows),
                day=day.isoformat(),
            )
        )
    return entries


def take_kept(plan: Plan, staging: Path) -> tuple[list[PartEntry], dict[str, FileEntry]]:
    """Link the kept days' files into the new version; where no day is new, those of the history tails too.

    Returns:
        Their parts, and the hashes of all linked files, which need no new look.
    """
    parts: list[PartEntry] = []
    names: list[str] = []
    known: dict[str, FileEntry] = {}
    if plan.prior is None:
        return parts, known
    kept = {day.isoformat() for day in plan.kept}
    for part in plan.prior.manifest.parts:
        if part.day not in kept:
            continue
        parts.append(part.model_copy(update={"split": plan.split_of(date.fromisoformat(str(part.day)))}))
        names += [part.rows, part.events]
    if plan.has_tails and not plan.new:
        names += [name for name in plan.prior.manifest.files if Path(name).parent.name == TAILS]
    for name in names:
        _link(plan.prior.path / name, staging / name)
        known[name] = plan.prior.manifest.files[name]
    return parts, known


def _with_own_events(
    rows: dict[str, np.ndarray], events: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Keep the events that some row's history holds, and let the rows point into them.

    A history is the events from `start = end - length` to `end`. All of them are kept, so it stays in one piece: its
    new end is the number of kept events before its old one, and its length does not change.
    """
    end_R, length_R = rows["history_end"], rows["history_len"]
    start_R, count = end_R - length_R, len(events["item"])
    # Histories that hold each event: those that have started less those that have ended.
    holding = np.cumsum(np.bincount(start_R, minlength=count + 1) - np.bincount(end_R, minlength=count + 1))
    is_kept = holding[:-1] > 0
    kept_before = np.concatenate([[0], np.cumsum(is_kept)])
    assert (kept_before[end_R] - kept_before[start_R] == length_R).all(), "a history lost an event"
    own = {name: values[is_kept] for name, values in events.items()}
    return rows | {"history_end": kept_before[end_R]}, own


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
