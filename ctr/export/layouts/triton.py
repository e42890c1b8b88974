"""A bundle as a model of a Triton repository: `NAME/config.pbtxt`, and the graph with its tables in `NAME/1`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from shutil import copyfile
from typing import Any

import onnx

from ctr.export.layouts.files import copy_files, require_copies
from ctr.export.layouts.replay import replay_published
from ctr.export.layouts.standalone import standalone_graph, table_files
from ctr.serving.bundle import MANIFEST, Bundle
from ctr.serving.ranker import open_session
from features.errors import DataError

CONFIG, VERSION, MODEL = "config.pbtxt", "1", "model.onnx"
TYPES = {"tensor(int64)": "TYPE_INT64", "tensor(float)": "TYPE_FP32"}


def write_triton(bundle: Bundle, folder: Path) -> float:
    """Fill the folder of one model, load it back and replay the golden requests.

    Args:
        bundle: a verified one.
        folder: an empty one, which will have the name of the model.

    Returns:
        The largest `logit_difference` of the replay.

    Raises:
        DataError: a file of the bundle changed while it was copied.
        NumericalError: what was written gives other scores.
    """
    version = folder / VERSION
    version.mkdir()
    model = standalone_graph(bundle.path)
    copy_files(bundle, table_files(model), version)
    onnx.save(model, version / MODEL)
    session = open_session(version / MODEL)
    config = config_of(bundle, session.get_inputs(), session.get_outputs())
    (folder / CONFIG).write_text(config, encoding="utf-8")
    copyfile(bundle.path / MANIFEST, folder / MANIFEST)  # says which run this is; Triton passes it over
    return replay_published(bundle, session)


def replay_triton(bundle: Bundle, folder: Path) -> float:
    """Replay the golden requests with what `write_triton` once wrote of the bundle; result as there.

    Raises:
        DataError: a file is gone, or a table is not the bundle's any more.
        NumericalError: what lies there gives other scores.
    """
    version = folder / VERSION
    require_copies(bundle, table_files(standalone_graph(bundle.path)), version)
    for file in (version / MODEL, folder / CONFIG):
        if not file.is_file():
            raise DataError(f"{file}: is gone since it was published. Remove what lies there, and publish again.")
    return replay_published(bundle, open_session(version / MODEL))


def config_of(bundle: Bundle, inputs: Sequence[Any], outputs: Sequence[Any]) -> str:
    """The text of `config.pbtxt`.

    Args:
        bundle: whose name the model has.
        inputs, outputs: of the graph, as ONNX Runtime describes them; an axis of any length has no number.
    """
    manifest = bundle.manifest
    return "\n".join(
        (
            f'name: "{manifest.name}"',
            'platform: "onnxruntime_onnx"',
            'backend: "onnxruntime"',
            # A request is one user with any number of candidates: there is no axis of requests to batch by.
            "max_batch_size: 0",
            *(_tensor("input", node) for node in inputs),
            *(_tensor("output", node) for node in outputs),
            "instance_group [ { kind: KIND_CPU count: 1 } ]",
            _parameter("model_version", manifest.model_version),
            _parameter("intra_op_thread_count", "1"),
            "",
        )
    )


def _tensor(section: str, node: Any) -> str:
    dims = ", ".join(str(axis) if isinstance(axis, int) else "-1" for axis in node.shape)
    return f'{section} [ {{ name: "{node.name}" data_type: {TYPES[node.type]} dims: [ {dims} ] }} ]'


def _parameter(name: str, value: str) -> str:
    return f'parameters {{ key: "{name}" value {{ string_value: {json.dumps(value, ensure_ascii=False)} }} }}'
