"""`report`: the page is whole, needs nothing from elsewhere, escapes what it is told, and lists every section."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from mlflow import MlflowClient
from rich.console import Console
from safetensors.torch import save_file

from ctr.config import ModelConfig, Preset, TrainConfig
from ctr.diagnosis.permutation_importance import Importance
from ctr.evaluation.bootstrap import Interval
from ctr.evaluation.slices import SliceResult
from ctr.reporting.figures import BLUE, GREY
from ctr.reporting.mlflow_runs import Tracker
from ctr.reporting.run_figures import importance_bars, roc_curve, score_histogram, slice_forest
from features.errors import ConfigError
from features.store.feature_set import FeatureSet
from pipelines.job.evaluate import Scored, controls, score_split
from pipelines.report import report
from pipelines.report.page import Section, page
from pipelines.report.parts import facts, folded, plot, table, tiles
from pipelines.report.record import RunRecord
from pipelines.report.report import report_run
from pipelines.report.sections import importance, ranking, slices, the_run
from pipelines.workspace import Workspace
from tests.trained import built_feature_set, random_model

HOSTILE = '$\\frac{$<script>alert("x")</script>&amp; id="y" url(#z)'
VOID = {"meta", "br", "hr", "img", "link", "input"}
LOADING = {"src", "srcset", "action", "data", "poster", "background"}


class Page(HTMLParser):
    """Tags, ids, references and texts of a document; fails where a tag is closed that is not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert name not in LOADING, f"{tag} {name}={value}"
            if name == "id":
                self.ids.append(value or "")
            self.references += re.findall(r"url\(([^)]*)\)", value or "") if name != "aria-label" else []
            if name in ("href", "xlink:href"):
                self.references.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


def whole(text: str) -> Page:
    """The page, after the checks that every page must pass."""
    found = Page(text)
    assert "http" not in text and "@import" not in text and "script" not in found.tags
    assert len(found.ids) == len(set(found.ids))
    assert found.references and all(one.startswith("#") and one[1:] in found.ids for one in found.references)
    return found


def drawn(title: str = "title") -> Figure:
    figure = Figure()
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], "o-", label="line")
    axes.set_title(title)
    axes.legend()
    return figure


def test_every_section_is_in_the_table_of_contents():
    names = ["The run", "Model & controls", "The run"]
    found = whole(page("a run", [Section(name, "Why?", facts({"rows": "3"})) for name in names]))
    contents = [one for one in found.texts["a"] if one.strip()]
    assert contents == found.texts["h2"] == names
    assert found.references == ["#section-1", "#section-2", "#section-3"]


def test_hostile_names_stay_text():
    section = Section(
        HOSTILE,
        HOSTILE,
        table([HOSTILE], [[HOSTILE]])
        + facts({HOSTILE: HOSTILE})
        + tiles([(HOSTILE, HOSTILE, HOSTILE)])
        + folded(HOSTILE, "")
        + importance([Importance("item", HOSTILE, Interval(0.1, 0.05, 0.2))]).html
        + slices([SliceResult(HOSTILE, HOSTILE, 9, 3, {"auc": 0.7, "auc_low": 0.6, "auc_high": 0.8})], 0.7).html,
    )
    found = whole(page(HOSTILE, [section]))
    for tag in ("title", "h1", "h2", "a", "summary", "td", "dd", "dt"):
        assert HOSTILE in found.texts[tag], tag
    # In a plot a long name is cut, and is no formula.
    assert any(one.startswith('$\\frac{$<script>alert("x")</script>&amp') for one in found.texts["text"])


def test_plots_keep_their_text_and_share_no_id():
    html = plot(drawn(), "first", "How to read it.") + plot(drawn(), "second", "How to read it.")
    found = whole(page("plots", [Section("Plots", "", html)]))
    assert found.tags.count("svg") == 2 and found.texts["text"].count("title") == 2
    assert found.texts["figcaption"] == ["How to read it."] * 2
    assert any(one.startswith("#first-") for one in found.references)
    assert plot(drawn(), "first", "") == plot(drawn(), "first", "")


def test_the_top_of_the_ranking():
    scores = np.linspace(1, 0.001, 100)
    labels = (np.arange(100) % 4 == 0).astype(np.float32)
    labels[:10] = [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]
    # 8 of the first 10 rows are positive, and of the other 90 the 22 from row 12 on in fours: 30 in all.
    text = ranking(Scored(labels, scores, np.zeros(100), 0.3, np.ones(100))).html
    assert "<td>10%</td><td>80.0%</td><td>2.67</td><td>26.7%</td>" in text
    assert "<td>1%</td><td>100.0%</td><td>3.33</td><td>3.3%</td>" in text


def test_a_row_of_weight_two_counts_twice_at_the_top_of_the_ranking():
    scores, labels = np.linspace(1, 0.001, 50), (np.arange(50) % 3 == 0).astype(np.float32)
    weights = 1.0 + (np.arange(50) % 2)
    times = weights.astype(int)
    mixed = np.random.default_rng(0).permutation(50)
    weighed = ranking(Scored(labels[mixed], scores[mixed], np.zeros(50), 0.3, weights[mixed])).html
    labels, scores = np.repeat(labels, times), np.repeat(scores, times)
    twice = ranking(Scored(labels, scores, np.zeros(75), 0.3, np.ones(75))).html
    assert weighed[weighed.index("<table>") :] == twice[twice.index("<table>") :]


def test_the_order_of_rows_decides_nothing_among_equal_scores():
    # The clicked rows come first, as in the export of a log whose impressions name their clicks first.
    labels = np.repeat([1.0, 0.0], [25, 75])
    constant = ranking(Scored(labels, np.full(100, 0.2), np.zeros(100), 0.3, np.ones(100))).html
    assert "<td>1%</td><td>25.0%</td><td>1.00</td><td>1.0%</td>" in constant
    assert "<td>50%</td><td>25.0%</td><td>1.00</td><td>50.0%</td>" in constant


def test_slices_without_an_auc_are_in_the_table_alone():
    both = SliceResult("age", "old", 40, 10, {"auc": 0.7, "auc_low": 0.6, "auc_high": 0.8, "log_loss": 0.5})
    none = SliceResult("age", "young", 5, 0, {"log_loss": 0.1})
    every = SliceResult("all", "all rows", 45, 10, both.metrics)
    text = slices([every, both, none], 0.75).html
    assert "<tbody><tr><td>all rows</td><td>45</td>" in text and text.count('"rowgroup"') == 1
    assert "<tr><td>young</td><td>5</td><td>0.0%</td><td></td><td></td><td>0.1000</td><td></td><td></td></tr>" in text
    assert "young" not in text[: text.index("<table>")] and "old" in text[: text.index("<table>")]
    assert "<svg" not in slices([none], 0.75).html


def test_the_drop_of_one_user_has_no_interval_and_is_not_called_significant():
    text = importance([Importance("item", "year", Interval(0.12, 0.12, 0.12))]).html
    assert "<td>year (item)</td><td>+0.1200</td><td></td>" in text
    assert GREY.lower() in text
    assert BLUE.lower() not in text


def test_the_pictures_show_what_they_were_given():
    labels = np.array([0, 0, 1, 1, 0, 1] * 10)
    scores = np.tile([0.1, 0.2, 0.3, 0.8, 0.4, 0.9], 10)
    # Of the nine (positive, negative) pairs only 0.3 against 0.4 is the wrong way round.
    assert roc_curve(labels, scores).axes[0].get_title() == f"AUC {8 / 9:.4f}"
    outlines = score_histogram(labels, scores).axes[0].patches
    assert all(one.get_data().values.sum() == pytest.approx(1) for one in outlines)
    bars = importance_bars(
        [
            Importance("item", "price", Interval(0.2, 0.1, 0.3)),
            Importance("history", "history", Interval(0.0, -0.1, 0.1)),
        ]
    ).axes[0]
    assert [bar.get_width() for bar in bars.patches] == [0.2, 0.0]
    assert [label.get_text() for label in bars.get_yticklabels()] == ["price (item)", "whole history"]
    forest = slice_forest({"age": {"old": Interval(0.7, 0.6, 0.8)}}, 0.75).axes[0]
    assert [label.get_text() for label in forest.get_yticklabels()] == ["age", "old"]
    np.testing.assert_array_equal(forest.lines[0].get_xdata(), [0.6, 0.8])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with one run folder, as training leaves it."""
    root = tmp_path_factory.mktemp("work")
    feature_set = built_feature_set(root)
    preset = Preset(model=ModelConfig(embedding_dim=4, vector_dim=4, attention_dim=8), train=TrainConfig())
    model = random_model(feature_set, preset.model)
    run = root / "runs" / "20260101-000000-shop-abcd"
    run.mkdir(parents=True)
    write_run(run, feature_set, model, preset)
    return Workspace(root)


def write_run(run: Path, feature_set: FeatureSet, model: torch.nn.Module, preset: Preset) -> None:
    config = {
        "preset": preset.model_dump(mode="json"),
        "feature_set": str(feature_set.path),
        "contract_fingerprint": feature_set.manifest.fingerprint,
        "git_revision": "0123456789ab",
        "versions": {"torch": "2"},
        "python": "3.11",
    }
    (run / "config.json").write_text(json.dumps(config))
    split = feature_set.judged_by
    record = {
        "metrics": {split: score_split(model, feature_set, split).metrics()},
        "tasks": {},
        "controls": controls(feature_set, split),
    }
    (run / "metrics.json").write_text(json.dumps(record))
    looks = [
        {"step": 10 * i, "epoch": i / 2, "auc": 0.5 + i / 20, "log_loss": 0.7 - i / 50, "gauc_by_samples": 0.5}
        for i in (1, 2, 3)
    ]
    (run / "curve.jsonl").write_text("".join(json.dumps(look) + "\n" for look in looks))
    save_file(model.state_dict(), run / "model.safetensors")


def test_a_run_becomes_one_page(finished, tmp_path, monkeypatch):
    console = Console(record=True, width=200)
    extra = Section("Gates", "Which vectors count?", "<p>made elsewhere</p>")
    out = tmp_path / "pages" / "shop.html"
    # The toy has no encoder to name its items by; the sections themselves are tried on a whole run (test_proof).
    monkeypatch.setattr("pipelines.report.report.model_sections", lambda *_: [extra])
    payload = report_run("latest", out, finished, console)
    assert payload["report"] == str(out) and payload["exit_code"] == 0
    assert json.loads(json.dumps(payload))["importance"]["history.history"]["drop"] != 0
    found = whole(out.read_text())
    assert found.texts["h1"] == ["shop: run 20260101-000000-shop-abcd"]
    titles = found.texts["h2"]
    assert titles[-2:] == ["Gates", "Settings"] and [one for one in found.texts["a"] if one.strip()] == titles
    assert found.tags.count("svg") == 7 == found.tags.count("figcaption")
    recorded = json.loads((finished.run("latest") / "metrics.json").read_text())
    for metrics in (*recorded["metrics"].values(), *recorded["controls"].values()):
        assert f"{metrics['auc']:.4f}" in found.texts["td"]
        assert f"{metrics['auc_low']:.4f} – {metrics['auc_high']:.4f}" in found.texts["td"]
    assert "git 0123456789ab" in found.texts["dd"] and "embedding_dim" in found.texts["dt"]
    assert str(out) in console.export_text()


def test_trees_alone_are_said_to_be_chosen_by_log_loss_whatever_early_stopping_watches(finished):
    run = finished.run("latest")
    record = RunRecord.read(run)
    preset = Preset(model=ModelConfig(tower="none", base="boosting"), train=TrainConfig(metric="auc"))
    curve = [
        {"step": 10, "epoch": 0.5, "auc": 0.7, "log_loss": 0.6},
        {"step": 20, "epoch": 1.0, "auc": 0.6, "log_loss": 0.5},
    ]
    config = record.config | {"preset": preset.model_dump(mode="json")}
    trees = replace(record, config=config, curve=curve)
    feature_set = FeatureSet.open(Path(record.config["feature_set"]))
    assert "of step 20, the best of 2 evaluations by log loss" in the_run(trees, feature_set, 0).html


def test_the_page_is_kept_with_the_tracked_run(finished, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(report, "model_sections", lambda *_: [])
    root = tmp_path / "work"
    shutil.copytree(finished.root, root)
    tracker = Tracker(root)
    with tracker.run("quadrank-shop", "first", {}, {}):
        run_id = tracker.run_id
    run = Workspace(root).run("latest")
    (run / "mlflow_run_id").write_text(f"{run_id}\n")
    report_run(run.name, None, Workspace(root), Console(quiet=True))
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    assert [one.path for one in client.list_artifacts(run_id, "report")] == ["report/report.html"]
    assert client.get_run(run_id).info.status == "FINISHED"
    stored = Path(client.download_artifacts(run_id, "report/report.html", str(tmp_path)))
    assert stored.read_bytes() == (run / "report.html").read_bytes()


def test_a_run_without_evaluation_is_refused(finished, tmp_path):
    run = tmp_path / "runs" / "half"
    run.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (run / name).touch()
    with pytest.raises(ConfigError, match=r"before its evaluation.*quadrank train --resume half"):
        report_run("half", None, Workspace(tmp_path), Console(quiet=True))
