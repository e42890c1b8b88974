"""MODEL_CARD.md of a bundle: its purpose, data, metrics, request fields, an example call and its limits."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from ctr.serving.bundle import BundleMetadata, GoldenRequest
from features.contract.columns import ColumnSpec
from features.contract.contract import Contract
from features.contract.labels import LABEL_NAMES
from features.store.schema import Schema

# Report columns, in reading order; a metric that was not measured has no column.
METRICS = (
    "auc",
    "auc_low",
    "auc_high",
    "gauc_by_samples",
    "log_loss",
    "normalized_entropy",
    "calibration_ratio",
    "ece",
)


def model_card(metadata: BundleMetadata, contract: Contract, schema: Schema, example: GoldenRequest) -> str:
    """The card as Markdown.

    Args:
        metadata: of the bundle.
        contract: names the fields of a request.
        schema: of the feature set that the model was trained on.
        example: a golden request, shown with its scores.
    """
    sections = [
        f"# {metadata.name}: click-through-rate ranker {metadata.model_version}",
        _purpose(metadata, schema),
        "## Data",
        _data(metadata, contract),
        "## Measured",
        _measured(metadata),
        *_variants(metadata),
        "## Fields",
        _fields(metadata, contract, schema),
        "## Call it",
        _call(metadata, example),
        "## Limits",
        _limits(metadata, contract, schema),
        "## Graph inputs",
        _inputs(metadata),
    ]
    return "\n\n".join(sections) + "\n"


def _purpose(metadata: BundleMetadata, schema: Schema) -> str:
    given = "a user and a context: it reads no history"
    if _reads_history(metadata):
        given = f"a user, a context and the newest {schema.history_max_len} items of the user's history"
    return (
        f"Scores the candidates of one request with the probability of a positive label, given {given}.\n\n"
        f"Architecture `{metadata.architecture}`, exported {metadata.created} from git revision "
        f"`{metadata.git_revision}`."
    )


def _reads_history(metadata: BundleMetadata) -> bool:
    return "history_item" in metadata.inputs


def _data(metadata: BundleMetadata, contract: Contract) -> str:
    windows = metadata.windows.items()
    rows = [[name, f"{w.rows:,}", f"{w.positives / max(w.rows, 1):.2%}"] for name, w in windows]
    head = ["split", "rows", "positive"]
    if contract.interactions.time is not None:
        head += ["from (UTC)", "to (UTC)"]
        rows = [[*row, _day(w.first_time), _day(w.last_time)] for row, (_, w) in zip(rows, windows, strict=True)]
    table = _table(head, rows)
    return (
        f"{table}\n\nFeature set `{metadata.feature_set}`, data contract `{metadata.fingerprint[:16]}`."
        f"{_lineage(metadata)}"
    )


def _lineage(metadata: BundleMetadata) -> str:
    """What its training went on from, where that was not nothing."""
    if metadata.warm_started_from is None:
        return ""
    return (
        f"\n\nIts training went on from the weights of run `{metadata.warm_started_from}`, over the rows since then "
        f"and a share of the older ones: warm start number {metadata.generation} since the last full training."
    )


def _measured(metadata: BundleMetadata) -> str:
    measured = {f"model, {split}": values for split, values in metadata.metrics.items()}
    for name, values in metadata.controls.items():
        elsewhere = values.get("run_id", metadata.model_version) != metadata.model_version
        measured[f"control: {name}" + (f", of run {values['run_id']}" if elsewhere else "")] = values
    columns = [name for name in METRICS if any(name in values for values in measured.values())]
    if not columns:
        return "No metrics were recorded at export."
    rows = ([name, *(_number(values.get(column)) for column in columns)] for name, values in measured.items())
    return _table(("", *columns), rows)


def _variants(metadata: BundleMetadata) -> list[str]:
    """What was tried where the graph is not the one of single precision alone."""
    if not metadata.variants:
        return []
    rows = (
        (
            f"**{name}**" if name == metadata.variant else name,
            f"{trial['auc']:.4f}",
            f"{trial['auc_loss']:.5f}",
            f"{trial['milliseconds'] / metadata.variants['fp32']['milliseconds']:.2f}",
            f"{trial['mib']:.1f}",
        )
        for name, trial in metadata.variants.items()
    )
    scored = int(metadata.variants["fp32"]["rows"])
    return [
        "## Variant",
        _table(("variant", "valid AUC", "AUC lost", "time of a request, fp32 = 1", "MiB"), rows),
        f"The graph is `{metadata.variant}`. On {scored:,} validation rows; times of a request of 500 candidates, one "
        "thread. The metrics above are those of the trained model.",
    ]


def _fields(metadata: BundleMetadata, contract: Contract, schema: Schema) -> str:
    events = ", ".join(f"`{field.name}`" for field in schema.event)
    with_events = f', or `{{"item": id, …}}` with any of {events}' if events else ""
    context = contract.context_columns
    rows: list[tuple[str, str]] = [("`user`", f"a `{contract.user_field}`, or null")]
    if contract.users:
        named = ", ".join(f"`{name}`" for name in contract.users.columns)
        rows.append(("`user_columns`", f"optional, instead of the user table's row: {named}"))
    rows += [(f"`context.{name}`", _context(column, name in contract.counters)) for name, column in context.items()]
    raw = ""
    if contract.interactions.time is not None:
        rows.append(("`time`", "of the request, as the log has times; now where a request gives none"))
        raw = (
            f'events as the log has them, in any order: `{{"item": id, "time": …, …}}`{_read_of_events(contract)}; or '
        )
    unread = "" if _reads_history(metadata) else "not read by this model, and may be left out: "
    rows.append(("`history`", f"{unread}{raw}`{contract.item_field}`s, oldest first{with_events}"))
    counters = ", ".join(f"`{name}`" for name in contract.candidate_columns)
    fresher = f', or `{{"item": id, …}}` with fresher values of any of {counters}' if counters else ""
    rows.append(("`candidates`", f"`{contract.item_field}`s to score, at least one{fresher}"))
    return _table(("in a request", "what"), rows)


def _read_of_events(contract: Contract) -> str:
    """What the contract reads of raw events: columns of the log, and expressions over some."""
    log, history = contract.interactions, contract.history
    texts = [spec.source or name for name, spec in history.columns.items() if spec.type not in ("gap", "residual")]
    texts += [history.events] if history.events != "all" else []
    texts += ["label" for spec in history.columns.values() if spec.type == "residual"]
    texts = [(log.label or "clicked") if text in LABEL_NAMES else text for text in texts]
    read = ", ".join(f"`{text}`" for text in dict.fromkeys(texts) if text != log.time)
    return f" (read of the log's columns: {read})" if read else ""


def _context(column: ColumnSpec, counted: bool) -> str:
    kind = {"number": "a number", "time": "a time"}.get(column.form, "a category")
    given = getattr(column, "default", None)
    default = "as the log ended" if counted else "missing" if given is None else f"`{given}`"
    return f"{kind}; {default} where a request gives none"


def _call(metadata: BundleMetadata, example: GoldenRequest) -> str:
    candidates = [entry["item"] if isinstance(entry, dict) else entry for entry in example.request["candidates"]]
    order = sorted(range(len(candidates)), key=lambda i: -example.scores[i])
    tasks = [{name: round(scores[i], 6) for name, scores in example.tasks.items()} for i in range(len(candidates))]
    ranked = [
        {"item": candidates[i], "score": round(example.scores[i], 6)} | ({"tasks": tasks[i]} if tasks[i] else {})
        for i in order
    ]
    answer = {"model_version": metadata.model_version, "ranked": ranked}
    return (
        f"`quadrank rank --bundle . --request request.json` with\n\n```json\n{_one_key_a_line(example.request)}\n"
        f"```\n\nanswers{_but_for_rounding(metadata)}\n\n```json\n{_one_key_a_line(answer)}\n```\n\n"
        'In Python: `Ranker.load(Path("bundle")).rank(request)` from `ctr.serving.ranker`, which needs no torch.'
    )


def _limits(metadata: BundleMetadata, contract: Contract, schema: Schema) -> str:
    reads = _reads_history(metadata)
    lines = [
        *_dependence(metadata, contract),
        *_drawn_negatives(contract),
        *_learned_vectors(metadata, contract),
        f"- It knows {schema.items - 2:,} items and {schema.users - 2:,} users. Other ids are legal: they "
        "are scored as the unknown item or user, and the answer names them.",
        *[f"- Of a longer history, the newest {schema.history_max_len} items are read."] * reads,
        _repeatable(metadata),
        "- The log was recorded under one ranking policy. Clicks carry its position and exposure bias, so a score "
        "says little about items that this policy did not show.",
        "- Negative ids must never reach the graph: ONNX Runtime reads row -1 as the last row without an "
        "error. `ctr.serving.ranker` refuses such rows.",
        *["- An empty history is an array of length 0."] * reads,
    ]
    return "\n".join(lines)


def _but_for_rounding(metadata: BundleMetadata) -> str:
    """What sets the scores of a variant apart from the recorded ones, which are the trained model's."""
    return "" if metadata.variant == "fp32" else f", but for the rounding of `{metadata.variant}`"


def _repeatable(metadata: BundleMetadata) -> str:
    if metadata.variant == "fp32":
        return "- Scores repeat within 1e-5, not to the last bit."
    return (
        f"- Scores are those of the trained model{_but_for_rounding(metadata).removeprefix(',')}: those of the golden "
        "requests within the `tolerance` of `golden.json`."
    )


def _dependence(metadata: BundleMetadata, contract: Contract) -> list[str]:
    """That a score depends on the other candidates, where it does."""
    names, sizes = ", ".join(f"`{column.name}`" for column in contract.relative_columns), metadata.list_sizes
    if sizes is None:
        return []
    return [
        f"- **A candidate's score depends on the other candidates of its request**: {names} compare them. Send the "
        "list that is shown, whole and at once. Scores of two requests, or of parts of a list, cannot be compared.",
        f"- Requests of its training had {sizes.least:,} to {sizes.greatest:,} candidates (98 % of them {sizes.low:,} "
        f"to {sizes.high:,}). An answer to fewer or more says so under `unusual`.",
    ]


def _drawn_negatives(contract: Contract) -> list[str]:
    """What a score means where the log had no negatives, and the shares and metrics of the card are of drawn ones."""
    negatives = contract.interactions.negatives
    if negatives is None:
        return []
    meaning = "Drawn in proportion to popularity, they stand for no log: scores rank, and are no rates."
    if negatives.how == "uniform":
        meaning = "A score is the rate among all items that could have been drawn, which is lower."
    return [
        f"- The log has positives alone. {negatives.per_positive} negatives were drawn for each, and the shares of "
        f"positives and the metrics above are of these rows. {meaning}"
    ]


def _learned_vectors(metadata: BundleMetadata, contract: Contract) -> list[str]:
    """What vectors that are learned know nothing of."""
    if not contract.learned_sets:
        return []
    window = metadata.windows["train"]
    until = {"history": f"up to {_day(window.last_time)}", "tables": f"before {_day(window.first_time)}"}
    return [
        f"- Vectors of {', '.join(names)} were learned from what users saw {until[source]}: an item that came later "
        "has none."
        for source in until
        if (names := [f"`{name}`" for name, spec in contract.learned_sets.items() if spec.learn == source])
    ]


def _inputs(metadata: BundleMetadata) -> str:
    rows = ((f"`{name}`", "[" + ", ".join(map(str, shape)) + "]") for name, shape in metadata.inputs.items())
    return _table(("`ranker.onnx`", "shape"), rows)


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(header)
    # An expression of the contract may hold a |, which would end its cell.
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _one_key_a_line(content: Mapping[str, Any]) -> str:
    lines = (f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in content.items())
    return "{\n" + ",\n".join(lines) + "\n}"


def _number(value: Any) -> str:
    return "" if value is None or isinstance(value, Mapping) else f"{value:.4f}"


def _day(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / 1e6, tz=UTC).strftime("%Y-%m-%d %H:%M")
