"""The time of a ranking request in the exported graph, without its encoding."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from ctr.config import ModelConfig
from ctr.data.feature_tables import frozen_tables
from ctr.export.onnx_export import export_request_graph
from ctr.export.parity import random_requests
from ctr.export.row_request import RowRequest
from ctr.export.serving_graph import RequestGraph
from ctr.model.click_model import ClickModel
from ctr.serving.bundle import RANKER
from ctr.serving.ranker import graph_inputs, open_session
from ctr.training.checkpoint import MODEL
from features.store.feature_set import FeatureSet

CANDIDATES, REQUESTS, WARMUP = 100, 60, 10


def rank_latency(config: ModelConfig, run: Path, feature_set: FeatureSet) -> float:
    """Median milliseconds to score 100 candidates with a full history, one thread, through ONNX Runtime.

    Args:
        config: of the model.
        run: folder of its weights.
        feature_set: it was trained on.
    """
    model = ClickModel(config, feature_set.schema)
    model.attach(frozen_tables(feature_set))
    model.load_state_dict(load_file(run / MODEL))
    graph, schema = RequestGraph(model.eval()), feature_set.schema
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / RANKER
        export_request_graph(graph, schema, path)
        session = open_session(path)
        requests = (_full(request, schema.history_max_len) for request in random_requests(schema, REQUESTS))
        feeds = [graph_inputs(request.encoded(schema, feature_set.users)) for request in requests]
        taken = []
        for feed in feeds:
            inputs = {name: feed[name] for name in graph.input_names}
            started = time.perf_counter()
            session.run(["score"], inputs)
            taken.append(time.perf_counter() - started)
    return float(np.median(taken[WARMUP:]) * 1e3)


def _full(request: RowRequest, length: int) -> RowRequest:
    """The request with a full history and 100 candidates, by repeating its own."""
    candidates = np.resize(np.arange(len(request.candidate_item)), CANDIDATES)
    events = len(request.history_item)
    places = np.resize(np.arange(events), length if events else 0)
    return RowRequest(
        user=request.user,
        history_item=request.history_item[places],
        candidate_item=request.candidate_item[candidates],
        context=request.context,
        history_events={name: values[places] for name, values in request.history_events.items()},
        candidate={name: values[candidates] for name, values in request.candidate.items()},
    )
