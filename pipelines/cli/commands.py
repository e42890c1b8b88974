"""The command line: options, exit codes, and one JSON line under `--json`. The work is in the stages."""

from __future__ import annotations

import atexit
import gc
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from features.errors import ConfigError
from pipelines.cli.bench import bench_app
from pipelines.cli.endings import ended
from pipelines.cli.gating import DEFAULT_GATE, GateOption, gating_app
from pipelines.cli.operating import operating_app
from pipelines.cli.options import (
    DATA_ALONE,
    DEFAULT_MODEL,
    DEFAULT_TRAIN,
    SECTIONS,
    AsOfOption,
    BundleOption,
    DataOption,
    DataSetOption,
    ModelOption,
    PastsOption,
    RootOption,
    RunOption,
    SetOption,
    TrainOption,
    WarmStartOption,
    WindowOption,
    WorkOption,
    name_of,
    overrides_of,
    settings_of,
)
from pipelines.cli.proof import proof_app
from pipelines.cli.serving import items_app, serving_app
from pipelines.cli.terminal import JsonOption, LogOption, console, finish, logged_console
from pipelines.cli.threads import sleep_soon
from pipelines.cli.tuning import tuning_app
from pipelines.operate.outcome import watched
from pipelines.operate.space import require_room
from pipelines.workspace import Workspace

app = typer.Typer(
    help="QuadRank: click-through-rate ranking from behaviour logs and precomputed item vectors.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"max_content_width": 100},
)
app.add_typer(bench_app, name="bench")
app.add_typer(items_app, name="items")

JobSetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Change one setting, e.g. train.epochs=3; repeatable. Sections: data, model, train, gate.",
    ),
]
DriftSetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="DRIFT.KEY=VALUE", help="Change one threshold; repeatable.")
]


@app.command(epilog="Example: quadrank init my_project --data movielens_100k")
def init(
    folder: Annotated[Path, typer.Argument(help="Folder to write; new or empty.")],
    data: Annotated[
        str, typer.Option("--data", help="Shipped contract that the Makefile uses; a name in conf/data/.")
    ] = "simulated",
    as_json: JsonOption = False,
) -> None:
    """Start a project folder: contract, settings, Makefile."""
    from pipelines.project.init import init_project

    finish(init_project(folder, data, console(as_json)), as_json)


@app.command(epilog="Example: quadrank simulate --out data/small --rows 20000 --users 500 --items 300")
def simulate(
    out: Annotated[Path, typer.Option("--out", help="Folder for the raw files.")] = Path("data/simulated"),
    rows: Annotated[int, typer.Option("--rows", help="Number of impressions.")] = 600_000,
    users: Annotated[int, typer.Option("--users", help="Number of users.")] = 5_000,
    items: Annotated[int, typer.Option("--items", help="Number of items.")] = 3_000,
    seed: Annotated[int, typer.Option("--seed", help="Random seed: the same seed writes the same log.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Simulate a raw log with known click probabilities."""
    from pipelines.job.simulate import simulate_once

    finish(simulate_once(out, rows, users, items, seed, console(as_json)), as_json)


@app.command(epilog="Example: quadrank features --data conf/data/simulated.yaml --as-of 2026-01-31 --window 14d")
def features(
    data: DataOption,
    as_of: AsOfOption = None,
    window: WindowOption = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare every file with its hash; exit 4 where one differs.")
    ] = False,
    root: RootOption = None,
    work: WorkOption = Path(),
    assignments: DataSetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Build a feature set from the raw tables."""
    from pipelines.job.build import build, describe

    source, _ = settings_of(data, assignments, root, as_of, window, DATA_ALONE)
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


@app.command("inspect-embeddings", epilog="Example: quadrank inspect-embeddings --data conf/data/simulated.yaml")
def inspect_embeddings(
    data: DataOption,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder of the table and the figures; default: in inspections/ of the workspace."),
    ] = None,
    as_of: AsOfOption = None,
    window: WindowOption = None,
    root: RootOption = None,
    work: WorkOption = Path(),
    assignments: DataSetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how well each vector set predicts clicks."""
    from pipelines.inspect.embeddings import inspect_embeddings as inspect

    source, _ = settings_of(data, assignments, root, as_of, window, DATA_ALONE)
    finish(inspect(source, Workspace(work), out, console(as_json)), as_json)


@app.command(
    epilog="Example: quadrank train --data conf/data/simulated.yaml --model conf/model/din.yaml --set train.epochs=1"
)
def train(
    data: DataOption,
    model: ModelOption = DEFAULT_MODEL,
    train_defaults: TrainOption = DEFAULT_TRAIN,
    resume: Annotated[
        str | None,
        typer.Option("--resume", help="Continue an unfinished run: its id, or `latest` for the newest."),
    ] = None,
    warm_start: WarmStartOption = None,
    as_of: AsOfOption = None,
    window: WindowOption = None,
    root: RootOption = None,
    work: WorkOption = Path(),
    log: LogOption = None,
    assignments: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train one model and evaluate it on the test split."""
    from ctr.training.allocator import keep_freed_memory
    from pipelines.job.train import train_run
    from pipelines.job_settings import JobSettings

    started = time.monotonic()
    keep_freed_memory()
    if resume is not None and warm_start is not None:
        raise ConfigError("--resume with --warm-start: a run that is resumed goes on from what it was started from.")
    workspace, to = Workspace(work), logged_console(as_json, log)
    with watched(workspace, None, to):
        source, overrides = settings_of(data, assignments, root, as_of, window)
        require_room(workspace, source.contract.name)
        settings = JobSettings(source, data, model, train_defaults, overrides, workspace, to, warm_start=warm_start)
        summary = train_run(settings, resume).closed(started)
    finish(summary, as_json)


@app.command(epilog="Example: quadrank run --data conf/data/simulated.yaml")
def run(
    data: DataOption,
    model: ModelOption = DEFAULT_MODEL,
    train_defaults: TrainOption = DEFAULT_TRAIN,
    warm_start: WarmStartOption = None,
    pasts: PastsOption = False,
    as_of: AsOfOption = None,
    window: WindowOption = None,
    root: RootOption = None,
    work: WorkOption = Path(),
    gate: GateOption = DEFAULT_GATE,
    log: LogOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what each stage would do and why; write nothing.")
    ] = False,
    assignments: JobSetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the scheduled job, from features to promotion.

    Builds features, trains, evaluates, exports, and promotes the bundle if it passes the gate. A stage that is done for
    the same data, settings and code is skipped; one that was stopped goes on. Exit 6 when the gate refuses the bundle,
    which keeps the champion; 3 when the data drifted from the champion's.
    """
    from ctr.training.allocator import keep_freed_memory
    from pipelines.gate.settings import GateRules, load_gate
    from pipelines.job_settings import JobSettings
    from pipelines.stages.run import plan_job, run_job

    started = time.monotonic()
    keep_freed_memory()
    workspace, to = Workspace(work), logged_console(as_json, log)

    def settings_and_rules() -> tuple[JobSettings, GateRules]:
        source, overrides = settings_of(data, assignments, root, as_of, window, (*SECTIONS, "gate"))
        rules = load_gate(gate, overrides.pop("gate", None))
        return JobSettings(source, data, model, train_defaults, overrides, workspace, to, pasts, warm_start), rules

    if dry_run:
        finish(plan_job(*settings_and_rules()), as_json)
        return
    with watched(workspace, name_of(data, assignments), to) as job:
        settings, rules = settings_and_rules()
        require_room(workspace, settings.source.contract.name)
        job.summary = run_job(settings, rules, job.clock).closed(started)
    finish(job.summary, as_json)
    raise typer.Exit(job.summary["exit_code"])


@app.command(epilog="Example: quadrank evaluate --bundle bundles/simulated/NEWEST --split valid")
def evaluate(
    bundle: BundleOption,
    split: Annotated[str, typer.Option("--split", help="Rows to score: train, valid or test.")] = "test",
    work: WorkOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Measure a bundle as it is served, beside controls.

    Scores each row of a split as one request through the ONNX graph, as a ranking server does.
    """
    from pipelines.job.evaluate import evaluate_bundle

    started = time.monotonic()
    summary = evaluate_bundle(bundle, split, Workspace(work), console(as_json))
    finish(summary.closed(started), as_json)


@app.command(epilog="Example: quadrank export --run latest")
def export(
    run_id: RunOption = "latest",
    out: Annotated[
        Path | None, typer.Option("--out", help="New folder of the bundle; default: bundles/NAME/RUN_ID.")
    ] = None,
    pasts: PastsOption = False,
    variant: Annotated[
        str,
        typer.Option(
            "--variant",
            help="Of the graph: fp32, fp16_table, int8_table, int8_products; auto tries all on validation rows.",
        ),
    ] = "fp32",
    max_auc_loss: Annotated[
        float, typer.Option("--max-auc-loss", min=0, help="Most validation AUC that a variant may lose.")
    ] = 0.0005,
    scorer: Annotated[
        bool, typer.Option("--scorer", help="Bring the graph that `quadrank score` runs; takes some seconds more.")
    ] = False,
    work: WorkOption = Path(),
    as_json: JsonOption = False,
) -> None:
    """Export a run as an ONNX bundle.

    Checks that the exported graphs give the same scores as the model. With --variant auto the bundle gets the fastest
    graph that loses at most --max-auc-loss, and the model card says what was tried."""
    from ctr.export.export_bundle import Extras
    from pipelines.job.export import export_run, variant_choice

    choice = variant_choice(variant, max_auc_loss)
    result = export_run(run_id, out, Workspace(work), console(as_json), Extras(pasts, scorer, choice))
    finish({"status": "done", "exit_code": 0, **result}, as_json)


@app.command(
    epilog="Example: quadrank drift --base feature_sets/simulated/OLD --new feature_sets/simulated/NEW --new-days 1"
)
def drift(
    base: Annotated[Path, typer.Option("--base", help="Feature set to compare with: its folder or its profile.json.")],
    new: Annotated[Path, typer.Option("--new", help="Feature set to check: its folder or its profile.json.")],
    split: Annotated[
        str | None, typer.Option("--split", help="Compare one split only: train, valid or test; default: all rows.")
    ] = None,
    base_days: Annotated[
        int | None,
        typer.Option("--base-days", help="Compare only the newest N days (UTC) of the base; default: all.", min=1),
    ] = None,
    new_days: Annotated[
        int | None,
        typer.Option("--new-days", help="Compare only the newest N days (UTC) of the new; default: all.", min=1),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="PNG file for a figure of the largest changes; default: no figure.")
    ] = None,
    assignments: DriftSetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two feature sets, column by column.

    Exit 3 when a change is both large and significant.
    """
    from pipelines.inspect.drift import drift_between

    overrides = overrides_of(assignments, ("drift",)).get("drift", {})
    payload = drift_between(base, new, split, (base_days, new_days), overrides, out, console(as_json))
    finish(payload, as_json)
    raise typer.Exit(payload["exit_code"])


@app.command(epilog="Example: quadrank download movielens_100k --yes")
def download(
    name: Annotated[str, typer.Argument(help="Data set, e.g. movielens_100k; docs/datasets/ lists them.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to unpack into.")] = Path("data"),
    yes: Annotated[bool, typer.Option("--yes", help="Accept the owner's terms and fetch the files.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the terms of a public data set, or fetch it.

    With --yes the files are fetched and unpacked."""
    from pipelines.job.download import download as download_dataset

    finish(download_dataset(name, out, yes, console(as_json)), as_json)


for part in (tuning_app, gating_app, serving_app, proof_app, operating_app):
    app.registered_commands += part.registered_commands


def main(arguments: list[str] | None = None) -> None:
    """Run one command; turn every explained error into its message and exit code."""
    # Else Python looks at its end, for seconds, for circles among all that torch and MLflow have made.
    atexit.register(gc.freeze)
    sleep_soon()
    arguments = sys.argv[1:] if arguments is None else arguments
    sys.exit(ended(lambda: app(arguments, standalone_mode=False), arguments))
