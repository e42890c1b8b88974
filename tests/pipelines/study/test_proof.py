"""compare, stress, report and explain as a user types them, on a small simulated log."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from ctr.data.columns import column
from ctr.data.feature_tables import FrozenTables
from ctr.evaluation.metrics import auc
from ctr.reporting.run_figures import ranker_forest
from features.store.feature_set import FeatureSet
from features.store.pointer import follow
from pipelines.cli.commands import main
from pipelines.locks import locked
from pipelines.study.study import Study, plan
from pipelines.study.trials import shuffled
from tests.pipelines.cli.test_commands import ROOT, SMALL, Shell

PLUS = ["--model", "conf/model/qin_plus.yaml", "--set", "model.evidence_heads=2", "--set", "model.layers=1", *SMALL]
DAYS = "data.split={by: days, valid: 1, test: 1}"
FAST = {"train": {"epochs": 3, "batch_size": 128, "evaluations_per_epoch": 1}}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A simulated log, and one trained run of QIN+ on it."""
    folder = tmp_path_factory.mktemp("proof")
    where = ["--root", str(folder / "raw"), "--work", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for command in (
            ["simulate", "--out", str(folder / "raw"), "--rows", "12000", "--users", "300", "--items", "200"],
            ["train", "--data", "conf/data/simulated.yaml", *where, *PLUS],
            ["export", "--work", str(folder)],
        ):
            with pytest.raises(SystemExit) as stop:
                main([*command, "--json"])
            assert not stop.value.code
    return folder


@pytest.fixture
def shell(capsys, work, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Shell(capsys, work)


def study(work, **changes) -> str:
    content = {
        "name": "tiny",
        "data": str(ROOT / "conf/data/simulated.yaml"),
        "base": str(ROOT / "conf/model/lr.yaml"),
        "seeds": 2,
        "variants": {"lr": {"set": FAST}, "no_vectors": {"set": FAST, "modalities": []}},
        "controls": ["popularity"],
    }
    path = work / "study.yaml"
    path.write_text(yaml.safe_dump(content | changes))
    return str(path)


def where(work):
    return ["--root", str(work / "raw"), "--work", str(work), "--workers", "1"]


def test_a_study_is_trained_once_and_judged_on_the_same_rows(shell, work):
    code, found = shell("compare", "--study", study(work), *where(work))
    assert code == 0, shell.error
    results = {one["name"]: one for one in found["results"]}
    assert set(results) == {"lr", "no_vectors", "popularity"}
    lr = results["lr"]
    assert lr["auc"] == pytest.approx(np.mean(lr["auc_by_seed"]), abs=1e-5) and len(lr["auc_by_seed"]) == 2
    assert lr["auc_low"] < lr["auc"] < lr["auc_high"] and lr["difference"] == 0
    assert results["no_vectors"]["facts"]["parameters"] < lr["facts"]["parameters"]
    lift = (lr["auc"] - 0.5) / (found["optimum_auc"] - 0.5)
    assert lr["facts"]["rank_ms"] > 0 and 0 < lr["optimal_lift_share"] < 1
    assert lr["optimal_lift_share"] == pytest.approx(lift, abs=1e-3)
    assert {one["dimension"] for one in lr["slices"]} > {"new items", "item popularity"}
    folder = work / "comparisons" / "tiny"
    assert json.loads((folder / "summary.json").read_text())["study"] == "tiny"
    assert (folder / "forest.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "summary.md").read_text()
    train, test = (FeatureSet.open(Path(found["feature_set"])).manifest.windows[one].rows for one in ("train", "test"))
    assert f"{train:,} training and" in page and f"compared on {test:,} test rows" in page
    assert f"trained at git {found['trained_at'][0]}" in page and f"| lr | 2 | {lr['auc']:.4f} |" in page
    assert "Holm's correction for the 2 differences" in page

    weights = folder / "lr" / "seed-1" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    code, again = shell("compare", "--study", study(work), *where(work))
    assert code == 0 and weights.stat().st_mtime_ns == before
    assert [one["auc"] for one in again["results"]] == [one["auc"] for one in found["results"]]
    # The study's own feature set is not replaced by a variant's, which has a name of its own.
    sets = work / "feature_sets"
    assert follow(sets / "simulated") == Path(found["feature_set"])
    assert follow(sets / "simulated_no_vectors").parent.name == "simulated_no_vectors"
    assert sorted(path.name for path in sets.iterdir()) == ["simulated", "simulated_no_vectors"]
    # Which code trained it.
    record = json.loads((folder / "lr" / "seed-1" / "trial.json").read_text())
    assert again["trained_at"] == [record["git_revision"]] and again["source_hash"] == record["source_hash"]
    assert f"trained at git {record['git_revision']}" in shell.error


@pytest.mark.parametrize("command", ["compare", "ablate"])
def test_a_study_of_a_log_that_must_be_fresh_is_made_as_of_a_day(shell, work, command):
    one = {"name": "as_of", "variants": {"lr": {"set": FAST}, "none": {"set": FAST, "modalities": []}}, "seeds": 1}
    arguments = [command, "--study", study(work, **one), *where(work), "--set", "data.checks.max_age=1d"]
    code, found = shell(*arguments)
    assert code == 4
    assert "checks.max_age allows 1.0 days" in found["error"]
    code, found = shell(*arguments, "--as-of", "2025-04-10", "--window", "20d", "--set", DAYS)
    assert code == 0, shell.error
    manifest = FeatureSet.open(Path(found["feature_set"])).manifest
    assert manifest.version.startswith("2025-04-10-")
    assert len(manifest.days) == 20
    assert manifest.contract.checks.max_age == 86_400_000_000


def test_models_are_compared_on_a_contract_with_changed_settings(shell, work, monkeypatch):
    seen = []

    def stopped(comparison):
        seen.extend(plan(comparison.study, comparison.train, comparison.root, comparison.data))
        return {}

    monkeypatch.setattr("pipelines.study.compare.run_comparison", stopped)
    code, _ = shell("compare", "--models", "lr", *where(work), "--set", "data.history.max_len=7")
    assert code == 0, shell.error
    assert {one.contract.history.max_len for one in seen} == {7}


def test_an_ablation_is_judged_on_validation_rows_unless_told_otherwise(shell, work, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "pipelines.study.record.ranker_forest",
        lambda rankers, label, marked: drawn.append(label) or ranker_forest(rankers, label, marked),
    )
    for options, split in (([], "valid"), (["--split", "test"], "test")):
        code, found = shell("ablate", "--study", study(work), *where(work), *options)
        assert code == 0, shell.error
        assert found["split"] == split and drawn.pop() == f"{split} AUC" and f"tiny, {split} window" in shell.error
        lr = next(one for one in found["results"] if one["name"] == "lr")
        parts = FeatureSet.open(Path(found["feature_set"])).rows(split)
        labels = np.concatenate([part["label"] for part in parts])
        scores = np.load(work / "comparisons" / "tiny" / "lr" / "seed-1" / f"scores-{split}.npy")
        assert lr["auc_by_seed"][0] == pytest.approx(auc(labels, scores), abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "expected", "words"),
    [
        ({"variants": {"a": {"modalities": ["sound"]}}}, 2, ["sound", "text, image"]),
        (
            {"variants": {"a": {"data": {"split": {"by": "time", "valid": 0.2, "test": 0.1}}}, "b": {}}},
            4,
            ["same rows"],
        ),
        ({"sedes": 3}, 2, ["seeds"]),
        (
            {"variants": {"a": {}, "b": {"set": {"train": {"batch_size": 12000}}}}},
            2,
            ["variants.b: Set train.batch_size between 2 and 9,594"],
        ),
    ],
)
def test_a_wrong_study_stops_before_training(shell, work, changes, expected, words):
    code, found = shell("ablate", "--study", study(work, name="wrong", **changes), *where(work))
    assert code == expected
    assert all(word in found["error"] for word in words), found["error"]
    assert not list((work / "comparisons").glob("wrong/**/*.safetensors"))


def test_a_study_that_another_process_works_on_is_left_alone(shell, work):
    folder = work / "comparisons" / "busy"
    with locked(folder / ".lock", "held"):
        code, found = shell("ablate", "--study", study(work, name="busy"), *where(work))
    assert code == 7
    assert "comparisons/busy/.lock: another process works on this study" in found["error"]
    assert not list(folder.glob("**/*.safetensors"))


def test_rows_of_one_label_stop_a_study_before_training(shell, work, monkeypatch):
    monkeypatch.setattr("pipelines.job.evaluate.column", lambda data, split, name: 0 * column(data, split, name))
    code, found = shell("ablate", "--study", study(work, name="one_label"), *where(work))
    assert code == 4
    assert "valid rows: AUC needs both classes" in found["error"]
    assert not list((work / "comparisons").glob("one_label/**/*.safetensors"))


def test_a_set_that_is_left_out_takes_what_was_made_of_it_along(work, monkeypatch):
    monkeypatch.chdir(ROOT)
    vectors = {
        "fusion": {"both": {"sets": ["text", "image"], "dim": 4}},
        "semantic_ids": {"theme": {"set": "both", "levels": 1, "size": 8}, "words": {"set": "text", "size": 8}},
    }
    content = yaml.safe_load(Path("conf/data/simulated.yaml").read_text()) | {"vectors": vectors}
    (work / "fused.yaml").write_text(yaml.safe_dump(content))
    variants = {
        "all": {},
        "text": {"modalities": ["text"]},
        "image": {"modalities": ["image"]},
        "both": {"modalities": ["text", "image"]},
        "none": {"modalities": []},
    }
    base = {"name": "fused", "data": str(work / "fused.yaml"), "base": "conf/model/lr.yaml", "variants": variants}
    found = plan(Study.model_validate(base), Path("conf/train.yaml"), None)
    made = [(set(p.contract.vectors.fusion), set(p.contract.vectors.semantic_ids)) for p in found]
    everything = ({"both"}, {"theme", "words"})
    assert made == [everything, (set(), {"words"}), (set(), set()), everything, (set(), set())]


def test_shuffled_vectors_take_their_codes_along():
    items = 9
    row = torch.arange(items)
    tables = FrozenTables(
        items={"id": row, "theme_1": row, "price": row.float()},
        vectors={"text": row.float().unsqueeze(-1)},
        present={"text": row > 3},
    )
    moved = shuffled(tables, seed=1, codes=["theme_1"])
    order = moved.items["theme_1"]
    assert not torch.equal(order, row) and sorted(order.tolist()) == row.tolist() and order[:2].tolist() == [0, 1]
    assert torch.equal(moved.vectors["text"][:, 0], order.float())
    assert torch.equal(moved.present["text"], order > 3)
    assert torch.equal(moved.items["id"], row) and torch.equal(moved.items["price"], row.float())


def test_compare_wants_models_or_a_study(shell, work):
    assert shell("compare", "--work", work)[0] == 2
    code, found = shell("compare", "--models", "qin,qim", *where(work))
    assert code == 2 and "qin_plus" in found["error"]


@pytest.mark.slow
def test_stress_tells_what_vectors_are_worth(shell, work):
    code, found = shell("stress", "--work", work, "--set", "stress.shares=[1.0]", "--set", "stress.noise=[1.0]")
    assert code == 0, shell.error
    assert {one["sets"] for one in found["stresses"]} == {"text", "image", "both", "all"}
    drops = [stress["auc_drop"] for stress in found["stresses"]]
    assert all(drop["low"] <= drop["value"] <= drop["high"] for drop in drops)
    assert (work / "runs" / found["run_id"] / "stress.png").is_file()


def test_report_shows_the_inside_of_the_model(shell, work):
    code, found = shell("report", "--work", work)
    assert code == 0, shell.error
    text = (work / "runs" / found["run_id"] / "report.html").read_text()
    assert all(
        word in text
        for word in ("Gates of the vector sets", "Calibration before and after", "Past items behind a score")
    )


def test_explain_names_past_items_and_fields(shell, work):
    (bundle,) = (work / "bundles" / "simulated").glob("*/")
    request = bundle / "request.json"
    code, found = shell("explain", "--work", work, "--request", request, "--top", "2")
    assert code == 0, shell.error
    first, second = found["explained"]
    assert first["score"] >= second["score"]
    history = [one["item"] for one in json.loads(request.read_text())["history"]]
    assert {one["item"] for one in first["past"]} <= set(history) and first["past"]
    assert "history" in first["contributions"]
    # The torch model of the run says what its bundle serves.
    assert bundle.name == found["run_id"]
    code, ranked = shell("rank", "--bundle", bundle, "--request", request)
    assert ranked["ranked"][0]["score"] == pytest.approx(first["score"], abs=1e-5)
