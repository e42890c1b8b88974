"""What came out of a study: the best settings as a preset file, the gain with its interval, the JSON summary."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState

from ctr.evaluation.bootstrap import Interval
from ctr.reporting.entries import BeginRun
from features.errors import ConfigError
from features.store.atomic import write_text
from pipelines.cells import estimate, signed
from pipelines.job_settings import JobSettings
from pipelines.tune.finals import Finalist
from pipelines.tune.measure import ValidationRows
from pipelines.tune.noise import SAME_AS, outlook
from pipelines.tune.search.resolve import with_values
from pipelines.tune.search.space import DATA, SearchSpace
from pipelines.tune.trial import FIRST, HIGH, LOW, ROWS, RUN
from pipelines.tune.workers.loop import ENDED
from pipelines.tune.workers.standing import counted, state_of
from pipelines.workspace import TUNE


@dataclass(frozen=True)
class Winner:
    """The best settings of a study.

    Args:
        trial: number of the trial of the search.
        params: values as drawn.
        value: of the metric; a mean over seeds where it is a finalist.
        interval: of the value; None where the scores are not on this machine.
        gain: above the current settings, paired by user; None likewise, and where these are the best.
        folders: of the trainings that the value is the mean of.
    """

    trial: int
    params: Mapping[str, Any]
    value: float
    interval: Interval | None
    gain: Interval | None
    folders: tuple[Path, ...]

    @property
    def trainings(self) -> int:
        """That the value is the mean of."""
        return len(self.folders)


@dataclass
class Outcome:
    """A study that has all of its trials.

    Args:
        study: of Optuna.
        search: the search space.
        trials: of the search, all of them.
        finals: trainings of the finalists.
        finalists: the best first; none unless the schedule is `screen`.
        winner: the best settings.
        parent: MLflow run of the study, as of `parent_run`.
        rows: training rows read by all trials together, passes counted.
        path: file of the best settings.
        command: trains them.
        seconds: that this worker took.
    """

    study: optuna.Study
    search: SearchSpace
    trials: Sequence[FrozenTrial]
    finals: Sequence[FrozenTrial]
    finalists: Sequence[Finalist]
    winner: Winner
    parent: str | BeginRun
    rows: int
    path: Path = field(default_factory=Path)
    command: str = ""
    seconds: float = 0.0

    @property
    def states(self) -> dict[str, int]:
        """How many distinct trials there are in each state."""
        return dict(Counter(state_of(one, self.trials) for one in counted(self.trials)))

    @property
    def front(self) -> list[FrozenTrial]:
        """With two objectives, the trials that no other betters in both, by the metric."""
        if self.search.against is None:
            return []
        return sorted(self.study.best_trials, key=lambda one: float(one.values[0]))

    @property
    def ended(self) -> str | None:
        """Why the study has fewer trials than it was to have; None where it has them all."""
        return self.study.user_attrs.get(ENDED) if self.search.stop == "noise" else None

    def summary(self) -> dict[str, Any]:
        """The JSON summary."""
        winner = self.winner
        best: dict[str, Any] = {"trial": winner.trial, self.search.metric: winner.value, "params": dict(winner.params)}
        for name, found in (("interval", winner.interval), ("gain", winner.gain)):
            if found is not None:
                best[name] = found._asdict()
        maximize = self.search.better == "maximize"
        now = None if self.search.against else outlook(self.trials, maximize, self.search.seed)
        return {
            "status": "done",
            "exit_code": 0,
            "study": self.study.study_name,
            "trials": self.states,
            "best": best,
            "finalists": len(self.finalists),
            "outlook": None if now is None else {"expected": now.expected, "noise": now.noise},
            "ended": self.ended or "trials",
            "pareto": [{"trial": one.number, "values": list(one.values)} for one in self.front],
            "rows_spent": self.rows,
            "config": str(self.path),
            "command": self.command,
            "run_id": self.parent.run if isinstance(self.parent, BeginRun) else self.parent,
            "seconds": self.seconds,
        }


def outcome_of(
    study: optuna.Study,
    finals: Sequence[FrozenTrial],
    finalists: Sequence[Finalist],
    search: SearchSpace,
    rows: ValidationRows,
    parent: str | BeginRun,
) -> Outcome:
    """Choose the best settings: of the finalists where there are some, of the trials otherwise.

    Raises:
        ConfigError: no trial was trained to its end.
    """
    trials = study.get_trials(deepcopy=False)
    done = [one for one in counted(trials) if one.state is TrialState.COMPLETE]
    if not done:
        errors = Counter(str(one.user_attrs.get("error", "lost")) for one in counted(trials))
        frequent = [f"{times} of them: {cause}" for cause, times in errors.most_common(1)] or ["None was started."]
        raise ConfigError(
            f"study {study.study_name!r}: none of {len(counted(trials))} trials was trained to its end. {frequent[0]}"
        )
    if finalists:
        first = finalists[0]
        winner = Winner(first.trial, first.params, first.value, first.interval, first.gain, first.folders)
    else:
        winner = _best_trial(done, search, rows)
    spent = sum(int(one.user_attrs.get(ROWS, 0)) for one in (*trials, *finals))
    return Outcome(study, search, trials, finals, finalists, winner, parent, spent)


def _best_trial(done: Sequence[FrozenTrial], search: SearchSpace, rows: ValidationRows) -> Winner:
    sign = 1 if search.better == "maximize" else -1
    best = max(done, key=lambda one: (sign * float(one.values[0]), -one.number))
    current = next((one for one in done if one.user_attrs.get(FIRST)), None)
    value = float(best.values[0])
    interval = (
        Interval(value, float(best.user_attrs[LOW]), float(best.user_attrs[HIGH])) if LOW in best.user_attrs else None
    )
    gain = None
    if current is not None and current.number != best.number:
        ours, theirs = (rows.measured([Path(one.user_attrs[RUN])]) for one in (best, current))
        if ours is not None and theirs is not None:
            gain = rows.gain(ours, theirs)
    return Winner(best.number, best.params, value, interval, gain, (Path(best.user_attrs[RUN]),))


def write_best(found: Outcome, settings: JobSettings, data_options: Sequence[str]) -> None:
    """Write `runs/tune/<study>.best.yaml`, say what it is and how to train it; sets `path` and `command`.

    Args:
        found: the outcome.
        settings: those that all trials share.
        data_options: options that name the data.
    """
    winner, search, name = found.winner, found.search, found.study.study_name
    chosen = decoded(search, winner.params)
    preset = with_values(settings, chosen).preset
    found.path = settings.workspace.runs / TUNE / f"{name}.best.yaml"
    of_data = [
        part
        for key, value in chosen.items()
        if key.startswith(f"{DATA}.")
        for part in ("--set", f"{key}={json.dumps(value)}")
    ]
    found.command = shlex.join(["quadrank", "train", *data_options, "--model", str(found.path), *of_data])
    head = (
        f"# Best settings of sweep {name!r}: trial {winner.trial}, validation {search.metric} {winner.value:.5f}.\n"
        f"# Train it: {found.command}\n"
    )
    write_text(found.path, head + yaml.safe_dump(preset.model_dump(mode="json"), sort_keys=False))
    for line in lines_of(found):
        settings.console.print(line, markup=False)


def lines_of(found: Outcome) -> list[str]:
    """The outcome for people: the best, the gain, how to train it."""
    winner, metric = found.winner, found.search.metric
    value = f"{winner.value:.4f}" if winner.interval is None else estimate(winner.interval)
    of = f"mean of {winner.trainings} trainings in full" if found.finalists else "one training"
    states = ", ".join(f"{count} {state}" for state, count in sorted(found.states.items()))
    lines = [
        f"study {found.study.study_name}: {states}; {found.rows:,} training rows read",
        f"best: trial {winner.trial}, validation {metric} {value}, {of}",
    ]
    if repeated := sum(SAME_AS in one.user_attrs for one in counted(found.trials)):
        lines.append(f"  {repeated} of these trials have the settings of earlier ones: nothing was trained for them")
    if found.ended:
        lines.append(f"  ended before all trials: {found.ended}")
    first = next((one for one in counted(found.trials) if one.user_attrs.get(FIRST)), None)
    if winner.gain is not None:
        told = winner.gain.low > 0
        verdict = "" if told else ": within noise, the rows cannot tell it from the current settings"
        lines.append(f"  gain over the current settings {signed(winner.gain)}{verdict}")
    elif first is not None and first.number == winner.trial:
        lines.append("  these are the current settings: no trial is better")
    lines += [f"  {name} = {value}" for name, value in winner.params.items()]
    lines += [f"  {found.command}"]
    return lines


def decoded(search: SearchSpace, params: Mapping[str, Any]) -> dict[str, Any]:
    """Values as the settings take them, from the form in which the study keeps them."""
    return {name: search.space[name].value_of(value) for name, value in params.items()}
