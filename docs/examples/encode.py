"""Writes a raw request as the inputs of a bundle's graph, for programs that have ONNX Runtime alone.

python docs/examples/encode.py BUNDLE REQUEST.json > encoded.txt
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ctr.serving.ranker import Ranker, graph_inputs
from features.encoding.request import parse_request


def main(bundle: str, request: str) -> None:
    """Print a line for each input: name, type, number of axes, their lengths, values."""
    ranker = Ranker.load(Path(bundle))
    parsed = parse_request(json.loads(Path(request).read_text(encoding="utf-8")), ranker.encoder.contract)
    inputs = graph_inputs(ranker.encode(parsed))
    for node in ranker.inputs:
        values = inputs[node.name]
        print(node.name, values.dtype, values.ndim, *values.shape, *values.ravel().tolist())


if __name__ == "__main__":
    main(*sys.argv[1:])
