"""The trials of a study: each variant with each seed, in worker processes. A stopped study continues.

comparisons/<study>/<variant>/seed-<k>/   model.safetensors, curve, scores-<split>.npy, trial.json (written last)
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ctr.config import Preset
from ctr.data.columns import column
from ctr.data.feature_tables import FrozenTables, frozen_tables, order_among_real
from ctr.training.allocator import keep_freed_memory
from features.errors import ConfigError, DataError, TryAgainError
from features.progress import progress, silent
from features.store.atomic import replace_file, write_text
from features.store.feature_set import FeatureSet, SplitName
from pipelines.job.evaluate import score_split
from pipelines.job.fitting import fit_and_calibrate, new_model
from pipelines.revision import git_revision, source_hash
from pipelines.study.study import Plan

TRIAL = "trial.json"
SPLITS: tuple[SplitName, ...] = ("valid", "test")


@dataclass(frozen=True)
class Task:
    """One training of one variant, small enough to be sent to a worker."""

    name: str
    seed: int
    feature_set: Path
    preset: Preset
    shuffle_vectors: bool
    folder: Path
    threads: int
    code: str  # hash of the sources that it was planned by

    @property
    def key(self) -> str:
        """Hash of everything that the result depends on, code included; a trial with another key is trained again."""
        manifest = FeatureSet.open(self.feature_set).manifest
        files = {name: entry.sha256 for name, entry in manifest.files.items() if name.endswith((".arrow", ".npy"))}
        content = [self.preset.model_dump(mode="json"), self.seed, self.shuffle_vectors, files, self.code]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Trial:
    """A finished training.

    Args:
        scores: probabilities by split, float32 [rows].
        facts: parameters, rows_per_second, seconds, epochs, calibration.
        folder: its folder.
        git_revision: commit that it was trained at. Trials of one study may have several, where commits between them
            changed no source file.
    """

    scores: dict[str, np.ndarray]
    facts: dict[str, Any]
    folder: Path
    git_revision: str


def run_trials(
    plans: Sequence[Plan],
    feature_sets: Sequence[FeatureSet],
    seeds: int,
    folder: Path,
    workers: int,
    say: Callable[[str], None],
) -> dict[str, list[Trial]]:
    """Train the missing trials and read all of them; trials by variant, by seed.

    Args:
        plans: the variants.
        feature_sets: the data of each.
        seeds: 1 to this number.
        folder: of the study.
        workers: processes at a time; they share the cores.
        say: prints what is trained again, and why.

    Raises:
        QuadRankError: a trial failed; the others that were finished stay.
        TryAgainError: a worker was killed.
    """
    threads = max(1, (os.cpu_count() or 1) // workers)
    pairs = list(zip(plans, feature_sets, strict=True))
    tasks = [_task(p, fs, seed, folder, threads) for seed in range(1, seeds + 1) for p, fs in pairs]
    for revision, trials in other_code(tasks).items():
        say(f"{trials} trials were trained by other code (git {revision}): they are trained again")
    waiting = [task for task in tasks if not _finished(task)]
    with (
        progress("trials", len(tasks), "trials", len(tasks) - len(waiting)) as bar,
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool,
    ):
        running = {pool.submit(train_one, task): task for task in waiting}
        for done in as_completed(running):
            task = running[done]
            try:
                done.result()
            except BrokenProcessPool:
                raise TryAgainError(
                    f"{task.name}, seed {task.seed}: the process that trained it, or another one, was killed, as a "
                    f"system without free memory does. Start the same command with fewer --workers than {workers}, or "
                    "on a larger machine: trainings that ended are kept."
                ) from None
            except Exception:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            bar.advance(1, note=f"{task.name}, seed {task.seed}")
    found: dict[str, list[Trial]] = {p.name: [] for p in plans}
    for task in tasks:
        found[task.name].append(_read(task))
    return found


def train_one(task: Task) -> None:
    """Train one variant with one seed and write its scores; in a worker process.

    Raises:
        ConfigError: the code changed since the study was planned.
        QuadRankError: as `fit_and_calibrate`.
    """
    if source_hash() != task.code:
        raise ConfigError(
            f"{task.folder}: the code changed while the study ran: its trials would not be comparable. Run the study "
            "again: trials of the present code are kept."
        )
    keep_freed_memory()
    torch.set_num_threads(task.threads)
    feature_set = FeatureSet.open(task.feature_set)
    tables = frozen_tables(feature_set)
    if task.shuffle_vectors:
        tables = shuffled(tables, task.seed, _codes(feature_set))
    task.folder.mkdir(parents=True, exist_ok=True)
    for old in task.folder.iterdir():
        old.unlink()
    model = new_model(task.preset.model, feature_set, task.seed, tables)
    result, calibrated = fit_and_calibrate(model, feature_set, task.preset.train, task.folder, progress=silent)
    for split in SPLITS:
        scores = score_split(model, feature_set, split).scores
        replace_file(task.folder / f"scores-{split}.npy", lambda fresh, scores=scores: _save(fresh, scores))  # type: ignore[misc]
    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "rows_per_second": result.rows_per_second,
        "seconds": result.seconds,
        "epochs": result.epochs_run,
        "threads": task.threads,
        **{
            f"valid_ece_{moment}": found["ece"]
            for moment, found in (("before", calibrated.before), ("after", calibrated.after))
            if "ece" in found
        },
    }
    record = {"key": task.key, "git_revision": git_revision(), "source_hash": task.code, "facts": facts}
    write_text(task.folder / TRIAL, json.dumps(record, indent=2))


def shuffled(tables: FrozenTables, seed: int, codes: Sequence[str] = ()) -> FrozenTables:
    """The tables with each item's vectors, and their presence, moved to another item, so that they carry no content.

    Item columns that were made of vectors (`codes`: semantic ids) go with them.
    """
    if not tables.present:
        return tables
    items = len(next(iter(tables.present.values())))
    order_I = order_among_real(items, torch.Generator().manual_seed(seed))
    return replace(
        tables.with_vectors_moved(order_I, tables.vectors),
        items=tables.items | {name: tables.items[name][order_I] for name in codes},
    )


def _codes(feature_set: FeatureSet) -> list[str]:
    """Item columns that the raw table does not have: they were made of vectors."""
    declared = feature_set.contract.items.columns if feature_set.contract.items else {}
    return [field.name for field in feature_set.schema.item[1:] if field.name not in declared]


def require_same_rows(feature_sets: Sequence[FeatureSet]) -> None:
    """Raise DataError unless all feature sets have the same rows in the same order: scores are compared row by row."""
    first, *others = feature_sets
    for other in others:
        for split in SPLITS:
            for name in ("time", "label"):
                ours, theirs = (column(feature_set, split, name) for feature_set in (first, other))
                if not np.array_equal(ours, theirs):
                    raise DataError(
                        f"{other.path}: its {split} rows are not those of {first.path} ({name} differs). A study "
                        "compares on the same rows: change no `interactions` and no `split` in a variant's data."
                    )


def _task(variant: Plan, feature_set: FeatureSet, seed: int, folder: Path, threads: int) -> Task:
    train = variant.preset.train.model_copy(update={"seed": seed})
    return Task(
        name=variant.name,
        seed=seed,
        feature_set=feature_set.path.resolve(),
        preset=variant.preset.model_copy(update={"train": train}),
        shuffle_vectors=variant.shuffle_vectors,
        folder=(folder / variant.name / f"seed-{seed}").resolve(),
        threads=threads,
        code=source_hash(),
    )


def other_code(tasks: Sequence[Task]) -> dict[str, int]:
    """Numbers of finished trials that other code trained, by its commit."""
    found: Counter[str] = Counter()
    for task in tasks:
        if (task.folder / TRIAL).is_file():
            record = json.loads((task.folder / TRIAL).read_text(encoding="utf-8"))
            if record.get("source_hash") != task.code:
                found[record.get("git_revision", "unknown")] += 1
    return dict(found)


def _finished(task: Task) -> bool:
    record = task.folder / TRIAL
    return record.is_file() and json.loads(record.read_text(encoding="utf-8"))["key"] == task.key


def _read(task: Task) -> Trial:
    record = json.loads((task.folder / TRIAL).read_text(encoding="utf-8"))
    scores = {str(split): np.load(task.folder / f"scores-{split}.npy", allow_pickle=False) for split in SPLITS}
    return Trial(scores, record["facts"], task.folder, record["git_revision"])


def _save(path: Path, scores: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, scores, allow_pickle=False)
