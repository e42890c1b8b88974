"""MLflow's ONNX flavor of a bundle: the graph with its signature, and the whole bundle inside the model's folder."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from shutil import copyfile
from types import SimpleNamespace
from typing import Any

import numpy as np

from ctr.export.layouts.files import copy_bundle, require_copies
from ctr.export.layouts.replay import replay_published
from ctr.export.layouts.standalone import standalone_graph
from ctr.reporting.mlflow_store import MlflowStore
from ctr.serving.bundle import MANIFEST, Bundle

# Folder names: of the flavor inside a run, and inside the flavor of the bundle that a server loads.
MODEL = "model"
BUNDLE = "bundle"


def write_flavor(bundle: Bundle, folder: Path) -> float:
    """Fill the folder of an MLflow model with a bundle, load it back by `mlflow.pyfunc` and replay the golden requests.

    Args:
        bundle: a verified one.
        folder: an empty one.

    Returns:
        The largest `logit_difference` of the replay.

    Raises:
        DataError: a file of the bundle changed while it was copied.
        NumericalError: what MLflow loads gives other scores.
    """
    save_flavor(bundle.path, folder)
    copy_bundle(bundle, folder / BUNDLE)
    copyfile(bundle.path / MANIFEST, folder / MANIFEST)  # says which run this is
    return _replayed(bundle, folder)


def replay_flavor(bundle: Bundle, folder: Path) -> float:
    """Replay the golden requests with what `write_flavor` once wrote of the bundle; result as there.

    Raises:
        DataError: a file of the bundle is gone there, or is another.
        NumericalError: what lies there gives other scores.
    """
    require_copies(bundle, bundle.manifest.files, folder / BUNDLE)
    return _replayed(bundle, folder)


def _replayed(bundle: Bundle, folder: Path) -> float:
    mlflow = MlflowStore(folder).mlflow  # without its notes; no store is opened
    return replay_published(bundle, _Predictor(mlflow.pyfunc.load_model(str(folder))))


class _Predictor:
    """A model that `mlflow.pyfunc` loaded, run as a session of ONNX Runtime is: inputs as its signature names them."""

    def __init__(self, model: Any) -> None:
        self._model = model
        schemas = model.metadata.get_input_schema(), model.metadata.get_output_schema()
        self._inputs, self._outputs = ([SimpleNamespace(name=one.name) for one in schema.inputs] for schema in schemas)

    def get_inputs(self) -> list[SimpleNamespace]:
        """Inputs, each with its `name`."""
        return self._inputs

    def get_outputs(self) -> list[SimpleNamespace]:
        """Outputs, likewise."""
        return self._outputs

    def run(self, names: None, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """All outputs, in their order."""
        answer = self._model.predict(feed)
        return [answer[node.name] for node in self._outputs]


def save_flavor(bundle: Path, folder: Path, run_id: str | None = None) -> None:
    """Write MLflow's ONNX flavor of a bundle that will lie in `folder`/bundle; tables are not copied.

    The graph is small once its tables are external, and a relative location may name a subfolder: the
    flavor's own `model.onnx` points into the bundle, so that MLflow's loader finds MLmodel beside it and
    the bundle keeps exactly the files of its manifest.
    """
    import mlflow.onnx
    from mlflow.models import Model

    graph = standalone_graph(bundle)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = f"{BUNDLE}/{entry.value}"
    signature, example = _signature(graph)
    mlflow.onnx.save_model(
        graph,
        folder,
        mlflow_model=Model(artifact_path=MODEL, run_id=run_id),
        signature=signature,
        input_example=example,
        # Given, because MLflow would load the model to find them, and its tables are not there yet.
        pip_requirements=[f"{name}=={metadata.version(name)}" for name in ("mlflow", "numpy", "onnx", "onnxruntime")],
        onnx_execution_providers=["CPUExecutionProvider"],
        onnx_session_options={"intra_op_num_threads": 1, "inter_op_num_threads": 1},
        save_as_external_data=False,
    )


def _signature(model: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """The graph's inputs and outputs as MLflow writes them, and an example of two of each named axis.

    Written by hand: inferring it from an example would turn an axis of one (the user) into any number.
    The example holds index 1, the unknown value of every table, so it is legal for each bundle.
    """
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    def described(values: Any) -> dict[str, tuple[np.dtype, list[int]]]:
        tensors = {value.name: value.type.tensor_type for value in values}
        return {
            name: (
                np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)),
                [axis.dim_value if axis.HasField("dim_value") else -1 for axis in tensor.shape.dim],
            )
            for name, tensor in tensors.items()
        }

    def schema(tensors: dict[str, tuple[np.dtype, list[int]]]) -> Any:
        return Schema([TensorSpec(dtype, tuple(shape), name) for name, (dtype, shape) in tensors.items()])

    inputs = described(model.graph.input)
    example = {
        name: np.ones([2 if size == -1 else size for size in shape], dtype) for name, (dtype, shape) in inputs.items()
    }
    return ModelSignature(schema(inputs), schema(described(model.graph.output))), example
