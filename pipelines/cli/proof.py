"""The commands that prove a ranker: compare, ablate, stress, report, explain; and submit, to be proved by others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipelines.cli.options import (
    DEFAULT_TRAIN,
    RootOption,
    RunOption,
    TrainOption,
    WorkOption,
    overrides_of,
    settings_file,
)
from pipelines.cli.terminal import JsonOption, console, finish
from pipelines.workspace import Workspace

proof_app = typer.Typer()

DEFAULT_DATA = Path("conf/data/simulated.yaml")
DEFAULT_ABLATION = Path("conf/studies/movielens_ablation.yaml")
DEFAULT_STRESS = Path("conf/stress.yaml")

StudyOption = Annotated[
    Path | None, typer.Option("--study", callback=settings_file, help="Study file, e.g. conf/studies/movielens.yaml.")
]
StudySetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="STUDY.KEY=VALUE", help="Repeatable, over the study file.")
]
WorkersOption = Annotated[int, typer.Option("--workers", help="Trainings at a time; they share the cores.", min=1)]


@proof_app.command()
def compare(
    study: StudyOption = None,
    models: Annotated[
        str | None, typer.Option("--models", help="Instead of a study: presets by name, e.g. qin_plus,din,dcnv2.")
    ] = None,
    data: Annotated[
        Path, typer.Option("--data", callback=settings_file, help="With --models: data contract.")
    ] = DEFAULT_DATA,
    seeds: Annotated[int, typer.Option("--seeds", help="With --models: trainings of each.", min=1)] = 5,
    workers: WorkersOption = 2,
    train_defaults: TrainOption = DEFAULT_TRAIN,
    root: RootOption = None,
    work: WorkOption = Path(),
    assignments: StudySetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Several models on the same rows, with intervals.

    Trains what is missing, so a stopped comparison goes on where it was. Differences are paired by users; a star marks
    one that is more than chance, all differences of the table considered (Holm).
    """
    from features.errors import ConfigError
    from pipelines.study.compare import Comparison, run_comparison
    from pipelines.study.study import load_study, study_of_models

    if (study is None) == (models is None):
        raise ConfigError("compare: name either --study FILE or --models A,B. Studies lie in conf/studies.")
    overrides = overrides_of(assignments, ("study",)).get("study", {})
    found = load_study(study, overrides) if study else study_of_models((models or "").split(","), data, seeds)
    comparison = Comparison(found, train_defaults, root, Workspace(work), workers, console(as_json))
    finish(run_comparison(comparison), as_json)


@proof_app.command()
def ablate(
    study: Annotated[
        Path,
        typer.Option("--study", callback=settings_file, help="Variants: modality subsets, fusions, model options."),
    ] = DEFAULT_ABLATION,
    workers: WorkersOption = 2,
    train_defaults: TrainOption = DEFAULT_TRAIN,
    root: RootOption = None,
    work: WorkOption = Path(),
    split: Annotated[
        Literal["valid", "test"], typer.Option("--split", help="Rows to judge on; valid: test stays unseen.")
    ] = "valid",
    assignments: StudySetOption = None,
    as_json: JsonOption = False,
) -> None:
    """What each part of a model and of the data is worth, on validation rows.

    Whoever chooses parts by the test rows has no test rows left: judge on them what is chosen already.
    """
    from pipelines.study.compare import Comparison, run_comparison
    from pipelines.study.study import load_study

    found = load_study(study, overrides_of(assignments, ("study",)).get("study", {}))
    comparison = Comparison(found, train_defaults, root, Workspace(work), workers, console(as_json), split)
    finish(run_comparison(comparison), as_json)


@proof_app.command()
def explain(
    request: Annotated[Path, typer.Option("--request", help="JSON file, as `quadrank rank` takes it.")],
    run_id: RunOption = "latest",
    top: Annotated[int, typer.Option("--top", help="Candidates that are explained.", min=1)] = 3,
    work: WorkOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Why the best candidates of a request are the best.

    Past items by attention weight with the tags they share, and what the logit loses without each field.
    """
    from pipelines.inspect.explain import explain_request

    finish(explain_request(run_id, request, top, Workspace(work), console(as_json)), as_json)


@proof_app.command()
def stress(
    run_id: RunOption = "latest",
    config: Annotated[Path, typer.Option("--config", callback=settings_file, help="How hard.")] = DEFAULT_STRESS,
    work: WorkOption = Path(),
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="STRESS.KEY=VALUE", help="Repeatable, over the file.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """What missing, swapped, noisy or stale vectors cost.

    Tells which vector sets the model ignores.
    """
    from ctr.diagnosis.vector_stress import load_stress_config
    from pipelines.inspect.stress import stress_run

    found = load_stress_config(config, overrides_of(assignments, ("stress",)).get("stress", {}))
    finish(stress_run(run_id, found, Workspace(work), console(as_json)), as_json)


@proof_app.command()
def report(
    run_id: RunOption = "latest",
    out: Annotated[Path | None, typer.Option("--out", help="HTML file; default: report.html in the run.")] = None,
    work: WorkOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """One HTML page of everything worth knowing of a run."""
    from pipelines.report.report import report_run

    finish(report_run(run_id, out, Workspace(work), console(as_json)), as_json)


@proof_app.command()
def submit(
    run_id: RunOption = "latest",
    out: Annotated[Path | None, typer.Option("--out", help="Zip file; default: submission.zip in the run.")] = None,
    column: Annotated[str, typer.Option("--column", help="Name of the column of predictions.")] = "Task2",
    work: WorkOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Predictions for a challenge's unlabelled test rows.

    One row an ID of the test file, in its order (MM-CTR: docs/mmctr.md).
    """
    from pipelines.inspect.submit import submit_run

    finish(submit_run(run_id, out, column, Workspace(work), console(as_json)), as_json)
