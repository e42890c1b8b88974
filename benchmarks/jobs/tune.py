"""What `benchmarks.bench_tune` measures, each a function that runs in a process of its own."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from rich.console import Console

from ctr.data.columns import column, row_weights
from ctr.evaluation.significance import seeded_aucs
from ctr.training.allocator import keep_freed_memory
from features.contract.settings import validate
from features.progress import silent
from pipelines.cli.options import settings_of
from pipelines.job.build import build
from pipelines.job.evaluate import score_split
from pipelines.job.fitting import fit_and_calibrate, new_model
from pipelines.job_settings import JobSettings
from pipelines.shipped import default_settings
from pipelines.tune.noise import USERS, outlook
from pipelines.tune.outcome import decoded
from pipelines.tune.search.resolve import with_values
from pipelines.tune.search.samplers import sampler, suggest
from pipelines.tune.search.space import SearchSpace, load_space
from pipelines.tune.sweep import Sweep, run_sweep
from pipelines.tune.workers.leases import HOST, WORKER, Lease, Renewal
from pipelines.tune.workers.loop import Worker
from pipelines.tune.workers.storage import SharedStorage
from pipelines.workspace import Workspace

FIRST_SEED = 101  # of the trainings that judge winners: none of them was a trial


def sweep(
    data: str, root: str | None, work: str, model: str, space: str, schedule: str, trials: int, seed: int,
    assignments: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """One study to its end; returns the winner's values, the training rows read, and seconds."""
    keep_freed_memory()
    settings = _settings(data, root, work, model, assignments)
    search = searched(Path(space), schedule, seed)
    started = time.perf_counter()
    found = run_sweep(settings, Sweep(f"{schedule}-{seed}", search, None, trials))
    seconds = time.perf_counter() - started
    return {"params": decoded(found.search, found.winner.params), "rows": found.rows, "seconds": seconds,
            "trial": found.winner.trial, "states": found.states}  # fmt: skip


def judge(
    data: str, root: str | None, work: str, model: str, candidates: Mapping[str, Mapping[str, Any]], seeds: int,
    assignments: Sequence[str],
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Train each winner in full with seeds of its own; returns AUC with its interval, and the gain over `current`.

    Test rows are used where they have labels: no schedule has seen them.
    """
    keep_freed_memory()
    settings = _settings(data, root, work, model, assignments)
    scores: dict[str, np.ndarray] = {}
    trained: dict[str, str] = {}  # the candidate whose trainings count: the first one with the same settings
    names: dict[tuple[str, str], str] = {}
    for name, params in candidates.items():
        found = with_values(settings, params)
        trained[name] = names.setdefault((found.preset.model_dump_json(), found.source.contract.fingerprint()), name)
        if trained[name] != name:
            continue
        feature_set = build(found.source, Workspace(Path(work) / "judged")).feature_set
        split = feature_set.judged_by
        of_seeds = []
        for seed in range(FIRST_SEED, FIRST_SEED + seeds):
            train = found.preset.train.model_copy(update={"seed": seed})
            network = new_model(found.preset.model, feature_set, seed)
            with tempfile.TemporaryDirectory(dir=work) as folder:
                fit_and_calibrate(network, feature_set, train, Path(folder), progress=silent)
            of_seeds.append(score_split(network, feature_set, split).scores)
        scores[name] = np.stack(of_seeds)
    labels, users, weights = column(feature_set, split, "label"), column(feature_set, split, "user"), None
    weights = row_weights(feature_set, split)
    measured = seeded_aucs(labels, scores, weights, clusters=users)
    result = {}
    for name, first in trained.items():
        interval, gain = measured[first].interval(), measured[first].minus(measured["current"])
        result[name] = {"auc": interval.value, "auc_low": interval.low, "auc_high": interval.high,
                        "gain": gain.value, "gain_low": gain.low, "gain_high": gain.high}  # fmt: skip
    return result


def overhead(trials: int, evaluations: int) -> dict[str, float]:
    """A study whose trials do nothing but report; returns processor and wall seconds of the tuner for each trial.

    Args:
        trials: of the study.
        evaluations: that each trial reports.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    search = load_space(default_settings("tune.yaml"))
    with tempfile.TemporaryDirectory() as folder:
        shared = SharedStorage.of(None, "overhead", Workspace(Path(folder)), Lease())
        with shared.lock():
            study = optuna.create_study(study_name="overhead", storage=shared.open(), direction="maximize")

        def objective(trial: optuna.Trial, drawn: Callable[[], None]) -> float:
            chosen = suggest(search, trial, {})
            trial.set_user_attr(WORKER, "one")
            trial.set_user_attr(HOST, "here")
            renewal = Renewal(study._storage, trial._trial_id, shared.lease)
            renewal.start()
            drawn()
            for step in range(1, evaluations + 1):
                trial.report(1 - float(chosen["model.dropout"]), step)
                trial.should_prune()
            for name in (USERS, "rows", "seconds", "peak_mib", "threads", "run"):
                trial.set_user_attr(name, 0.001)
            renewal.stop()
            return 1 - float(chosen["model.dropout"])

        def after() -> None:
            outlook(study.get_trials(deepcopy=False), maximize=True)

        worker = Worker(
            study, shared, trials, Console(quiet=True), lambda number: sampler(search, number), objective,
            lambda trial, state: None,
        )  # fmt: skip
        wall, processor = time.perf_counter(), time.process_time()
        worker.work(after)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return {"wall": wall / trials, "processor": processor / trials}


def _settings(data: str, root: str | None, work: str, model: str, assignments: Sequence[str]) -> JobSettings:
    contract = Path(data)
    source, overrides = settings_of(contract, list(assignments), root, None, None)
    train = default_settings("train.yaml")
    return JobSettings(source, contract, Path(model), train, overrides, Workspace(Path(work)), Console(quiet=True))


def searched(space: Path, schedule: str, seed: int) -> SearchSpace:
    """The metric, sampler and settings of a search space; schedule and seed as given, the rest as in conf/tune.yaml."""
    shipped = load_space(default_settings("tune.yaml"))
    content = load_space(space).model_dump()
    content |= {"schedule": schedule, "seed": seed, "startup_trials": shipped.startup_trials, "stop": shipped.stop}
    content["screen"] = shipped.screen.model_dump()
    content["space"] = {
        name: {key: value for key, value in found.items() if value is not None}
        for name, found in content["space"].items()
    }
    return validate(SearchSpace, content, str(space))
