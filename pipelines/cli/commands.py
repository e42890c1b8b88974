"""The command line: options, exit codes, and one JSON line under `--json`. The work is in the stages."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from features.errors import ConfigError, QuadRankError
from pipelines.cli.bench import bench_app
from pipelines.cli.options import (
    DEFAULT_MODEL,
    DEFAULT_TRAIN,
    AsOfOption,
    BundleOption,
    DataOption,
    ModelOption,
    RootOption,
    RunOption,
    SetOption,
    TrainOption,
    WindowOption,
    WorkOption,
    overrides_of,
    settings_file,
    settings_of,
)
from pipelines.cli.proof import proof_app
from pipelines.cli.terminal import JsonOption, console, finish
from pipelines.extras import missing_extra
from pipelines.workspace import Workspace

app = typer.Typer(
    help="QuadRank: click-through-rate ranking from behaviour logs and precomputed item vectors.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(bench_app, name="bench")

ServeSetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="SERVE.KEY=VALUE", help="Repeatable, over the --serve file.")
]
DriftSetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="DRIFT.KEY=VALUE", help="Thresholds; repeatable.")
]
DEFAULT_SPACE = Path("conf/tune.yaml")
DEFAULT_SERVE = Path("conf/serve.yaml")
INTERRUPTED = 130  # what a shell gives a command ended by Ctrl-C; typer returns it, too
# Commands that go on where Ctrl-C stopped them, and how.
RESUMED_BY = {
    "train": "The same command with `--resume latest` goes on from the last evaluation",
    "run": "`quadrank train --resume latest` with the same options goes on from the last evaluation",
    "tune": "The same command goes on: trials that ended are kept",
    "compare": "The same command goes on: trainings that ended are kept",
    "ablate": "The same command goes on: trainings that ended are kept",
}


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="New or empty folder.")],
    data: Annotated[
        str, typer.Option("--data", help="Shipped contract that the Makefile uses, e.g. movielens_100k.")
    ] = "simulated",
    as_json: JsonOption = False,
) -> None:
    """A project folder of your own: settings, Makefile."""
    from pipelines.project.init import init_project

    finish(init_project(folder, data, console(as_json)), as_json)


@app.command()
def simulate(
    out: Annotated[Path, typer.Option("--out", help="Folder for the raw files.")] = Path("data/simulated"),
    rows: Annotated[int, typer.Option("--rows", help="Impressions.")] = 600_000,
    users: Annotated[int, typer.Option("--users", help="Users.")] = 5_000,
    items: Annotated[int, typer.Option("--items", help="Items.")] = 3_000,
    seed: Annotated[int, typer.Option("--seed", help="The same seed writes the same log.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Write a raw log with planted, known click probabilities."""
    from pipelines.job.simulate import simulate_once

    finish(simulate_once(out, rows, users, items, seed, console(as_json)), as_json)


@app.command()
def features(
    data: DataOption,
    as_of: AsOfOption = None,
    window: WindowOption = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare every file of it with its hash; exit 4 where one differs.")
    ] = False,
    root: RootOption = None,
    work: WorkOption = Path(),
    assignments: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Raw tables -> feature set."""
    from pipelines.job.build import build, describe

    source, _ = settings_of(data, assignments, root, as_of, window)
    result = build(source, Workspace(work))
    console(as_json).print(describe(result))
    compared = {}
    if verify:
        verified = result.feature_set.verify()
        console(as_json).print(f"verified {verified.files} files, {verified.bytes:,} bytes: all as they were built")
        compared = {"verified": asdict(verified)}
    finish(
        {
            "status": "reused" if result.reused else "done",
            "exit_code": 0,
            "feature_set": str(result.feature_set.path),
            "rows": {name: found.rows for name, found in result.feature_set.manifest.windows.items()},
            "findings": list(result.feature_set.manifest.findings),
            "seconds": result.seconds,
            **compared,
        },
        as_json,
    )


@app.command("inspect-embeddings")
def inspect_embeddings(
    data: DataOption,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the results.")] = None,
    as_of: AsOfOption = None,
    window: WindowOption = None,
    root: RootOption = None,
    work: WorkOption = Path(),
    assignments: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Which vector sets deserve to be used, before training."""
    from pipelines.inspect.embeddings import inspect_embeddings as inspect

    source, _ = settings_of(data, assignments, root, as_of, window)
    finish(inspect(source, Workspace(work), out, console(as_json)), as_json)


@app.command()
def train(
    data: DataOption,
    model: ModelOption = DEFAULT_MODEL,
    train_defaults: TrainOption = DEFAULT_TRAIN,
    resume: Annotated[
        str | None,
        typer.Option("--resume", help="Id of an unfinished run to go on with, or `latest`: the newest of them."),
    ] = None,
    as_of: AsOfOption = None,
    window: WindowOption = None,
    root: RootOption = None,
    work: WorkOption = Path(),
    assignments: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """One tracked training run, evaluated on test."""
    from pipelines.job.train import train_run
    from pipelines.job_settings import JobSettings

    started = time.monotonic()
    source, overrides = settings_of(data, assignments, root, as_of, window)
    settings = JobSettings(source, data, model, train_defaults, overrides, Workspace(work), console(as_json))
    finish(train_run(settings, resume).closed(started), as_json)


@app.command()
def run(
    data: DataOption,
    model: ModelOption = DEFAULT_MODEL,
    train_defaults: TrainOption = DEFAULT_TRAIN,
    as_of: AsOfOption = None,
    window: WindowOption = None,
    root: RootOption = None,
    work: WorkOption = Path(),
    assignments: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """The whole job: features to promoted bundle."""
    from pipelines.job.run import run_job
    from pipelines.job_settings import JobSettings

    started = time.monotonic()
    source, overrides = settings_of(data, assignments, root, as_of, window)
    settings = JobSettings(source, data, model, train_defaults, overrides, Workspace(work), console(as_json))
    summary = run_job(settings)
    finish(summary.closed(started), as_json)
    raise typer.Exit(summary.exit_code)


@app.command()
def evaluate(
    bundle: BundleOption,
    split: Annotated[str, typer.Option("--split", help="train, valid or test.")] = "test",
    work: WorkOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Metrics of a bundle as served, beside controls.

    Scores a split through the ONNX graph, one request a row, as a ranking server would.
    """
    from pipelines.job.evaluate import evaluate_bundle

    started = time.monotonic()
    summary = evaluate_bundle(bundle, split, Workspace(work), console(as_json))
    finish(summary.closed(started), as_json)


@app.command()
def tune(
    data: DataOption,
    study: Annotated[str, typer.Option("--study", help="Name; workers of one name share the study.")],
    storage: Annotated[
        str | None,
        typer.Option("--storage", help="Database URL, or a journal file (default: runs/tune/NAME.journal)."),
    ] = None,
    trials: Annotated[int, typer.Option("--trials", help="Trials that this worker runs.", min=1)] = 20,
    space: Annotated[Path, typer.Option("--space", callback=settings_file, help="Search space.")] = DEFAULT_SPACE,
    model: ModelOption = DEFAULT_MODEL,
    train_defaults: TrainOption = DEFAULT_TRAIN,
    as_of: AsOfOption = None,
    window: WindowOption = None,
    root: RootOption = None,
    work: WorkOption = Path(),
    assignments: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hyperparameter sweep.

    Start it n times with one study name for n workers.
    """
    from pipelines.job_settings import JobSettings
    from pipelines.tune.space import load_space
    from pipelines.tune.sweep import Sweep, run_sweep

    source, overrides = settings_of(data, assignments, root, as_of, window)
    settings = JobSettings(source, data, model, train_defaults, overrides, Workspace(work), console(as_json))
    payload = run_sweep(settings, Sweep(study, load_space(space), storage, trials))
    finish(payload, as_json)


@app.command()
def export(
    run_id: RunOption = "latest",
    out: Annotated[
        Path | None, typer.Option("--out", help="New folder of the bundle; default bundles/<name>/<run id>.")
    ] = None,
    work: WorkOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Checkpoint -> ONNX bundle, with a parity check."""
    from pipelines.job.export import export_run

    result = export_run(run_id, out, Workspace(work), console(as_json))
    finish({"status": "done", "exit_code": 0, **result}, as_json)


@app.command()
def rank(
    bundle: BundleOption,
    request: Annotated[
        Path | None,
        typer.Option("--request", help="JSON file: user, history, candidates, context; default: the bundle's example."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="An id the bundle does not know is an error.")] = False,
    top: Annotated[int | None, typer.Option("--top", help="Print only the best.", min=1)] = None,
    serve: Annotated[
        Path, typer.Option("--serve", callback=settings_file, help="Threads and limits of a request.")
    ] = DEFAULT_SERVE,
    assignments: ServeSetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score one request from raw ids."""
    from ctr.serving.ranker import load_serve_config
    from pipelines.inspect.rank import rank_file

    config = load_serve_config(serve, overrides_of(assignments, ("serve",)).get("serve"))
    finish(rank_file(bundle, request, config, strict, top, console(as_json)), as_json)


@app.command()
def promote(
    bundle: BundleOption,
    work: WorkOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Gate a bundle, then make it the champion and CURRENT.

    Exit 6 when the gate refuses; both are kept.
    """
    from pipelines.job.promote import promote_bundle

    payload = promote_bundle(bundle, Workspace(work), console(as_json))
    finish(payload, as_json)


@app.command()
def drift(
    base: Annotated[Path, typer.Option("--base", help="Feature set (folder or profile.json) to compare with.")],
    new: Annotated[Path, typer.Option("--new", help="Feature set that is judged.")],
    split: Annotated[str | None, typer.Option("--split", help="train, valid or test; default: all rows.")] = None,
    base_days: Annotated[
        int | None, typer.Option("--base-days", help="Only the newest UTC days of the base.", min=1)
    ] = None,
    new_days: Annotated[
        int | None, typer.Option("--new-days", help="Only the newest UTC days of the new.", min=1)
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="PNG of what changed most.")] = None,
    assignments: DriftSetOption = None,
    as_json: JsonOption = False,
) -> None:
    """What changed between two feature sets.

    Exit 3 when a change is both large and no accident.
    """
    from pipelines.inspect.drift import drift_between

    overrides = overrides_of(assignments, ("drift",)).get("drift", {})
    payload = drift_between(base, new, split, (base_days, new_days), overrides, out, console(as_json))
    finish(payload, as_json)
    raise typer.Exit(payload["exit_code"])


@app.command()
def download(
    name: Annotated[str, typer.Argument(help="Data set, e.g. movielens_100k; docs/datasets/ lists them.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to unpack into.")] = Path("data"),
    yes: Annotated[bool, typer.Option("--yes", help="You accept the owner's terms: fetch it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """A public data set: its terms, or the files."""
    from pipelines.job.download import download as download_dataset

    finish(download_dataset(name, out, yes, console(as_json)), as_json)


app.registered_commands += proof_app.registered_commands


def main(arguments: list[str] | None = None) -> None:
    """Run one command; turn every explained error into its message and exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    name = arguments[0] if arguments else ""
    sys.exit(_guarded(lambda: app(arguments, standalone_mode=False), name, "--json" in arguments))


def _guarded(command: Callable[[], Any], name: str, as_json: bool) -> int:
    try:
        code = command()
    except QuadRankError as error:
        return _failed(str(error), error.exit_code, as_json)
    except ModuleNotFoundError as error:
        message = missing_extra(error, name)
        if message is None:
            raise
        return _failed(message, ConfigError.exit_code, as_json)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as error:
        # typer's own usage errors know how to explain themselves and carry exit code 2.
        show = getattr(error, "show", None)
        if show is None:
            raise
        show()
        return int(getattr(error, "exit_code", 2))
    if code == INTERRUPTED:
        return _failed(f"stopped. {RESUMED_BY.get(name, '')}".strip(), INTERRUPTED, as_json)
    return code if isinstance(code, int) else 0


def _failed(message: str, code: int, as_json: bool) -> int:
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {message}", style="bold red", markup=False)
    finish({"status": "error", "exit_code": code, "error": message}, as_json)
    return code
