"""Commands that measure and explain a ranker: compare, ablate, stress, report, explain, submit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipelines.cli.options import (
    DEFAULT_TRAIN,
    AsOfOption,
    RootOption,
    RunOption,
    TrainOption,
    WindowOption,
    WorkOption,
    overrides_of,
    settings_file,
)
from pipelines.cli.terminal import JsonOption, command_line, console, finish
from pipelines.source import parse_window
from pipelines.workspace import Workspace

proof_app = typer.Typer()

DEFAULT_DATA = Path("conf/data/simulated.yaml")
DEFAULT_ABLATION = Path("conf/studies/movielens_ablation.yaml")
DEFAULT_STRESS = Path("conf/stress.yaml")
STUDY_SECTIONS = ("study", "data")

StudyOption = Annotated[
    Path | None, typer.Option("--study", callback=settings_file, help="Study file, e.g. conf/studies/movielens.yaml.")
]
StudySetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Change one setting, e.g. study.seeds=1; repeatable. Sections: study, data.",
    ),
]
WorkersOption = Annotated[
    int, typer.Option("--workers", help="Number of trainings at the same time; they share the cores.", min=1)
]


@proof_app.command(epilog="Example: quadrank compare --models qin,din --seeds 3")
def compare(
    study: StudyOption = None,
    models: Annotated[
        str | None, typer.Option("--models", help="Instead of --study: presets by name, e.g. qin_plus,din,dcnv2.")
    ] = None,
    data: Annotated[
        Path, typer.Option("--data", callback=settings_file, help="Data contract; with --models only.")
    ] = DEFAULT_DATA,
    seeds: Annotated[
        int, typer.Option("--seeds", help="Trainings of each model, one a seed; with --models only.", min=1)
    ] = 5,
    workers: WorkersOption = 2,
    train_defaults: TrainOption = DEFAULT_TRAIN,
    root: RootOption = None,
    as_of: AsOfOption = None,
    window: WindowOption = None,
    work: WorkOption = Path(),
    assignments: StudySetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare several models trained on the same rows.

    Trains only what is missing, so a stopped comparison continues. Differences are paired by user; a star marks a
    significant difference, corrected for the number of differences in the table (Holm).
    """
    from features.errors import ConfigError
    from pipelines.study.compare import Comparison, run_comparison
    from pipelines.study.study import load_study, study_of_models

    if (study is None) == (models is None):
        raise ConfigError("compare: name either --study FILE or --models A,B. Study files are in conf/studies.")
    overrides = overrides_of(assignments, STUDY_SECTIONS)
    if models and "study" in overrides:
        raise ConfigError(
            "--set study.…: changes a study file, and --models has none: use --seeds and --data, or --study."
        )
    changes = overrides.get("study", {})
    comparison = Comparison(
        load_study(study, changes) if study else study_of_models((models or "").split(","), data, seeds),
        train_defaults,
        root,
        Workspace(work),
        workers,
        console(as_json),
        command=command_line(),
        data=overrides.get("data", {}),
        as_of=as_of,
        window=parse_window(window),
    )
    finish(run_comparison(comparison), as_json)


@proof_app.command(epilog="Example: quadrank ablate --study conf/studies/movielens_ablation.yaml")
def ablate(
    study: Annotated[
        Path | None,
        typer.Option(
            "--study",
            help=f"Study file: the variants of data and model to compare; default: {DEFAULT_ABLATION}, or the only "
            "other *_ablation.yaml there.",
        ),
    ] = None,
    workers: WorkersOption = 2,
    train_defaults: TrainOption = DEFAULT_TRAIN,
    root: RootOption = None,
    as_of: AsOfOption = None,
    window: WindowOption = None,
    work: WorkOption = Path(),
    split: Annotated[
        Literal["valid", "test"], typer.Option("--split", help="Rows to compare on: valid or test.")
    ] = "valid",
    assignments: StudySetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what each part of a model and data adds.

    Use --split test only for a choice that is already made: the AUC of parts that were chosen on test rows is too high.
    """
    from pipelines.study.compare import Comparison, run_comparison
    from pipelines.study.study import default_ablation, load_study

    overrides = overrides_of(assignments, STUDY_SECTIONS)
    comparison = Comparison(
        load_study(study or default_ablation(DEFAULT_ABLATION), overrides.get("study", {})),
        train_defaults,
        root,
        Workspace(work),
        workers,
        console(as_json),
        split,
        command_line(),
        data=overrides.get("data", {}),
        as_of=as_of,
        window=parse_window(window),
    )
    finish(run_comparison(comparison), as_json)


@proof_app.command(epilog="Example: quadrank explain --request request.json")
def explain(
    request: Annotated[Path, typer.Option("--request", help="Request: a JSON file, as `quadrank rank` takes it.")],
    run_id: RunOption = "latest",
    top: Annotated[int, typer.Option("--top", help="Number of candidates to explain.", min=1)] = 3,
    work: WorkOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Explain why a request's best candidates come first.

    Lists past items by attention weight, with the tags they share, and how the logit changes without each field.
    """
    from pipelines.inspect.explain import explain_request

    finish(explain_request(run_id, request, top, Workspace(work), console(as_json)), as_json)


@proof_app.command(epilog="Example: quadrank stress --run latest --set stress.noise=[2.0]")
def stress(
    run_id: RunOption = "latest",
    config: Annotated[
        Path,
        typer.Option("--config", callback=settings_file, help="Kinds and strengths of the corruptions: a YAML file."),
    ] = DEFAULT_STRESS,
    work: WorkOption = Path(),
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="STRESS.KEY=VALUE", help="Change one setting of the --config file; repeatable."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the AUC drop with corrupted vectors.

    Corruptions: missing, swapped, noisy, stale and rounded vectors. Also shows which sets the model ignores.
    """
    from ctr.diagnosis.vector_stress import load_stress_config
    from pipelines.inspect.stress import stress_run

    found = load_stress_config(config, overrides_of(assignments, ("stress",)).get("stress", {}))
    finish(stress_run(run_id, found, Workspace(work), console(as_json)), as_json)


@proof_app.command(epilog="Example: quadrank report --run latest")
def report(
    run_id: RunOption = "latest",
    out: Annotated[Path | None, typer.Option("--out", help="HTML file; default: report.html in the run.")] = None,
    work: WorkOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Write an HTML page of a run's metrics and figures."""
    from pipelines.report.report import report_run

    finish(report_run(run_id, out, Workspace(work), console(as_json)), as_json)


@proof_app.command(epilog="Example: quadrank submit --run latest --out submission.zip")
def submit(
    run_id: RunOption = "latest",
    out: Annotated[Path | None, typer.Option("--out", help="Zip file; default: submission.zip in the run.")] = None,
    column: Annotated[str, typer.Option("--column", help="Name of the column of predictions.")] = "Task2",
    work: WorkOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Predict the unlabelled test rows of a challenge.

    Writes one row for each ID of the test file, in its order (MM-CTR: docs/mmctr.md).
    """
    from pipelines.inspect.submit import submit_run

    finish(submit_run(run_id, out, column, Workspace(work), console(as_json)), as_json)
