"""`quadrank bench loader|train|accuracy` at toy sizes, what is measured called in this process."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from benchmarks import bench_accuracy, bench_loader, bench_train
from benchmarks.bench_train import TrainBench
from benchmarks.harness.measured import Measured
from benchmarks.harness.report import Report
from benchmarks.profiling import scaling, step_profile
from features.errors import ConfigError
from pipelines.cli.commands import main

SMALL = {
    "model": {"embedding_dim": 4, "vector_dim": 4, "attention_dim": 8, "layers": 2, "rows": 2},
    "train": {"device": "cpu"},
}
SIZES = {"rows": 3_000, "items": 200, "max_len": 8, "batch_size": 64}


def call(target: str, **arguments: Any) -> Measured:
    """As `measure`, in this process; FuxiCTR cannot be had."""
    module, _, name = target.partition(":")
    if module.endswith("fuxictr_peer"):
        raise ConfigError("no such package here")
    result = getattr(import_module(module), name)(**arguments)
    return Measured(1.0, 100.0, json.loads(json.dumps(result)))


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (bench_train, bench_loader, bench_accuracy, scaling, step_profile):
        monkeypatch.setattr(module, "measure", call)


def test_training_beside_the_literal_equations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    shares: list[float] = []
    share_of = step_profile.share_of_roofline

    def recorded(turns: list[tuple[dict[str, float], float]]) -> float:
        """The share of these turns: of steps as short as here, it varies too much to be foretold."""
        assert len(turns) == step_profile.STEPS
        shares.append(share_of(turns))
        return shares[-1]

    monkeypatch.setattr(step_profile, "share_of_roofline", recorded)
    options: dict[str, Any] = {"steps": 2, "repeats": 2, "venv": None, "with_profile": True, "with_scaling": False}
    settings = TrainBench(**SIZES, **options, peers=True, half=True, preset=SMALL)
    report = bench_train.run(tmp_path, said.append, settings)
    by_name = {result["name"]: result for result in report.results}
    assert list(by_name) == ["literal", "ours_fp32", "ours_fp32_merged", "ours_bf16", "ours_bf16_merged"]
    assert any(line.startswith("fuxictr_din is left out: no such package") for line in said)
    assert all(len(result["all_rows_per_s"]) == 2 and result["rows_per_s"] > 0 for result in report.results)
    # Merged, each of two layers of width 32 has one row of 32 x 32 + 32 less.
    assert by_name["ours_fp32"]["parameters"] - by_name["ours_bf16_merged"]["parameters"] == 2 * (32 * 32 + 32)
    # That both compute the same is shown by test_literal_qin, from equal weights; here each starts from its own.
    losses = {name: result["loss"] for name, result in by_name.items()}
    # The same start and the same rows in another precision, and in another form of the same product.
    assert losses["ours_bf16"] == pytest.approx(losses["ours_fp32"], abs=0.01)
    speeds = by_name["ours_fp32"]["rows_per_s"] / by_name["literal"]["rows_per_s"]
    assert report.ratios["ours_fp32_over_literal"] == pytest.approx(speeds, abs=0.01)

    (section,) = report.sections
    for way in ("fp32", "bf16", "bf16_merged"):
        parts = {row["name"]: row for row in section.results if row["name"].startswith(f"{way}: ")}
        names = [name.removeprefix(f"{way}: ") for name in parts]
        assert names == [
            "quadratic",
            "attention",
            "items",
            "optimizer",
            "loader",
            "other",
            "step, without the profiler",
        ]
        assert all(row["ms"] > 0 for name, row in parts.items() if not name.endswith("loader"))
    assert all(share > 0 for share in shares)
    ratios = [report.ratios[f"share_of_roofline_{way}"] for way in ("fp32", "bf16", "bf16_merged")]
    assert ratios == [round(share, 3) for share in shares]
    assert "where a step's time goes" in report.markdown()


def test_a_peer_that_fails_otherwise_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def failing(target: str, **arguments: Any) -> Measured:
        if target.startswith("benchmarks.jobs.literal:"):
            raise ConfigError("killed")
        return call(target, **arguments)

    monkeypatch.setattr(bench_train, "measure", failing)
    options: dict[str, Any] = {"steps": 1, "repeats": 1, "venv": None, "with_profile": False, "with_scaling": False}
    with pytest.raises(ConfigError, match="killed"):
        bench_train.run(tmp_path, print, TrainBench(**SIZES, **options, peers=True, half=True, preset=SMALL))


def test_growth_varies_one_size_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scaling, "USUAL_ITEMS", 200)
    section = scaling.scaling(tmp_path, print, SMALL, batch_sizes=[32, 64], lengths=[4, 8], items=[100, 300])
    assert [(row["name"], row["batch_size"], row["max_len"], row["items"]) for row in section.results] == [
        ("batch_size", 32, 64, 200),
        ("batch_size", 64, 64, 200),
        ("max_len", 2048, 4, 200),
        ("max_len", 2048, 8, 200),
        ("items", 2048, 64, 100),
        ("items", 2048, 64, 300),
    ]
    assert len(section.figures["scaling"].axes) == 6
    assert "step_memory_items" in section.ratios


def test_loaders_side_by_side(tmp_path: Path):
    report = bench_loader.run(tmp_path, print, **SIZES, batches=3, repeats=1)
    rates = {result["name"]: result["rows_per_s"] for result in report.results}
    assert report.ratios == {"ours_over_row_wise": pytest.approx(rates["ours"] / rates["row_wise"], abs=0.01)}


@pytest.mark.slow
def test_a_study_compares_with_its_first_variant_seed_by_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    variant = bench_accuracy.Variant
    study = bench_accuracy.Study(
        {"plain": variant(), "same": variant(), "other": variant(train={"learning_rate": 0.1})},
        train={"epochs": 1, "evaluations_per_epoch": 2, "batch_size": 256},
    )
    monkeypatch.setitem(bench_accuracy.STUDIES, "toy", study)
    report = bench_accuracy.run(tmp_path, print, study="toy", seeds=2, rows=2_000, users=40, items=60)
    plain, same, other = report.results
    assert plain["all_auc"] == same["all_auc"] and same["difference"] == 0 and same["largest_difference"] == 0
    assert plain["all_auc"][0] != plain["all_auc"][1]
    differences = [one - two for one, two in zip(other["all_auc"], plain["all_auc"], strict=True)]
    assert other["difference"] == pytest.approx(sum(differences) / 2, abs=2e-5)
    assert report.ratios["auc_other_minus_plain"] == other["difference"]
    assert len(report.figures["curves"].axes[0].lines) == 3
    with pytest.raises(ConfigError, match="--study 'nothing': choose precision or epochs"):
        bench_accuracy.run(tmp_path, print, study="nothing", seeds=1, rows=1, users=1, items=1)


def test_the_command_refuses_what_is_no_setting_of_a_model(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "train", "--set", "data.name=x"])
    assert ended.value.code == 2
    assert "It reads: model, train." in capsys.readouterr().err


def test_half_precision_can_be_left_out(tmp_path: Path):
    options: dict[str, Any] = {"steps": 1, "repeats": 1, "venv": None, "with_profile": True, "with_scaling": False}
    report = bench_train.run(tmp_path, print, TrainBench(**SIZES, **options, peers=False, half=False, preset=SMALL))
    assert [result["name"] for result in report.results] == ["ours_fp32", "ours_fp32_merged"]
    (section,) = report.sections
    assert {row["name"].partition(":")[0] for row in section.results} == {"fp32"}


def test_the_command_gives_its_options_to_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    given: list[TrainBench] = []

    def run(work: Path, say: Any, settings: TrainBench) -> Report:
        given.append(settings)
        return Report([], {}, {})

    monkeypatch.setattr(bench_train, "run", run)
    options = ["--rows", "3000", "--items", "200", "--max-len", "8", "--batch-size", "64", "--steps", "2"]
    options += ["--repeats", "4", "--no-peers", "--no-half", "--profile", "--set", "train.precision=bf16"]
    with pytest.raises(SystemExit) as ended:
        main(["bench", "train", *options, "--out", str(tmp_path)])
    assert ended.value.code == 0
    preset = {"train": {"precision": "bf16"}}
    assert given == [TrainBench(**SIZES, steps=2, repeats=4, venv=None, peers=False, half=False, with_profile=True,
                                with_scaling=False, preset=preset)]  # fmt: skip
