"""A run that goes on from another: which one, what its config says of it, and that its bundle is like any other."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ctr.config import ModelConfig, Preset, TrainConfig, WarmStartConfig
from ctr.serving.bundle import MODEL_CARD, open_bundle
from features.errors import ConfigError
from features.store.feature_set import FeatureSet
from features.store.pointer import point_at
from pipelines.job.export import export_run
from pipelines.job.load_run import generation_of, parent_of
from pipelines.job.train import Job
from pipelines.workspace import Workspace
from tests.grown import grown_feature_set
from tests.pipelines.job.test_train import Untracked

MODEL = ModelConfig(embedding_dim=4, vector_dim=3, attention="mean", tower="linear")
TRAIN = TrainConfig(epochs=1, batch_size=50, evaluations_per_epoch=1, controls="never", device="cpu")


class Runs:
    """A workspace with feature sets of two days and runs on them; `said` is what was printed last."""

    def __init__(self, folder: Path) -> None:
        self.workspace = Workspace(folder)
        self.days: list[FeatureSet] = [grown_feature_set(folder, 1), grown_feature_set(folder, 2)]
        self.said, self.said_by, self.tags = "", dict[str, str](), {}

    def preset(self, **warm_start: Any) -> Preset:
        return Preset(model=MODEL, train=TRAIN.model_copy(update={"warm_start": WarmStartConfig(**warm_start)}))

    def run(self, day: int, warm_start: str | None = None, **settings: Any) -> str:
        out, tracker = io.StringIO(), Untracked()
        job = Job.start(
            self.preset(**settings), self.days[day - 1], self.workspace, Console(file=out, width=500), None, warm_start
        )
        job.train_and_evaluate(tracker)  # type: ignore[arg-type]
        self.said, self.tags = out.getvalue(), tracker.tags
        self.said_by[job.run_dir.name] = self.said
        return job.run_dir.name

    def config(self, run_id: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.workspace.runs / run_id / "config.json").read_text())
        return content

    def serve(self, run_id: str, version: str | None = None) -> None:
        """Let a bundle of this run be the one that serves."""
        folder = self.workspace.bundles("grown")
        (folder / run_id).mkdir(parents=True, exist_ok=True)
        (folder / run_id / "MANIFEST.json").write_text(json.dumps({"model_version": version or run_id}))
        point_at(folder, run_id)

    def parent(self, name: str, day: int = 2, preset: Preset | None = None) -> Any:
        out = io.StringIO()
        where = (self.days[day - 1], self.workspace, Console(file=out, width=1000))
        found = parent_of(name, preset or self.preset(), *where)
        self.said = out.getvalue()
        return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def monday(runs: Runs) -> str:
    return runs.run(1)


@pytest.fixture(scope="module")
def tuesday(runs: Runs, monday: str) -> str:
    return runs.run(2, monday)


def test_a_run_says_what_it_went_on_from(runs: Runs, monday: str, tuesday: str) -> None:
    assert runs.config(monday)["warm_start"] is None
    assert runs.config(tuesday)["warm_start"] == {"run_id": monday, "generation": 1}
    said = runs.said_by[tuesday]
    assert f"on from run {monday}" in said
    assert "item ids kept their rows" in said and "begin anew" not in said
    assert [generation_of(runs.workspace.runs / run) for run in (monday, tuesday)] == [0, 1]


def test_a_champion_is_the_run_of_the_bundle_that_serves(runs: Runs, monday: str, tuesday: str) -> None:
    runs.serve(tuesday)
    assert (runs.parent("champion").run_id, runs.parent("champion").generation) == (tuesday, 1)
    runs.serve(monday, f"{monday}+int8_table")
    assert runs.parent("champion").run_id == monday


def test_without_a_champion_a_training_is_a_full_one(tmp_path: Path, runs: Runs, monday: str) -> None:
    other = Workspace(tmp_path)
    out = io.StringIO()
    assert parent_of("champion", runs.preset(), runs.days[1], other, Console(file=out, width=500)) is None
    assert "full training, as the champion cannot be gone on from" in out.getvalue()
    assert "no bundle serves yet" in out.getvalue()


@pytest.mark.parametrize(("full_every", "is_full"), [(1, True), (2, True), (3, False), (7, False)])
def test_once_in_so_many_runs_the_training_is_a_full_one(
    runs: Runs, tuesday: str, full_every: int, is_full: bool
) -> None:
    """The champion is a first warm start, so that the next would be run 3 of a row that begins with the full one."""
    runs.serve(tuesday)
    found = runs.parent("champion", preset=runs.preset(full_every=full_every))
    assert (found is None) == is_full
    assert (f"the champion {tuesday} is 1 warm starts away from the last one" in runs.said) == is_full


def test_a_run_that_is_named_is_gone_on_from_whatever_its_turn(runs: Runs, tuesday: str) -> None:
    assert runs.parent(tuesday, preset=runs.preset(full_every=1)).run_id == tuesday


def test_another_model_is_refused_by_its_id_and_trained_in_full_beside_the_champion(runs: Runs, monday: str) -> None:
    wider = Preset(model=MODEL.model_copy(update={"embedding_dim": 8}), train=TRAIN)
    with pytest.raises(ConfigError, match=r"model\.embedding_dim is 8, it had 4"):
        runs.parent(monday, preset=wider)
    runs.serve(monday)
    assert runs.parent("champion", preset=wider) is None
    assert "full training" in runs.said and "model.embedding_dim is 8, it had 4" in runs.said


def test_a_resumed_run_goes_on_from_what_it_was_started_from(runs: Runs, monday: str) -> None:
    started = Job.start(runs.preset(), runs.days[1], runs.workspace, Console(quiet=True), None, monday)
    resumed = Job.resume(started.run_dir.name, runs.preset(), runs.days[1], runs.workspace, Console(quiet=True))
    assert resumed.parent is not None and resumed.parent.run_id == monday
    resumed.write_config()
    assert runs.config(started.run_dir.name)["warm_start"] == {"run_id": monday, "generation": 1}


def test_the_bundle_of_a_warm_start_scores_as_its_model_does(runs: Runs, monday: str, tuesday: str) -> None:
    """`export_run` compares the scores of the graph with the model's; the card names the parent."""
    out = runs.workspace.root / "exported"
    result = export_run(tuesday, out, runs.workspace, Console(quiet=True))
    assert result["max_logit_difference"] < 1e-3
    manifest = open_bundle(out).manifest
    assert (manifest.warm_started_from, manifest.generation) == (monday, 1)
    card = (out / MODEL_CARD).read_text()
    assert f"went on from the weights of run `{monday}`" in card and "warm start number 1 since" in card
