"""The command that searches for better settings: `tune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.options import (
    DEFAULT_MODEL,
    DEFAULT_TRAIN,
    AsOfOption,
    DataOption,
    ModelOption,
    RootOption,
    SetOption,
    TrainOption,
    WindowOption,
    WorkOption,
    settings_file,
    settings_of,
)
from pipelines.cli.terminal import JsonOption, console, finish
from pipelines.workspace import Workspace

tuning_app = typer.Typer()

DEFAULT_SPACE = Path("conf/tune.yaml")


@tuning_app.command(epilog="Example: quadrank tune --data conf/data/simulated.yaml --study daily --trials 20")
def tune(
    data: DataOption,
    study: Annotated[str, typer.Option("--study", help="Name of the sweep; workers with one name share its trials.")],
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage",
            help="Where trials are kept: a journal file, or postgresql://… for several machines; default: "
            "runs/tune/NAME.journal.",
        ),
    ] = None,
    trials: Annotated[
        int, typer.Option("--trials", help="Trials of the study in the end, over all workers and starts.", min=1)
    ] = 20,
    space: Annotated[
        Path, typer.Option("--space", callback=settings_file, help="Search space: a YAML file.")
    ] = DEFAULT_SPACE,
    from_study: Annotated[
        str | None, typer.Option("--from-study", help="A study of the same storage whose best settings come first.")
    ] = None,
    take: Annotated[int, typer.Option("--take", help="How many settings of --from-study.", min=1)] = 5,
    bundle_best: Annotated[
        bool,
        typer.Option("--bundle-best", help="In the end, train the best on train and validation rows and export it."),
    ] = False,
    model: ModelOption = DEFAULT_MODEL,
    train_defaults: TrainOption = DEFAULT_TRAIN,
    as_of: AsOfOption = None,
    window: WindowOption = None,
    root: RootOption = None,
    work: WorkOption = Path(),
    assignments: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search for better settings: a hyperparameter sweep.

    The same command started several times is several workers of one study. Stopped, it goes on where it was.
    """
    from ctr.training.allocator import keep_freed_memory
    from pipelines.job_settings import JobSettings
    from pipelines.report.sweep import report_sweep
    from pipelines.tune import refit
    from pipelines.tune.search.space import load_space
    from pipelines.tune.sweep import Sweep, run_sweep

    keep_freed_memory()
    source, overrides = settings_of(data, assignments, root, as_of, window)
    settings = JobSettings(source, data, model, train_defaults, overrides, Workspace(work), console(as_json))
    # Settings of model and training are in the file of the best ones.
    named = {"--data": str(data), "--as-of": as_of, "--window": window, "--root": root}
    named["--work"] = None if work == Path() else str(work)
    options = [part for option, value in named.items() if value is not None for part in (option, value)]
    options += [part for one in assignments or [] if one.startswith("data.") for part in ("--set", one)]
    require = refit.require_labels if bundle_best else None
    sweep = Sweep(study, load_space(space), storage, trials, from_study, take, tuple(options), require=require)
    if bundle_best:
        refit.require_bundle(settings)
    found = run_sweep(settings, sweep)
    page = report_sweep(found, settings)
    bundle = refit.bundle_best(found, settings) if bundle_best else None
    finish({**found.summary(), "report": str(page), "bundle": bundle and str(bundle)}, as_json)
