"""The C++ program of docs/serving.md is compiled, and scores golden requests with ONNX Runtime's library alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from rich.console import Console

from ctr.config import ModelConfig
from pipelines.serving.publish import publish_bundle
from tests.ctr.serving.shop import export
from tests.trained import built_feature_set, random_model

ROOT = Path(__file__).parent.parent
EXAMPLES, STAND_IN = ROOT / "docs" / "examples", ROOT / "tests" / "native"
REAL_HEADERS = [Path("/usr/include/onnxruntime"), Path("/usr/local/include/onnxruntime")]
LIBRARIES = sorted((Path(ort.__path__[0]) / "capi").glob("libonnxruntime.so.*"))


@pytest.fixture(scope="module")
def score(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program; built against the real header where it is installed."""
    if shutil.which("g++") is None or not LIBRARIES:
        pytest.skip("needs g++, and the library that ONNX Runtime's package for Linux brings")
    folder = tmp_path_factory.mktemp("native")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):  # what the linker looks for, and what the loader does
        (folder / name).symlink_to(LIBRARIES[0])
    headers = next((path for path in REAL_HEADERS if path.is_dir()), STAND_IN)
    subprocess.run(
        ["g++", "-std=c++17", "-Wall", "-Werror", f"-I{headers}", str(EXAMPLES / "score.cpp"), f"-L{folder}",
         "-lonnxruntime", f"-Wl,-rpath,{folder}", "-o", str(folder / "score")],
        check=True,
    )  # fmt: skip
    return folder / "score"


def test_the_program_gives_the_golden_scores(score: Path, tmp_path: Path) -> None:
    feature_set = built_feature_set(tmp_path)
    model = random_model(feature_set, ModelConfig(embedding_dim=4, attention_dim=4, match_features=True), seed=4)
    bundle = export(model, feature_set, tmp_path / "bundle").path
    publish_bundle(bundle, tmp_path / "models", "triton", Console(quiet=True))
    cases = {case["name"]: case for case in json.loads((bundle / "golden.json").read_text())["cases"]}
    # With the numbers that are missing (nan), and without one event.
    for name in ("logged", "no history", "candidates alone", "unknown user, history item and candidate"):
        (tmp_path / "request.json").write_text(json.dumps(cases[name]["request"]))
        encoded = subprocess.run(
            [sys.executable, str(EXAMPLES / "encode.py"), str(bundle), str(tmp_path / "request.json")],
            cwd=ROOT, env={"PYTHONPATH": str(ROOT), "PATH": ""}, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        found = subprocess.run(
            [str(score), str(tmp_path / "models" / "shop" / "1" / "model.onnx")],
            input=encoded, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        np.testing.assert_allclose([float(line) for line in found.split()], cases[name]["scores"], rtol=1e-5, atol=1e-6)
