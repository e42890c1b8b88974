"""`quadrank bench rank` at toy sizes, what is measured called in this process."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnxruntime import InferenceSession

from benchmarks import bench_rank
from benchmarks.bench_rank import RankBench
from benchmarks.harness.measured import Measured
from benchmarks.jobs import rank, rank_peers
from benchmarks.jobs.rank import alternate, calls_of_bundle, quantiles
from ctr.serving.ranker import open_session
from features.errors import ConfigError
from pipelines.cli.commands import main
from tests import dummy_wheels

SIZES = {"embedding_dim": 4, "vector_dim": 4, "attention_dim": 8, "layers": 1, "rows": 2}


def call(target: str, **arguments: Any) -> Measured:
    """As `measure`, in this process."""
    module, _, name = target.partition(":")
    result = getattr(import_module(module), name)(**arguments)
    return Measured(1.0, 100.0, json.loads(json.dumps(result)))


@pytest.mark.slow
def test_ways_are_timed_beside_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench_rank, "measure", call)
    monkeypatch.setattr(bench_rank, "USERS_A_LOG", 20)

    def not_here(site: Path) -> Path:
        raise ConfigError("no such package here")

    monkeypatch.setattr(rank_peers, "install", not_here)
    said: list[str] = []
    settings = RankBench(3_000, 200, 8, (3, 20), (1,), 0.05, True, None, SIZES)
    level = logging.getLogger("torch.onnx").level
    report = bench_rank.run(tmp_path, said.append, settings)
    assert logging.getLogger("torch.onnx").level == level
    names = [row["name"] for row in report.results if row["candidates"] == 3]
    assert names == [
        "QIN", "QIN, parse, encode and respond", "QIN, from JSON to JSON",
        "QIN int8", "QIN int8, parse, encode and respond", "QIN int8, from JSON to JSON",
        "QIN+", "QIN+, parse, encode and respond", "QIN+, from JSON to JSON",
        "QIN+ int8", "QIN+ int8, parse, encode and respond", "QIN+ int8, from JSON to JSON",
        "torch, QIN", "literal QIN",
        "QIN, parse, encode and respond, warm", "QIN int8, parse, encode and respond, warm",
        "QIN+, parse, encode and respond, warm", "QIN+ int8, parse, encode and respond, warm",
    ]  # fmt: skip
    assert any(line.startswith("torch-rechub DIN and boosting are left out: no such package") for line in said)
    # Widths of 4: two levels, an item of id, tags and vector, and as wide an interest: what the literal equations read.
    assert any(line.startswith("QIN: ") and "a tower 32 wide" in line for line in said)
    by_name = {row["name"]: row for row in report.results if row["candidates"] == 20}
    assert all(row["p50_ms"] > 0 and row["threads"] == 1 for row in by_name.values())
    ratios = report.ratios
    over = by_name["literal QIN"]["p50_ms"] / by_name["QIN"]["p50_ms"]
    assert ratios["qin_over_literal_n20_t1"] == pytest.approx(over, abs=0.01)
    assert by_name["QIN"]["over_literal"] == pytest.approx(over)
    more = by_name["QIN+"]["p50_ms"] / by_name["QIN"]["p50_ms"]
    assert ratios["qin_plus_over_qin_time_n20_t1"] == pytest.approx(more, abs=0.01)
    assert ratios["qin_share_of_products_n20_t1"] > 0
    # Of the whole path, that row leaves out reading JSON and the model alone.
    calls = calls_of_bundle("QIN", tmp_path / "qin", 20, 1)
    monkeypatch.setattr(InferenceSession, "run", None)
    answered: Any = calls["QIN, parse, encode and respond"]()
    assert list(answered.stages) == ["encode", "model", "respond"]
    assert len(json.loads(answered.body)["ranked"]) == 20
    with pytest.raises(TypeError):
        calls["QIN, from JSON to JSON"]()


def test_calls_take_turns_and_slow_ones_are_made_five_times(monkeypatch: pytest.MonkeyPatch):
    order, now = list[str](), [0.0]

    def call_of(name: str, seconds: float) -> Callable[[], None]:
        def made() -> None:
            order.append(name)
            now[0] += seconds

        return made

    monkeypatch.setattr(rank, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    taken = alternate({"quick": call_of("q", 2**-10), "slow": call_of("s", 2**-5)}, 0.25)
    assert order[:12] == ["q", "s"] * 6  # one of each is not counted
    assert taken["slow"] == [1000 / 32] * 5
    # Five of each take 165 / 1024 s; of the 91 that a quarter of a second leaves, and one that begins at its end.
    assert taken["quick"] == [1000 / 1024] * (5 + 91 + 1)


def test_a_p99_needs_a_hundred_calls():
    assert quantiles([1.0] * 99) == {"p50_ms": 1.0, "p99_ms": None}
    assert quantiles([*range(1, 101)])["p99_ms"] == pytest.approx(99.01)


def test_the_graph_of_boosting_reads_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A stand-in for skl2onnx, which is not installed here: that its graph reads `rows` is what we add."""
    site = tmp_path / "skl2onnx"
    site.mkdir()
    (site / "__init__.py").write_text(
        "from onnx import TensorProto as T, helper as h\n"
        "def to_onnx(model, example, options, target_opset):\n"
        "    node = h.make_node('Identity', ['X'], ['Y'])\n"
        "    value = lambda name: h.make_tensor_value_info(name, T.FLOAT, [None, example.shape[1]])\n"
        "    graph = h.make_graph([node], 'g', [value('X')], [value('Y')])\n"
        "    return h.make_model(graph, opset_imports=[h.make_opsetid('', target_opset[''])], ir_version=10)\n"
    )
    monkeypatch.setattr(rank_peers, "BOOSTED_ROWS", 200)
    monkeypatch.setattr(rank_peers, "TREES", 2)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    rank_peers.boosting(str(tmp_path), str(tmp_path / "b.onnx"))
    onnx.checker.check_model(onnx.load(tmp_path / "b.onnx"))
    (node,) = open_session(tmp_path / "b.onnx").get_inputs()
    assert (node.name, node.shape[1]) == ("rows", rank_peers.BOOSTED_COLUMNS)


def test_peers_are_installed_once_and_a_failure_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wanted, index = tmp_path / "requirements.txt", tmp_path / "wheels"
    index.mkdir()
    for name in [*os.environ]:
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setattr(rank_peers, "REQUIREMENTS", wanted)
    monkeypatch.setattr(rank_peers, "ROOT", tmp_path)
    wanted.write_text("small==1.0\n")
    with pytest.raises(ConfigError, match=r"(?s)requirements\.txt cannot be installed:.*small==1\.0"):
        rank_peers.install(tmp_path / "site")
    dummy_wheels.wheel(index, "small", "1.0", {"small.py": "VERSION = 1"}, ["absent"])
    site = rank_peers.install(tmp_path / "site")
    assert (site / "small.py").read_text() == "VERSION = 1"
    # Once there, it is left alone until other versions are wanted.
    (site / "small.py").write_text("ours")
    rank_peers.install(site)
    assert (site / "small.py").read_text() == "ours"
    dummy_wheels.wheel(index, "small", "2.0", {"small.py": "VERSION = 2"})
    wanted.write_text("small==2.0\n")
    rank_peers.install(site)
    assert (site / "small.py").read_text() == "VERSION = 2"


@pytest.mark.parametrize("text", ["", "0", "1,", "a", "-1", "1.5"])
def test_sizes_that_are_no_numbers_are_refused(text: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "rank", "--candidates", text])
    assert ended.value.code == 2 and "--candidates" in capsys.readouterr().err
