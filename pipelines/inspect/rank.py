"""Score one request file with a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ctr.serving.bundle import MODEL_CARD, REQUEST
from ctr.serving.ranker import Ranker
from ctr.serving.settings import ServeConfig
from features.errors import ConfigError


def rank_file(
    path: Path, request: Path | None, config: ServeConfig, strict: bool, top: int | None, console: Console
) -> dict[str, Any]:
    """Rank the candidates of a JSON request; prints them best first and returns the JSON form.

    Args:
        path: the bundle, or a pointer to it.
        request: the file; default the example of the bundle, its `request.json`.
        config: threads and limits.
        strict: whether unknown ids, and values that the request lacks, are errors.
        top: number of best candidates to return; default all.
        console: where messages are printed.

    Raises:
        ConfigError: the file is missing, no JSON, or not a legal request of this bundle.
    """
    ranker = Ranker.load(path, config.threads, config.limits)
    bundle = ranker.bundle.path
    request = request or bundle / REQUEST
    try:
        content = json.loads(request.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{request}: no such file. {bundle / MODEL_CARD} shows a request.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{request}: not valid JSON: {error}") from None
    result = ranker.rank(content, strict=strict, top=top)
    table = Table(title=f"{len(result.ranked)} candidates, model {result.model_version}", title_justify="left")
    table.add_column("rank", justify="right")
    table.add_column("item")
    table.add_column("click probability", justify="right")
    for name in result.ranked[0].tasks if result.ranked else ():
        table.add_column(name, justify="right")
    for place, entry in enumerate(result.ranked, start=1):
        scores = (entry.score, *entry.tasks.values())
        table.add_row(str(place), str(entry.item), *(f"{score:.5f}" for score in scores))
    console.print(table)
    if result.unknown_candidates:
        shown = ", ".join(map(str, result.unknown_candidates[:5]))
        console.print(
            f"{len(result.unknown_candidates)} candidates are unknown to the bundle and scored as a new item: {shown}"
        )
    if result.missing:
        lacking = ", ".join(f"{name} ({count})" for name, count in result.missing.items())
        console.print(f"the request lacks values that the model was trained on: {lacking}")
    for part, count in result.unusual.items():
        console.print(
            f"the model compares the {part} of a request, and was trained on none of {count}: its scores may deceive"
        )
    return {"model_version": result.model_version, "ranked": [entry.as_json() for entry in result.ranked]}
