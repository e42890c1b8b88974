"""`explain`: what the scores of a request's best candidates are made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ctr.data.feature_tables import frozen_tables
from ctr.diagnosis.occlusion import Explanation, explain
from ctr.export.export_bundle import for_serving
from ctr.export.row_request import RowRequest
from features.encoding.encoder import Encoder
from features.encoding.request import Request, parse_request
from features.errors import ConfigError
from features.requests.past_columns import RequestEncoder
from features.store.feature_set import FeatureSet
from features.store.schema import FIRST_VALUE, UNKNOWN
from pipelines.job.load_run import load_run
from pipelines.workspace import Workspace

PAST_SHOWN, FIELDS_SHOWN = 5, 8


def explain_request(run_id: str, path: Path, top: int, workspace: Workspace, console: Console) -> dict[str, Any]:
    """Score a request with the model of a run, and print the past items and fields behind the best candidates' scores.

    The scores are those that the run's bundle serves: where negatives were drawn, probabilities in the whole log.

    Args:
        run_id: of a finished run, or `latest`.
        path: the request, JSON as `quadrank rank` takes it.
        top: number of candidates that are explained.
        workspace: where the run is.
        console: where messages are printed.

    Raises:
        ConfigError: no such run or file, or a malformed request, or one that replaces user columns.
    """
    run_dir, model, feature_set = load_run(run_id, workspace)
    encoder = Encoder.load(feature_set.path)
    request = _read(path, encoder)
    encoded = RequestEncoder(encoder).encode(request)
    by_rows = RowRequest.of_encoded(encoded, UNKNOWN if request.user is None else encoder.users.index(request.user))
    model = for_serving(model, feature_set.manifest.sampling)
    explanations = explain(model, frozen_tables(feature_set), by_rows)
    found = sorted(zip(request.candidates, explanations, strict=True), key=lambda pair: -pair[1].score)[:top]
    # A new item has no row that would name it.
    payload = [in_raw_ids(one, encoded.history, encoder, feature_set) | {"item": item} for item, one in found]
    for explanation in payload:
        _print(explanation, console)
    return {"status": "done", "exit_code": 0, "run_id": run_dir.name, "explained": payload}


def _read(path: Path, encoder: Encoder) -> Request:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}. Write it as `quadrank rank` takes it.") from None
    request = parse_request(raw, encoder.contract)
    if request.user_columns:
        raise ConfigError(
            f"{path}: user_columns: an explanation reads the columns of the user from the feature set. Leave them out."
        )
    return request


def in_raw_ids(
    explanation: Explanation, history: tuple[Any, ...], encoder: Encoder, feature_set: FeatureSet
) -> dict[str, Any]:
    """An explanation with raw ids, values and tags."""
    tags = _tags(explanation.item, encoder, feature_set)
    past = []
    for place, weight in explanation.past[:PAST_SHOWN]:
        row = encoder.items.index(history[place])
        shared = sorted(tags & _tags(row, encoder, feature_set))
        past.append(
            {"item": history[place], "events_ago": len(history) - 1 - place, "weight": weight, "shared": shared}
        )
    by_size = sorted(explanation.contributions.items(), key=lambda entry: -abs(entry[1]))
    return {
        "item": encoder.items.value(explanation.item) if explanation.item >= FIRST_VALUE else None,
        "score": explanation.score,
        "tags": sorted(tags),
        "past": past,
        "contributions": dict(by_size[:FIELDS_SHOWN]),
    }


def _tags(row: int, encoder: Encoder, feature_set: FeatureSet) -> set[str]:
    """Raw tags and categories of an item, without its id."""
    found: set[str] = set()
    for field in feature_set.schema.item[1:]:
        if field.kind == "numeric":
            continue
        index = feature_set.items[field.name][row]
        if field.name not in encoder.item:  # a semantic id has a number alone
            found |= {f"{field.name} {index - FIRST_VALUE}"} if index >= FIRST_VALUE else set()
            continue
        value = encoder.item[field.name].raw_value(index)
        if value is None and field.kind == "categorical" and index >= FIRST_VALUE:
            value = f"{field.name} {index - FIRST_VALUE}"  # a hash without an example
        values = value if isinstance(value, list) else [value]
        found |= {str(tag) for tag in values if tag is not None}
    return found


def _print(explained: dict[str, Any], console: Console) -> None:
    about = f" ({', '.join(explained['tags'][:6])})" if explained["tags"] else ""
    console.print(f"\nitem {explained['item']}{about}: {explained['score']:.4f}", style="bold")
    if explained["past"]:
        table = Table("past item", "events ago", "weight", "shared", title_justify="left")
        for past in explained["past"]:
            table.add_row(
                str(past["item"]), str(past["events_ago"]), f"{past['weight']:.3f}", ", ".join(past["shared"])
            )
        console.print(table)
    parts = ", ".join(f"{name} {value:+.2f}" for name, value in explained["contributions"].items())
    console.print(f"  adds to the logit: {parts}")
