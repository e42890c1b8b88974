"""`quadrank bench …`: the options of each benchmark. What is measured is in `benchmarks/`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from features.errors import ConfigError
from pipelines.checkout import checkout
from pipelines.cli.options import RootOption, overrides_of, settings_file
from pipelines.cli.terminal import JsonOption, console, finish
from pipelines.inspect.bench import parse_sizes, run_bench

bench_app = typer.Typer(
    help="Measure the numbers of the README, beside peers.", no_args_is_help=True, rich_markup_mode=None
)

BenchOutOption = Annotated[
    Path | None, typer.Option("--out", help="Folder of the results; default: benchmarks/results/NAME.")
]
BenchWorkOption = Annotated[
    Path | None, typer.Option("--work", help="Folder for temporary raw data and builds; default: the system's.")
]
ItemsOption = Annotated[int, typer.Option("--items", min=10, help="Number of items in the catalogue.")]
MaxLenOption = Annotated[int, typer.Option("--max-len", min=1, help="Largest number of events in a history.")]
WidthsOption = Annotated[
    bool, typer.Option("--paper", help="Widths of the paper; default: those of conf/model/qin.yaml.")
]
BatchSizeOption = Annotated[int, typer.Option("--batch-size", min=2, help="Rows in a batch.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Change one setting of the paper's preset; repeatable. Sections: model, train.",
    ),
]
# Rows at which 91,717 items all occur in training and a batch of 8,192 is a small part of an epoch.
MMCTR_ROWS, MMCTR_ITEMS, MMCTR_LEN, MMCTR_BATCH = 400_000, 91_717, 64, 8_192


@bench_app.command("features", epilog="Example: quadrank bench features --sizes 1 --pandas-rows 100000 --repeats 1")
def bench_features(
    sizes: Annotated[str, typer.Option("--sizes", help="Rows of the simulated logs, in millions.")] = "1,10,40",
    pandas_rows: Annotated[
        int, typer.Option("--pandas-rows", help="Rows of the log on which pandas builds the same features.", min=1_000)
    ] = 1_000_000,
    repeats: Annotated[
        int, typer.Option("--repeats", help="Number of builds of each; medians are reported.", min=1)
    ] = 3,
    out: BenchOutOption = None,
    work: BenchWorkOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a feature build: speed, memory, disk.

    Simulates logs, builds their feature sets, and at one size builds the same features with pandas. Each build runs
    in a process of its own. 40 million rows need about 10 GB of disk for the time of the run.
    """
    arguments = {"sizes": parse_sizes(sizes), "pandas_rows": pandas_rows, "repeats": repeats}
    _run("features", as_json, out, work, **arguments)


@bench_app.command("daily", epilog="Example: quadrank bench daily --rows 100000 --repeats 1")
def bench_daily(
    rows: Annotated[
        int, typer.Option("--rows", help="Rows of the simulated log, which spans six weeks.", min=10_000)
    ] = 10_000_000,
    window: Annotated[int, typer.Option("--window", help="Days in the feature set.", min=3, max=41)] = 14,
    repeats: Annotated[
        int, typer.Option("--repeats", help="Number of builds of each; medians are reported.", min=1)
    ] = 3,
    out: BenchOutOption = None,
    work: BenchWorkOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure adding a day, beside building the window."""
    arguments = {"rows": rows, "window": window, "repeats": repeats}
    _run("daily", as_json, out, work, **arguments)


@bench_app.command("loader", epilog="Example: quadrank bench loader --rows 100000 --repeats 1")
def bench_loader(
    rows: Annotated[int, typer.Option("--rows", min=1_000, help="Rows of the simulated log.")] = MMCTR_ROWS,
    items: ItemsOption = MMCTR_ITEMS,
    max_len: MaxLenOption = MMCTR_LEN,
    batch_size: BatchSizeOption = MMCTR_BATCH,
    batches: Annotated[int, typer.Option("--batches", min=1, help="Batches loaded in each call.")] = 300,
    repeats: Annotated[
        int, typer.Option("--repeats", min=1, help="Number of calls of each; medians are reported.")
    ] = 5,
    out: BenchOutOption = None,
    work: BenchWorkOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the loader, beside a row-wise one on pandas."""
    sizes = {"rows": rows, "items": items, "max_len": max_len, "batch_size": batch_size}
    _run("loader", as_json, out, work, **sizes, batches=batches, repeats=repeats)


@bench_app.command("train", epilog="Example: quadrank bench train --no-peers --profile")
def bench_train(
    rows: Annotated[int, typer.Option("--rows", min=1_000, help="Rows of the simulated log.")] = MMCTR_ROWS,
    items: ItemsOption = MMCTR_ITEMS,
    max_len: MaxLenOption = MMCTR_LEN,
    batch_size: BatchSizeOption = MMCTR_BATCH,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps timed in each call.")] = 3,
    repeats: Annotated[
        int, typer.Option("--repeats", min=1, help="Number of calls of each; medians are reported.")
    ] = 3,
    venv: Annotated[
        Path | None,
        typer.Option("--venv", help="FuxiCTR's environment, created where it is missing; default: .bench/fuxictr."),
    ] = None,
    peers: Annotated[
        bool, typer.Option("--peers/--no-peers", help="Also measure the literal equations and FuxiCTR.")
    ] = True,
    half: Annotated[
        bool,
        typer.Option("--half/--no-half", help="Also measure half precision; slow on processors without it."),
    ] = True,
    with_profile: Annotated[
        bool, typer.Option("--profile", help="Also measure the parts of a step, beside the roofline.")
    ] = False,
    with_scaling: Annotated[
        bool, typer.Option("--scaling", help="Also vary batch size, history length and items; takes minutes.")
    ] = False,
    assignments: SetOption = None,
    out: BenchOutOption = None,
    work: BenchWorkOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure training, beside its peers.

    At the sizes of the paper; the peers are the literal equations and FuxiCTR's DIN."""
    preset = overrides_of(assignments, ("model", "train"))
    checkout("bench_train", "quadrank bench train")
    from benchmarks.bench_train import TrainBench

    settings = TrainBench(
        rows=rows,
        items=items,
        max_len=max_len,
        batch_size=batch_size,
        steps=steps,
        repeats=repeats,
        venv=venv,
        peers=peers,
        half=half,
        with_profile=with_profile,
        with_scaling=with_scaling,
        preset=preset,
    )
    _run("train", as_json, out, work, settings=settings)


@bench_app.command("rank", epilog="Example: quadrank bench rank --candidates 500 --threads 2 --no-peers")
def bench_rank(
    rows: Annotated[int, typer.Option("--rows", min=1_000, help="Rows of the simulated log.")] = 150_000,
    items: ItemsOption = MMCTR_ITEMS,
    max_len: MaxLenOption = MMCTR_LEN,
    candidates: Annotated[str, typer.Option("--candidates", help="Numbers of candidates.")] = "100,500,2000",
    threads: Annotated[str, typer.Option("--threads", help="Numbers of threads.")] = "1,2",
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="Time of turns for each of these sizes.")] = 20.0,
    site: Annotated[
        Path | None, typer.Option("--site", help="Folder of the peers' packages, filled where it is not.")
    ] = None,
    peers: Annotated[bool, typer.Option("--peers/--no-peers", help="Also measure graphs of others.")] = True,
    out: BenchOutOption = None,
    work: BenchWorkOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure one request, beside the graphs of others.

    At the sizes of the paper; the peers are the literal equations, torch-rechub's DIN and boosting."""
    checkout("bench_rank", "quadrank bench rank")
    from benchmarks.bench_rank import RankBench

    settings = RankBench(
        rows=rows,
        items=items,
        max_len=max_len,
        candidates=_numbers("--candidates", candidates),
        threads=_numbers("--threads", threads),
        seconds=seconds,
        peers=peers,
        site=site,
    )
    _run("rank", as_json, out, work, settings=settings)


@bench_app.command("serve", epilog="Example: quadrank bench serve --seconds 60 --requests 100000")
def bench_serve(
    rows: Annotated[int, typer.Option("--rows", min=1_000, help="Rows of the simulated log.")] = 20_000,
    items: Annotated[int, typer.Option("--items", min=30, help="Items of the catalogue.")] = 3_000,
    max_len: Annotated[int, typer.Option("--max-len", min=1, help="Most events of a history.")] = 100,
    paper: WidthsOption = False,
    candidates: Annotated[str, typer.Option("--candidates", help="Numbers of candidates.")] = "50,100,500,2000",
    under_load: Annotated[int, typer.Option("--under-load", min=1, help="Candidates of requests at a rate.")] = 500,
    processes: Annotated[str, typer.Option("--processes", help="Numbers of server processes.")] = "1,2",
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="Time of each load.")] = 10.0,
    requests: Annotated[
        int, typer.Option("--requests", min=2, help="Requests of all sizes, over which memory is watched.")
    ] = 5_000,
    out: BenchOutOption = None,
    work: BenchWorkOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the ranking server under load.

    Requests a second a core, its slowest answers at 70 % load and while its version changes, and its memory. Uses wrk
    where it is installed."""
    checkout("bench_serve", "quadrank bench serve")
    from benchmarks.bench_serve import ServeBench

    settings = ServeBench(
        rows=rows,
        items=items,
        max_len=max_len,
        paper=paper,
        candidates=_numbers("--candidates", candidates),
        under_load=under_load,
        processes=_numbers("--processes", processes),
        seconds=seconds,
        requests=requests,
    )
    _run("serve", as_json, out, work, settings=settings)


@bench_app.command("score", epilog="Example: quadrank bench score --items-a-user 20 --scored 20000")
def bench_score(
    rows: Annotated[int, typer.Option("--rows", min=1_000, help="Rows of the simulated log.")] = 150_000,
    items: ItemsOption = MMCTR_ITEMS,
    max_len: MaxLenOption = MMCTR_LEN,
    scored: Annotated[int, typer.Option("--scored", min=2, help="Rows that are scored.")] = 200_000,
    alone: Annotated[
        int, typer.Option("--alone", min=1, help="Requests of them that are scored one by one too.")
    ] = 200,
    items_a_user: Annotated[
        str, typer.Option("--items-a-user", help="Numbers of items that a request scores.")
    ] = "1,20,200",
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of the model, either way.")] = 1,
    paper: WidthsOption = False,
    out: BenchOutOption = None,
    work: BenchWorkOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure offline scoring, beside a request a user.

    The same rows of the log's users, with its events, by `quadrank score` and by the ranker."""
    checkout("bench_score", "quadrank bench score")
    from benchmarks.bench_score import ScoreBench

    numbers = _numbers("--items-a-user", items_a_user)
    requests = scored // max(numbers)
    if alone >= requests:
        raise ConfigError(
            f"--alone {alone}: {scored:,} rows are {requests:,} requests of {max(numbers)} items. Score fewer of them "
            "one by one, or more rows with --scored."
        )
    settings = ScoreBench(rows, items, max_len, scored, alone, numbers, threads, paper)
    _run("score", as_json, out, work, settings=settings)


@bench_app.command("accuracy", epilog="Example: quadrank bench accuracy --study epochs --seeds 2")
def bench_accuracy(
    study: Annotated[str, typer.Option("--study", help="What to vary: precision or epochs.")] = "precision",
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="Number of seeds that each variant is trained with.")
    ] = 3,
    rows: Annotated[int, typer.Option("--rows", min=1_000, help="Rows of the simulated log.")] = 600_000,
    users: Annotated[int, typer.Option("--users", min=10, help="Users of the simulated log.")] = 5_000,
    items: Annotated[int, typer.Option("--items", min=30, help="Items of the simulated log.")] = 3_000,
    out: BenchOutOption = None,
    work: BenchWorkOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure what ways of training do to accuracy.

    Varies half precision, merged rows and regularisation."""
    _run("accuracy", as_json, out, work, study=study, seeds=seeds, rows=rows, users=users, items=items)


@bench_app.command("warm", epilog="Example: quadrank bench warm --policies keep,reset,no_replay --days 7")
def bench_warm(
    rows: Annotated[int, typer.Option("--rows", min=1_000, help="Rows of the simulated log of six weeks.")] = 150_000,
    users: Annotated[int, typer.Option("--users", min=10, help="Users of the simulated log.")] = 2_500,
    items: Annotated[int, typer.Option("--items", min=30, help="Items of the simulated log.")] = 1_500,
    days: Annotated[int, typer.Option("--days", min=1, help="Days that are trained one after the other.")] = 14,
    window: Annotated[int, typer.Option("--window", min=1, help="Days that a model is trained on.")] = 14,
    drift: Annotated[
        float, typer.Option("--drift", min=0, max=1, help="How far tastes have gone when the six weeks end.")
    ] = 0.5,
    policies: Annotated[
        str | None, typer.Option("--policies", help="Policies beside training from scratch; default: all.")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Number of seeds that each policy runs with.")] = 1,
    out: BenchOutOption = None,
    work: BenchWorkOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure policies of daily training on a drifting log.

    Quality a day and compute of warm starts, by what becomes of accumulators, rate, new rows and older rows, beside
    training from scratch every day."""
    checkout("bench_warm", "quadrank bench warm")
    from benchmarks.bench_warm import POLICIES, WarmBench

    names = tuple(POLICIES) if policies is None else tuple(name.strip() for name in policies.split(","))
    settings = WarmBench(rows, users, items, days, window, drift, names, seeds)
    _run("warm", as_json, out, work, settings=settings)


@bench_app.command("month", epilog="Example: quadrank bench month --days 7 --calendar 3:late,5:flipped")
def bench_month(
    rows: Annotated[int, typer.Option("--rows", min=1_000, help="Rows of the simulated log of six weeks.")] = 100_000,
    users: Annotated[int, typer.Option("--users", min=10, help="Users of the simulated log.")] = 1_500,
    items: Annotated[int, typer.Option("--items", min=30, help="Items of the simulated log.")] = 900,
    drift: Annotated[
        float, typer.Option("--drift", min=0, max=1, help="How far tastes have gone when the six weeks end.")
    ] = 0.5,
    days: Annotated[int, typer.Option("--days", min=1, help="Nights in sequence.")] = 30,
    window: Annotated[int, typer.Option("--window", min=4, help="Days in the feature set.")] = 10,
    calendar: Annotated[
        str | None, typer.Option("--calendar", help="Bad days, DAY:TROUBLE by commas; default: nine, one of each.")
    ] = None,
    bot_rows: Annotated[int, typer.Option("--bot-rows", min=1, help="Events of the bot on its day.")] = 1_000_000,
    keep: Annotated[int, typer.Option("--keep", min=1, help="What the nightly gc keeps of everything.")] = 3,
    disk_mib: Annotated[int, typer.Option("--disk-mib", min=1, help="Bound of the disk after each night.")] = 200,
    fresh_every: Annotated[
        int, typer.Option("--fresh-every", min=1, help="Nights between trainings from nothing that stand beside.")
    ] = 1,
    out: BenchOutOption = None,
    work: BenchWorkOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a month of nightly jobs, bad days among them.

    Each night is a process of `quadrank run` and one of `quadrank gc`. Checks exit codes, their
    records, pointers and disk, and holds each promoted bundle to the one before it on the rows of the next day."""
    checkout("bench_month", "quadrank bench month")
    from benchmarks.bench_month import MonthBench
    from benchmarks.month.calendar import MONTH, parse_calendar

    troubles = parse_calendar(MONTH if calendar is None else calendar, days)
    settings = MonthBench(rows, users, items, drift, days, window, troubles, bot_rows, keep, disk_mib, fresh_every)
    _run("month", as_json, out, work, settings=settings)


@bench_app.command("tune", epilog="Example: quadrank bench tune --trials 10 --repetitions 1")
def bench_tune(
    data: Annotated[
        Path, typer.Option("--data", callback=settings_file, help="Data contract; its raw files must be there.")
    ] = Path("conf/data/simulated.yaml"),
    model: Annotated[
        Path, typer.Option("--model", callback=settings_file, help="Preset: the current settings.")
    ] = Path("conf/model/qin.yaml"),
    space: Annotated[
        Path,
        typer.Option("--space", callback=settings_file, help="Search space; its schedule is that of conf/tune.yaml."),
    ] = Path("conf/tune.yaml"),
    trials: Annotated[int, typer.Option("--trials", min=2, help="Trials of each study.")] = 40,
    repetitions: Annotated[int, typer.Option("--repetitions", min=1, help="Studies of each schedule.")] = 2,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Trainings of each winner that judge it.")] = 3,
    root: RootOption = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SECTION.KEY=VALUE",
            help="Change one setting of all trials; repeatable. Sections: data, model, train.",
        ),
    ] = None,
    out: BenchOutOption = None,
    work: BenchWorkOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare the schedules of a sweep.

    Winners by the training rows that were read to find them, and what the tuner itself costs."""
    checkout("bench_tune", "quadrank bench tune")
    from benchmarks.bench_tune import TuneBench

    settings = TuneBench(data, root, model, space, trials, repetitions, seeds, tuple(assignments or ()))
    _run("tune", as_json, out, work, settings=settings)


def _numbers(option: str, text: str) -> tuple[int, ...]:
    numbers = tuple(int(part) for part in text.split(",") if part.strip().isdecimal())
    if len(numbers) != text.count(",") + 1 or not all(numbers):
        raise ConfigError(f"{option} {text!r}: write whole numbers from 1 on, e.g. 100,500.")
    return numbers


def _run(name: str, as_json: bool, out: Path | None, work: Path | None, **arguments: Any) -> None:
    finish(run_bench(name, console(as_json), out, work, **arguments), as_json)
