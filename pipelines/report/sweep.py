"""One HTML page on a sweep, kept with its MLflow run together with its figures and the best settings."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from matplotlib.figure import Figure
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState

from ctr.reporting.sweep_figures import TrialPoint, history, importances, parallel_coordinates, pareto, slices
from features.store.atomic import write_text
from pipelines.cells import estimate, number, signed
from pipelines.job_settings import JobSettings
from pipelines.report.page import Section, page
from pipelines.report.parts import facts, plot, remark, table, tiles
from pipelines.tune.outcome import Outcome
from pipelines.tune.parent import record_parent
from pipelines.tune.trial import PEAK, ROWS, SECONDS
from pipelines.tune.workers.leases import WORKER
from pipelines.tune.workers.standing import ERROR, state_of
from pipelines.workspace import TUNE

FEWEST_FOR_IMPORTANCE = 4


@dataclass(frozen=True)
class Plot:
    """A figure of a sweep: drawn once for MLflow and once for the page, which needs its own."""

    file: str
    title: str
    caption: str
    draw: Callable[[], Figure]


def report_sweep(found: Outcome, settings: JobSettings) -> Path:
    """Write `runs/tune/<study>.html`, and log page, figures, best settings and numbers to the study's MLflow run.

    Where MLflow is away they wait in `runs/tune/<study>/study/`, and a later command sends them.

    Args:
        found: what came out of the study.
        settings: whose workspace has the store.

    Raises:
        ConfigError: the MLflow store cannot be used.
    """
    name = found.study.study_name
    plots = plots_of(found)
    path = settings.workspace.runs / TUNE / f"{name}.html"
    write_text(path, page(f"sweep {name}", _sections(found, plots), "Sweep report"))
    metrics = {f"best.{found.search.metric}": found.winner.value, "trials": float(len(found.trials)),
               "rows_spent": float(found.rows)}  # fmt: skip
    if found.winner.gain is not None:
        metrics |= {f"gain.{key}": float(value) for key, value in found.winner.gain._asdict().items()}
    figures = {one.file: one.draw() for one in plots}
    files = {"best": found.path, "report": path}
    record_parent(settings, name, found.parent, metrics, dict(found.winner.params), files, figures)
    settings.console.print(f"page: {path}", markup=False)
    return path


def plots_of(found: Outcome) -> list[Plot]:
    """The figures that a study has: those of importance need some complete trials, that of a front two objectives."""
    search, metric, maximize = found.search, found.search.metric, found.search.better == "maximize"
    points = [point(one) for one in found.trials if one.state.is_finished()]
    log = [name for name, range_ in search.space.items() if range_.log]
    plots = [
        Plot("history.png", "History", "Each trial and the best so far, in the order in which trials were drawn.",
             lambda: history(points, metric, maximize)),
        Plot("slices.png", "Settings one by one", "A panel a setting; darker trials came later.",
             lambda: slices(points, metric, log)),
        Plot("parallel_coordinates.png", "Settings together", "A line a trial, each axis from its lowest value up.",
             lambda: parallel_coordinates(points, metric, log, maximize)),
    ]  # fmt: skip
    shares = importance(found.study)
    if shares:
        plots.insert(1, Plot("importance.png", "Which settings matter",
                             "How much each setting tells the better trials from the others (PED-ANOVA).",
                             lambda: importances(shares)))  # fmt: skip
    if found.front:
        every = [_values(one) for one in found.trials if one.state is TrialState.COMPLETE]
        front = [_values(one) for one in found.front]
        plots.append(Plot("pareto.png", "Two objectives", "Trials that no other betters in both are joined.",
                          lambda: pareto(every, front, metric)))  # fmt: skip
    return plots


def importance(study: optuna.Study) -> dict[str, float]:
    """PED-ANOVA's share of each setting (Watanabe, Bansal, Hutter 2023); none while there are too few trials."""
    done = [one for one in study.get_trials(deepcopy=False) if one.state is TrialState.COMPLETE]
    if len(done) < FEWEST_FOR_IMPORTANCE:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        # It tells what low values have in common, and warns of that even where it is given negative ones.
        warnings.filterwarnings("ignore", message="PedAnova")
        sign = -1 if study.directions[0] is optuna.study.StudyDirection.MAXIMIZE else 1
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        try:
            found = optuna.importance.get_param_importances(
                study, evaluator=evaluator, target=lambda one: sign * float(one.values[0])
            )
        except (ValueError, RuntimeError):
            return {}  # all trials are alike
    return {name: float(share) for name, share in found.items()}


def point(trial: FrozenTrial) -> TrialPoint:
    """A trial as its figures need it."""
    value = float(trial.values[0]) if trial.values else None
    return TrialPoint(trial.number, value, trial.state is TrialState.COMPLETE, trial.params)


def _values(trial: FrozenTrial) -> tuple[float, float]:
    return float(trial.values[0]), float(trial.values[1])


def _sections(found: Outcome, plots: Sequence[Plot]) -> list[Section]:
    winner, metric = found.winner, found.search.metric
    value = number(winner.value) if winner.interval is None else estimate(winner.interval)
    gain = "" if winner.gain is None else signed(winner.gain)
    workers = len({one.user_attrs.get(WORKER) for one in found.trials})
    states = ", ".join(f"{count} {state}" for state, count in sorted(found.states.items()))
    shown = tiles(
        [
            (f"best {metric}", number(winner.value), value),
            ("gain over the current settings", gain.partition(" ")[0] or "none", gain),
            ("trials", str(sum(found.states.values())), f"{states}; {found.ended}" if found.ended else states),
            ("training rows read", f"{found.rows:,}", f"by {workers} workers"),
        ]
    )  # fmt: skip
    best = facts({name: str(value) for name, value in winner.params.items()}) + remark(f"Train it: {found.command}")
    sections = [Section("The best settings", "What to train now?", shown + best)]
    sections += [Section(one.title, one.caption, plot(one.draw(), Path(one.file).stem, one.title)) for one in plots]
    if found.finalists:
        rows = [
            (str(one.trial), number(one.value), "" if one.interval is None else estimate(one.interval),
             "" if one.gain is None else signed(one.gain), str(len(one.folders)))
            for one in found.finalists
        ]  # fmt: skip
        head = ("trial", metric, "95 % interval", "gain over the current settings", "trainings")
        sections.insert(1, Section("Finalists", "Trained in full, with several seeds.", table(head, rows)))
    return [*sections, Section("Trials", "Every trial, in the order in which they were drawn.", _trials(found))]


def _trials(found: Outcome) -> str:
    head = ("trial", "state", found.search.metric, "training rows", "seconds", "peak MiB", "worker", "settings")
    rows = []
    for one in found.trials:
        told = one.user_attrs
        settings = ", ".join(f"{name.rpartition('.')[2]} {_short(value)}" for name, value in one.params.items())
        rows.append(
            (str(one.number), state_of(one, found.trials), number(float(one.values[0]) if one.values else None),
             f"{told[ROWS]:,}" if ROWS in told else "", f"{told.get(SECONDS, '')}", f"{told.get(PEAK, '')}",
             str(told.get(WORKER, "")), str(told[ERROR]) if ERROR in told else settings)
        )  # fmt: skip
    return table(head, rows)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
