"""Report sections on the inside of the model: its calibration, the gates of its vectors, examples of its attention."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ctr.data.feature_tables import frozen_tables
from ctr.diagnosis.occlusion import explain
from ctr.export.golden_requests import chosen_rows, logged_request
from ctr.export.logged_list import LoggedRow
from ctr.model.click_model import ClickModel
from features.encoding.encoder import Encoder
from features.store.feature_set import FeatureSet
from features.store.schema import FIRST_VALUE
from pipelines.inspect.explain import in_raw_ids
from pipelines.job.fitting import CALIBRATION
from pipelines.report.page import Section
from pipelines.report.parts import grouped_table, remark, table

QUANTILES = (0.05, 0.5, 0.95)
EXAMPLES, FIELDS_SHOWN = 4, 6


def model_sections(model: ClickModel, feature_set: FeatureSet, run_dir: Path) -> list[Section]:
    """The sections that this model has: not every model has gates, or weighs its history."""
    found = [_calibration(run_dir), _gates(model, feature_set), _examples(model, feature_set)]
    return [section for section in found if section is not None]


def _calibration(run_dir: Path) -> Section | None:
    path = run_dir / CALIBRATION
    if not path.is_file():
        return None
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        [name, *(f"{record[moment][key]:.4f}" if key in record[moment] else "" for key in ("log_loss", "ece"))]
        for moment, name in (("before", "as trained"), ("after", "calibrated on other users' rows"))
    ]
    return Section(
        "Calibration before and after",
        f"What {record['method']} calibration changes on validation rows that it was not fitted on.",
        table(["scores", "log loss", "ECE"], rows)
        + remark(
            "For this table, each half of the users is calibrated on the other half; the model's own curve is fitted "
            "on all of them. The reliability diagram above shows the evaluation rows after calibration."
        ),
    )


@torch.inference_mode()
def _gates(model: ClickModel, feature_set: FeatureSet) -> Section | None:
    gates_IM = model.gates(torch.arange(FIRST_VALUE, feature_set.schema.items))
    if gates_IM is None:
        return None
    rows = []
    for place, vectors in enumerate(feature_set.schema.vectors):
        present_I = torch.from_numpy(feature_set.present(vectors.name)[FIRST_VALUE:].copy())
        has, lacks = gates_IM[present_I, place], gates_IM[~present_I, place]
        quantiles = torch.quantile(has, torch.tensor(QUANTILES)).tolist() if len(has) else [float("nan")] * 3
        rows.append(
            [vectors.name, *(f"{value:.2f}" for value in quantiles), f"{lacks.mean():.2f}" if len(lacks) else ""]
        )
    return Section(
        "Gates of the vector sets",
        "The weight of each item's vectors, from 0 (ignored) over 1 (unchanged) to 2.",
        table(["set", "5 % of items below", "median", "95 % below", "mean where the vector is missing"], rows),
    )


def _examples(model: ClickModel, feature_set: FeatureSet) -> Section | None:
    encoder, tables = Encoder.load(feature_set.path), frozen_tables(feature_set)
    groups: dict[str, list[list[str]]] = {}
    for row in chosen_rows(feature_set)[-EXAMPLES:]:
        request = logged_request(feature_set, row, _target(feature_set, row))
        (explanation,) = explain(model, tables, request)
        history = tuple(encoder.items.value(item) for item in request.history_item)
        content = in_raw_ids(explanation, history, encoder, feature_set)
        if not content["past"]:
            continue
        parts = ", ".join(
            f"{name} {value:+.2f}" for name, value in list(content["contributions"].items())[:FIELDS_SHOWN]
        )
        about = f" ({', '.join(content['tags'][:4])})" if content["tags"] else ""
        title = f"item {content['item']}{about}, score {content['score']:.3f}; adds to the logit: {parts}"
        groups[title] = [
            [f"item {past['item']}", str(past["events_ago"]), f"{past['weight']:.3f}", ", ".join(past["shared"])]
            for past in content["past"]
        ]
    if not groups:
        return None
    return Section(
        "Past items behind a score",
        "Logged rows: the past items with the largest weights in the target's score, and the tags they share with it.",
        grouped_table(["past item", "events ago", "weight", "shared tags"], groups),
    )


def _target(feature_set: FeatureSet, row: LoggedRow) -> Any:
    return feature_set.rows("test")[row.part]["item"][row.index : row.index + 1].astype("int64")
