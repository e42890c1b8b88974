"""Stage 4: a hyperparameter sweep. The same command started n times is n workers of one study.

runs/tune/<study>.journal        the study, which its workers share, unless --storage names a database
runs/tune/<study>/<run id>/      a trial
runs/tune/<study>.best.yaml      the best settings, which `quadrank train --model` reads
.cache/feature_sets/             feature sets of trials that search settings of the data
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from ctr.reporting.mlflow_runs import Tracker
from ctr.reporting.mlflow_sweeps import close_trial
from features.errors import ConfigError, StoreAwayError, TryAgainError
from features.store.feature_set import FeatureSet
from pipelines.job.build import build, describe
from pipelines.job_settings import JobSettings
from pipelines.operate.waiting import require_answer
from pipelines.source import Source
from pipelines.tune.finals import judged, name_of_finals, plan_finals
from pipelines.tune.measure import ValidationRows
from pipelines.tune.noise import Outlook, outlook
from pipelines.tune.outcome import Outcome, outcome_of, write_best
from pipelines.tune.parent import blank_best, is_in_mlflow, parent_run
from pipelines.tune.search.definition import definition, require_same
from pipelines.tune.search.resolve import current_by_name, reaching_current, require_settings
from pipelines.tune.search.samplers import grid_size, pruner, sampler
from pipelines.tune.search.space import SearchSpace
from pipelines.tune.trial import FIRST, Stage, Trials, close_in_folder
from pipelines.tune.workers.leases import Lease, worker_name
from pipelines.tune.workers.loop import ENDED, Terminated, Worker, ending_cleanly
from pipelines.tune.workers.standing import counted, standing
from pipelines.tune.workers.storage import LONGEST_WAIT, SharedStorage, require_name

DEFINITION = "definition"
FROM = "from"  # attribute of a trial: study and trial that its settings were taken from


@dataclass(frozen=True)
class Sweep:
    """One worker's part of a study.

    Args:
        study: name; workers of one name share the study.
        space: the search space.
        storage: database URL or journal file of the study; default `runs/tune/<study>.journal`.
        trials: distinct trials that the study has in the end, over all workers and starts.
        from_study: a study of the same storage whose best settings are tried first.
        take: how many of them.
        data_options: options of the command that name the data, for the command that trains the best.
        lease: how long a worker may be silent.
        require: raises where the feature set does not have what is done with the best settings; called before the study
            is made.
    """

    study: str
    space: SearchSpace
    storage: str | None
    trials: int
    from_study: str | None = None
    take: int = 5
    data_options: tuple[str, ...] = ()
    lease: Lease = field(default_factory=Lease)
    require: Callable[[FeatureSet], None] | None = None


def run_sweep(settings: JobSettings, sweep: Sweep) -> Outcome:
    """Be one worker of a new or existing study until the study has all of its trials; returns what came out.

    Each distinct feature set is built once; if another worker builds it, this one waits.

    Raises:
        ConfigError: a setting cannot have a value of the space, the study is about something else, or none of its
            trials was trained to its end.
        LockError: another process still builds the feature set after `LONGEST_WAIT`.
        TryAgainError: the storage cannot be reached, or SIGTERM came: the same command goes on (exit 75).
    """
    started = time.monotonic()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if sweep.from_study == sweep.study:
        raise ConfigError(
            f"--from-study {sweep.from_study}: is the study itself, whose trials are known to it. Name another one, or "
            "leave the option out: with more --trials the study goes on."
        )
    require_settings(settings, sweep.space)
    search, first, lines = reaching_current(sweep.space, settings)
    require_settings(settings, search)  # its ranges may be wider now
    for line in lines:
        settings.console.print(line, markup=False)
    shared = SharedStorage.of(sweep.storage, sweep.study, settings.workspace, sweep.lease)
    # Before the build: a storage that is away must not be told hours later, nor an MLflow that a new study needs.
    with shared.reached(), shared.lock():
        tracked = is_in_mlflow(sweep.study, shared.open())
    if not tracked:
        require_answer(settings.workspace, settings.preset().train.tracking)
    result = build(settings.source, settings.workspace, wait=LONGEST_WAIT)
    settings.console.print(describe(result))
    if sweep.require is not None:
        sweep.require(result.feature_set)
    try:
        with ending_cleanly():
            return _Run(settings, sweep, search, first, result.feature_set, shared).outcome(started)
    except Terminated:
        raise TryAgainError(
            f"study {sweep.study!r}: asked to end. The trial at work is in the queue again; the same command goes on."
        ) from None


class _Run:
    """A worker at work: the study and its MLflow run are made or found, then trials are run."""

    def __init__(
        self,
        settings: JobSettings,
        sweep: Sweep,
        search: SearchSpace,
        first: Mapping[str, Any],
        feature_set: FeatureSet,
        shared: SharedStorage,
    ) -> None:
        self.settings, self.sweep, self.search, self.shared = settings, sweep, search, shared
        self.name = worker_name()
        self.current = current_by_name(settings)
        self.rows = ValidationRows(feature_set, search.metric)
        self._whole = {settings.source.contract.fingerprint(): feature_set}
        with shared.reached(), shared.lock():
            storage = shared.open()
            self.study = self._joined(storage, feature_set, first)
            self.parent = parent_run(self.study, settings, search)
            self.finals = self._study_of(storage, name_of_finals(sweep.study)) if search.schedule == "screen" else None

    def outcome(self, started: float) -> Outcome:
        wanted = min(self.sweep.trials, grid_size(self.search, self.current))
        self._worker(self.study, "search", wanted).work(self._say_how_it_stands)
        if self.finals is not None:
            with self.shared.reached(), self.shared.lock():
                trials = self.study.get_trials(deepcopy=False)
                seed = self.settings.preset().train.seed
                wanted = plan_finals(self.finals, trials, self.search, seed)
            self._worker(self.finals, "final", wanted).work()
        with self.shared.reached():
            trials = self.study.get_trials(deepcopy=False)
            finals = self.finals.get_trials(deepcopy=False) if self.finals is not None else []
        first = next((one.number for one in counted(trials) if one.user_attrs.get(FIRST)), None)
        found = outcome_of(
            self.study, finals, judged(finals, first, self.search, self.rows), self.search, self.rows, self.parent
        )
        write_best(found, self.settings, self.sweep.data_options)
        blank_best(self.settings, self.sweep.study, self.parent, set(self.search.space) - set(found.winner.params))
        found.seconds = round(time.monotonic() - started, 2)
        return found

    def _joined(self, storage: Any, feature_set: FeatureSet, first: Mapping[str, Any]) -> optuna.Study:
        study = self._study_of(storage, self.sweep.study)
        asked = definition(self.search, self.current, feature_set.manifest.version)
        recorded = study.user_attrs.get(DEFINITION)
        if recorded is None and not study.get_trials(deepcopy=False):
            self._require_directions(study)
            study.set_user_attr(DEFINITION, asked)
        else:
            require_same(self.sweep.study, recorded or {}, asked)
        self._queue_first(study, storage, first)
        return study

    def _require_directions(self, study: optuna.Study) -> None:
        """An empty study may have been made by hand."""
        directions = [found.name.lower() for found in study.directions]
        if directions != self.search.directions:
            raise ConfigError(
                f"study {study.study_name!r}: its direction is {', '.join(directions)}, and that of "
                f"{self.search.metric} is {', '.join(self.search.directions)}. Give the sweep another name with "
                "--study."
            )

    def _queue_first(self, study: optuna.Study, storage: Any, first: Mapping[str, Any]) -> None:
        """The current settings, then the best of another study: what is known to be good is tried before all else.

        What is queued already, by this worker before it was stopped or by another one, is not queued again.
        """
        ranges, known = self.search.space, study.get_trials(deepcopy=False)
        current = {name: ranges[name].stored(value) for name, value in first.items()}
        if not any(FIRST in one.user_attrs for one in known):
            study.enqueue_trial(current, user_attrs={FIRST: True})
        origins = {one.user_attrs.get(FROM) for one in known}
        for trial in self._best_of_other(storage, current):
            origin = f"{self.sweep.from_study} {trial.number}"
            if origin in origins:
                continue
            params = {name: value for name, value in trial.params.items() if name in ranges}
            drawn = [name for name, value in params.items() if not self.search.has(name, value)]
            for name in drawn:
                self.settings.console.print(
                    f"{origin}: {name} is {params.pop(name)} there, which this space does not have: it is drawn",
                    markup=False,
                )
            study.enqueue_trial(params, user_attrs={FROM: origin})

    def _best_of_other(self, storage: Any, current: Mapping[str, Any]) -> list[FrozenTrial]:
        """The best trials of `--from-study`, each setting once, without the current settings, tried anyway."""
        name = self.sweep.from_study
        if name is None:
            return []
        source = storage
        if self.shared.url is None and self.sweep.storage is None:
            # By default each study has a file of its own.
            require_name(name)
            file = self.shared.journal.with_name(f"{name}.journal")
            if not file.is_file():
                raise ConfigError(f"--from-study {name}: no such study, {file} does not exist.")
            source = SharedStorage.of(str(file), name, self.settings.workspace, self.sweep.lease).open()
        try:
            other = optuna.load_study(study_name=name, storage=source)
        except KeyError:
            known = ", ".join(sorted(optuna.get_all_study_names(source))) or "none"
            raise ConfigError(f"--from-study {name}: no such study in {self.shared.shown}; it has: {known}.") from None
        done = [one for one in other.get_trials(deepcopy=False) if one.state is TrialState.COMPLETE]
        sign = -1 if other.directions[0] == optuna.study.StudyDirection.MAXIMIZE else 1
        found, seen = [], [dict(current)]
        for one in sorted(done, key=lambda one: sign * float(one.values[0])):
            params = {name: value for name, value in one.params.items() if name in self.search.space}
            if params and params not in seen:
                seen.append(params)
                found.append(one)
        return found[: self.sweep.take]

    def _study_of(self, storage: Any, name: str) -> optuna.Study:
        preset = self.settings.preset()
        return optuna.create_study(
            study_name=name,
            storage=storage,
            directions=self.search.directions,
            pruner=pruner(self.search, preset.train.epochs * preset.train.evaluations_per_epoch),
            load_if_exists=True,
        )

    def _worker(self, study: optuna.Study, stage: Stage, wanted: float) -> Worker:
        trials = Trials(
            study=study,
            name=self.sweep.study,
            stage=stage,
            search=self.search,
            settings=self.settings,
            current=self.current,
            parent=self.parent,
            worker=self.name,
            lease=None if self.shared.beats else self.shared.lease,
            share=self.search.share if stage == "search" else 1.0,
            feature_set=self._feature_set,
        )
        draws: Callable[[int], optuna.samplers.BaseSampler] = lambda number: sampler(self.search, number, self.current)  # noqa: E731
        root = self.settings.workspace.root

        def on_lost(trial: FrozenTrial, state: str) -> None:
            if close_in_folder(root, trial, state):
                return
            try:
                close_trial(Tracker(root).store, self.parent, stage, trial.number, state)
            except StoreAwayError as error:  # no reason to train nothing
                self.settings.console.print(f"the MLflow run of trial {trial.number} stays open: {error}", markup=False)

        may_end = self.search.stop == "noise"
        return Worker(study, self.shared, wanted, self.settings.console, draws, trials.objective, on_lost, may_end)

    def _feature_set(self, source: Source) -> FeatureSet:
        """The feature set of a trial; others than the current one lie apart, so that none becomes CURRENT."""
        key = source.contract.fingerprint()
        if key not in self._whole:
            apart = self.settings.workspace.apart
            self._whole[key] = build(source, apart, wait=LONGEST_WAIT).feature_set
        return self._whole[key]

    def _say_how_it_stands(self) -> None:
        """One line after each trial: the best so far, what is still expected, whether the rows could tell."""
        trials = self.study.get_trials(deepcopy=False)
        if self.search.against is not None:
            return
        now = outlook(trials, self.search.better == "maximize", self.search.seed)
        self.settings.console.print(line_of(trials, self.search, self.sweep.trials, now), markup=False)
        if now is not None and now.hopeless and self.search.stop == "noise" and ENDED not in self.study.user_attrs:
            self.study.set_user_attr(ENDED, f"expected gain {now.expected:.5f} is below the noise {now.noise:.5f}")


def line_of(trials: list[FrozenTrial], search: SearchSpace, wanted: int, now: Outlook | None) -> str:
    """`12 of 20 trials: best auc 0.7345 (0.7301 – 0.7389), trial 7; still expected +0.0006, noise ±0.0011: …`."""
    done = [one for one in trials if one.state is TrialState.COMPLETE and one.values]
    text = f"{standing(trials).finished} of {wanted} trials"
    if not done:
        return text
    sign = 1 if search.better == "maximize" else -1
    best = max(done, key=lambda one: sign * float(one.values[0]))
    low, high = best.user_attrs.get("low"), best.user_attrs.get("high")
    span = "" if low is None else f" ({low:.4f} – {high:.4f})"
    text += f": best {search.metric} {float(best.values[0]):.4f}{span}, trial {best.number}"
    if now is None:
        return text
    verdict = "more trials cannot be told from noise" if now.hopeless else "more trials may help"
    return f"{text}; still expected {now.expected:.4f}, noise {now.noise:.4f}: {verdict}"
