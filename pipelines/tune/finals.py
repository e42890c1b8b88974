"""The second stage of the schedule `screen`: the best trials and the current settings, in full, with several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from ctr.evaluation.bootstrap import Interval
from pipelines.tune.measure import ValidationRows
from pipelines.tune.search.space import SearchSpace
from pipelines.tune.trial import FIRST, RUN, SEED
from pipelines.tune.workers.standing import counted

OF = "of"  # attribute of a finalist's trial: number of the trial whose settings it has


@dataclass(frozen=True)
class Finalist:
    """Settings that were trained in full with several seeds.

    Args:
        trial: number of the trial of the search.
        params: its drawn values.
        value: mean of the metric over seeds.
        interval: of that mean, over users and seeds; None where the scores are not on this machine.
        gain: above the current settings, paired by user; None likewise, and of the current settings themselves.
        folders: of the trainings.
    """

    trial: int
    params: Mapping[str, Any]
    value: float
    interval: Interval | None
    gain: Interval | None
    folders: tuple[Path, ...]


def name_of_finals(study: str) -> str:
    """The name of the study of finalists, beside that of the search."""
    return f"{study}.finals"


def chosen_finalists(trials: Sequence[FrozenTrial], search: SearchSpace) -> list[FrozenTrial]:
    """The best complete trials, and the current settings (the first trial), each once, the current ones first."""
    done: list[FrozenTrial] = []
    for trial in sorted(counted(trials), key=lambda one: FIRST not in one.user_attrs):
        if trial.state is TrialState.COMPLETE and all(trial.params != one.params for one in done):
            done.append(trial)
    sign = -1 if search.better == "maximize" else 1
    best = sorted(done, key=lambda trial: (sign * float(trial.values[0]), trial.number))[: search.screen.best]
    first = [trial for trial in done if trial.user_attrs.get(FIRST)]
    return first + [trial for trial in best if trial not in first]


def plan_finals(finals: optuna.Study, trials: Sequence[FrozenTrial], search: SearchSpace, seed: int) -> int:
    """Put the trainings of the finalists into the queue, each once for all workers; returns how many there are in all.

    A study that got more trials since has other finalists, which are trained beside those of before.

    Call it while holding the lock of the study.

    Args:
        finals: the study of finalists.
        trials: of the search.
        search: how many finalists and seeds.
        seed: of the current settings; a finalist has this one and the next ones.
    """
    planned = {(one.user_attrs.get(OF), one.user_attrs.get(SEED)) for one in finals.get_trials(deepcopy=False)}
    for place in range(search.screen.seeds):
        for trial in chosen_finalists(trials, search):
            if (trial.number, seed + place) not in planned:
                finals.enqueue_trial(trial.params, user_attrs={OF: trial.number, SEED: seed + place})
                planned.add((trial.number, seed + place))
    return len(planned)


def judged(
    finals: Sequence[FrozenTrial], first: int | None, search: SearchSpace, rows: ValidationRows
) -> list[Finalist]:
    """The finalists with what they scored, the best first.

    Args:
        finals: trials of the study of finalists.
        first: number of the current settings' trial.
        search: the metric.
        rows: on which they are compared.
    """
    groups: dict[int, list[FrozenTrial]] = {}
    for trial in counted(finals):
        if trial.state is TrialState.COMPLETE:
            groups.setdefault(int(trial.user_attrs[OF]), []).append(trial)
    folders = {number: tuple(Path(one.user_attrs[RUN]) for one in group) for number, group in groups.items()}
    measured = {number: rows.measured(found) for number, found in folders.items()}
    current = measured.get(first) if first is not None else None
    found = []
    for number, group in groups.items():
        ours = measured[number]
        paired = ours is not None and current is not None and number != first
        found.append(
            Finalist(
                trial=number,
                params=group[0].params,
                value=float(np.mean([one.values[0] for one in group])),
                interval=None if ours is None else ours.interval(),
                gain=rows.gain(ours, current) if paired and ours is not None and current is not None else None,
                folders=folders[number],
            )
        )
    sign = -1 if search.better == "maximize" else 1
    return sorted(found, key=lambda one: (sign * one.value, one.trial))
