"""Commands that put a bundle to work: rank, score, serve, replay, publish, items upsert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.options import BundleOption, WorkOption, overrides_of, settings_file
from pipelines.cli.terminal import JsonOption, console, finish
from pipelines.workspace import Workspace

serving_app = typer.Typer()
items_app = typer.Typer(help="New and changed items of a bundle.", no_args_is_help=True, rich_markup_mode=None)

ServeSetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SERVE.KEY=VALUE", help="Change one setting of the --serve file; repeatable."),
]
ServeFileOption = Annotated[
    Path,
    typer.Option("--serve", callback=settings_file, help="Serving settings: threads, limits, queue, log."),
]
DEFAULT_SERVE = Path("conf/serve.yaml")


@serving_app.command(epilog="Example: quadrank rank --bundle bundles/simulated/CURRENT --request request.json --top 10")
def rank(
    bundle: BundleOption,
    request: Annotated[
        Path | None,
        typer.Option("--request", help="JSON file: user, history, candidates, context; default: the bundle's example."),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Refuse unknown ids, and a request that lacks what the model was trained on."),
    ] = False,
    top: Annotated[
        int | None, typer.Option("--top", help="Print only the N best candidates; default: all.", min=1)
    ] = None,
    serve_file: ServeFileOption = DEFAULT_SERVE,
    assignments: ServeSetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rank the candidates of one request, given by raw ids."""
    from ctr.serving.settings import load_serve_config
    from pipelines.inspect.rank import rank_file

    config = load_serve_config(serve_file, overrides_of(assignments, ("serve",)).get("serve"))
    finish(rank_file(bundle, request, config, strict, top, console(as_json)), as_json)


@serving_app.command(
    epilog="Example: quadrank score --bundle bundles/simulated/CURRENT --input pairs.parquet --events log.parquet "
    "--output scores.parquet"
)
def score(
    bundle: BundleOption,
    input_file: Annotated[
        Path,
        typer.Option("--input", help="Parquet: a row a score, with user, item, and maybe time, context and history."),
    ],
    output: Annotated[Path, typer.Option("--output", help="Parquet to write: the input's columns, and the scores.")],
    events: Annotated[
        Path | None,
        typer.Option("--events", help="What users did, as the log has it; each row knows what was before its time."),
    ] = None,
    pasts: Annotated[
        bool, typer.Option("--pasts", help="Histories are those that the bundle brings (export --pasts).")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse rows that lack context columns which the model was trained on.")
    ] = False,
    batch: Annotated[int, typer.Option("--batch", help="Rows that are read at once.", min=1)] = 32_768,
    threads: Annotated[int, typer.Option("--threads", help="Threads of the model; 0 for one a core.", min=0)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Score many rows offline, parquet to parquet."""
    from pipelines.serving.score import score_file

    summary = score_file(
        bundle, input_file, output, events, batch, threads, console(as_json), pasts=pasts, strict=strict
    )
    finish(summary, as_json)


@serving_app.command(epilog="Example: quadrank serve --bundle bundles/simulated/CURRENT --port 8000")
def serve(
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", help="Folder of a bundle, or bundles/NAME/CURRENT, which the server follows."),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", help="Model of an MLflow server instead: models:/NAME@ALIAS, which is followed.")
    ] = "",
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="Port to listen on.", min=0, max=65535)] = 8000,
    processes: Annotated[
        int, typer.Option("--processes", help="Number of processes that share the port; one for each core.", min=1)
    ] = 1,
    public: Annotated[bool, typer.Option("--public", help="Allow an address that other machines can reach.")] = False,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", help="File with the token of routes that write; default: $QUADRANK_TOKEN."),
    ] = None,
    serve_file: ServeFileOption = DEFAULT_SERVE,
    assignments: ServeSetOption = None,
    work: WorkOption = Path(),
) -> None:
    """Answer ranking requests over HTTP."""
    from ctr.serving.settings import load_serve_config
    from pipelines.serving.serve import serve_bundle

    config = load_serve_config(serve_file, overrides_of(assignments, ("serve",)).get("serve"))
    code = serve_bundle(
        bundle, model, config, host, port, processes, public, token_file, Workspace(work), console(False)
    )
    raise typer.Exit(code)


@serving_app.command(
    epilog="Example: quadrank replay --log served --bundle bundles/simulated/CURRENT --root data/simulated --rows 5000"
)
def replay(
    log: Annotated[Path, typer.Option("--log", help="Folder with the parts that the server wrote.")],
    bundle: BundleOption,
    rows: Annotated[
        int | None, typer.Option("--rows", help="Compute so many of the newest answers again; default: all.", min=1)
    ] = None,
    root: Annotated[
        str | None,
        typer.Option("--root", help="Folder of the raw log: the `root` of the contract; default: the current folder."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compute served features and scores again offline."""
    from pipelines.serving.replay import replay_log

    finish(replay_log(log, bundle, rows, root, console(as_json)), as_json)


@serving_app.command(epilog="Example: quadrank publish --bundle bundles/simulated/CURRENT --to models --layout triton")
def publish(
    bundle: BundleOption,
    to: Annotated[
        Path,
        typer.Option("--to", help="Folder of versions (folder), model repository (triton), or new folder (mlflow)."),
    ],
    layout: Annotated[
        str, typer.Option("--layout", help="What will read it: folder for quadrank serve, triton, or mlflow.")
    ] = "folder",
    as_json: JsonOption = False,
) -> None:
    """Write a bundle as another program takes it.

    It is loaded back and replays the golden requests before it appears."""
    from pipelines.serving.publish import publish_bundle

    finish(publish_bundle(bundle, to, layout, console(as_json)), as_json)


@items_app.callback()
def items() -> None:
    """New and changed items of a bundle."""


@items_app.command(
    "upsert",
    epilog="Example: quadrank items upsert --bundle bundles/simulated/CURRENT --items new.parquet "
    "--vectors text=new_text.parquet --vectors image=new_image.parquet",
)
def upsert(
    bundle: BundleOption,
    items_file: Annotated[
        Path, typer.Option("--items", help="Table of new and changed items, as the contract's item table is.")
    ],
    vectors: Annotated[
        list[str] | None,
        typer.Option(
            "--vectors",
            metavar="NAME=FILE",
            help="Their vectors of one set: id and vector, or .npy in the order of the items; repeatable.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="New folder; default: beside the bundle, and a pointer given to --bundle moves."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a bundle version that knows new items."""
    from pipelines.serving.upsert import upsert_files

    finish(upsert_files(bundle, items_file, vectors or [], out, console(as_json)), as_json)
