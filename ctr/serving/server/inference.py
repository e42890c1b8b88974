"""The Open Inference Protocol (KServe v2) over the encoded inputs of a bundle's graph: health, metadata, infer."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from ctr.serving.ranker import Ranker
from features.errors import ConfigError

DATATYPES: dict[str, np.dtype[Any]] = {"INT64": np.dtype(np.int64), "FP32": np.dtype(np.float32)}
NAMES = {dtype: name for name, dtype in DATATYPES.items()}
DIGITS = 9  # of a length in a header
BINARY = "inference-header-content-length"  # header of the binary extension: bytes of JSON before the tensors


def whole_number(text: str) -> int | None:
    """What a header says, up to 9 digits; None where it says no such number. `isdigit` alone is true of ² and ٣."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= DIGITS else None


def header_length(header: str | None) -> int | None:
    """Bytes of JSON before the tensors; None where the body is JSON alone.

    Raises:
        ConfigError: it is no number of bytes.
    """
    if header is None:
        return None
    length = whole_number(header)
    if length is None:
        raise ConfigError(f"{BINARY}: expected a number of bytes, e.g. 512.")
    return length


def metadata(ranker: Ranker) -> dict[str, Any]:
    """Names, types and shapes of the graph's inputs and outputs; an axis of any length is -1."""
    return {
        "name": ranker.bundle.manifest.name,
        "versions": [ranker.model_version],
        "platform": "onnxruntime_onnx",
        "inputs": [_tensor(node) for node in ranker.inputs],
        "outputs": [_tensor(node) for node in ranker.outputs],
    }


def infer(ranker: Ranker, body: bytes, header_length: int | None) -> tuple[bytes, int | None]:
    """Scores of encoded inputs, as JSON or as JSON followed by bytes; the length of the JSON where bytes follow.

    Raises:
        ConfigError: malformed request; an input that is missing, of another type or shape, outside its table, or longer
            than the ranker's limits.
    """
    try:
        request = msgspec.json.decode(body if header_length is None else body[:header_length])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"body: not valid JSON: {error}.") from None
    if not isinstance(request, dict) or not isinstance(request.get("inputs"), list):
        raise ConfigError("body: needs `inputs`, a list of tensors; GET /v2/models/NAME names them.")
    lengths = {"candidate_": ranker.limits.max_candidates, "history_": ranker.limits.max_history}
    feed = _feed(request["inputs"], body[header_length:] if header_length is not None else b"", lengths)
    scores = ranker.run(feed)
    asked = request.get("outputs") or []
    if not isinstance(asked, list) or not all(isinstance(entry, dict) for entry in asked):
        raise ConfigError("outputs: expected a list of objects with `name`. Leave it out for all outputs.")
    wanted = [str(entry.get("name")) for entry in asked] or list(scores)
    unknown = [name for name in wanted if name not in scores]
    if unknown:
        raise ConfigError(f"outputs: the model has no output {unknown[0]!r}, but {', '.join(scores)}.")
    binary = bool(_parameters(request).get("binary_data_output")) or any(
        _parameters(entry).get("binary_data") for entry in asked
    )
    outputs, tail = [], b""
    for name in wanted:
        values = np.ascontiguousarray(scores[name])
        output: dict[str, Any] = {"name": name, "datatype": NAMES[values.dtype], "shape": list(values.shape)}
        if binary:
            output["parameters"] = {"binary_data_size": values.nbytes}
            tail += values.tobytes()
        else:
            output["data"] = values.ravel().tolist()
        outputs.append(output)
    answer = {"model_name": ranker.bundle.manifest.name, "model_version": ranker.model_version, "outputs": outputs}
    if request.get("id") is not None:
        answer["id"] = str(request["id"])
    head = msgspec.json.encode(answer)
    return (head + tail, len(head)) if binary else (head, None)


def _feed(inputs: list[Any], tail: bytes, lengths: dict[str, int]) -> dict[str, np.ndarray]:
    """Tensors by name; those whose name begins with a key of `lengths` have at most so many entries."""
    feed: dict[str, np.ndarray] = {}
    for i, entry in enumerate(inputs):
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise ConfigError(f"inputs[{i}]: needs `name`, `datatype`, `shape` and `data`.")
        name, dtype = str(entry["name"]), DATATYPES.get(str(entry.get("datatype")))
        shape: Any = entry.get("shape")
        if name in feed:
            raise ConfigError(f"inputs[{i}] {name!r}: is given twice. Send each input once.")
        if dtype is None:
            raise ConfigError(f"inputs[{i}].datatype: {entry.get('datatype')!r} is none of {', '.join(DATATYPES)}.")
        if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**31 for n in shape):
            raise ConfigError(f"inputs[{i}].shape: expected a list of lengths, got {shape!r}.")
        for kind, most in lengths.items():
            if name.startswith(kind) and shape and shape[0] > most:
                raise ConfigError(
                    f"inputs[{i}] {name!r}: {shape[0]} entries, at most {most} are allowed. Send fewer or raise "
                    "the limit."
                )
        size: Any = _parameters(entry).get("binary_data_size")
        try:
            if size is not None:
                values, tail = np.frombuffer(tail[:size], dtype), tail[size:]
            else:
                values = _given(entry.get("data"), dtype)
            feed[name] = values.reshape(shape)
        except (ValueError, TypeError, OverflowError) as error:
            raise ConfigError(f"inputs[{i}] {name!r}: does not hold {shape} of {entry['datatype']}: {error}.") from None
    if tail:
        raise ConfigError(
            f"body: {len(tail)} bytes more than the inputs' `binary_data_size` name. Compare sizes and data."
        )
    return feed


def _given(data: Any, dtype: np.dtype[Any]) -> np.ndarray:
    """Numbers of a JSON list, flat; None is a missing number. Raises ValueError for what the type does not hold."""
    flat = np.array(data, object).ravel().tolist()
    kinds = {int} if dtype.kind == "i" else {int, float, type(None)}
    wrong = [value for value in flat if type(value) not in kinds]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is no such number")
    with np.errstate(over="ignore"):  # what single precision does not hold is infinite, and refused by the ranker
        return np.array(flat, dtype)


def _parameters(entry: dict[str, Any]) -> dict[str, Any]:
    given = entry.get("parameters")
    return given if isinstance(given, dict) else {}


def _tensor(node: Any) -> dict[str, Any]:
    datatype = {"tensor(int64)": "INT64", "tensor(float)": "FP32"}[node.type]
    return {"name": node.name, "datatype": datatype, "shape": [n if isinstance(n, int) else -1 for n in node.shape]}
