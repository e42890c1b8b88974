"""The commands as a user types them, end to end on a small simulated log: outputs, exit codes, messages."""

import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from ctr.reporting.mlflow_registry import Registry
from ctr.serving.pasts.snapshot import SnapshotPasts
from features.encoding.encoder import Encoder
from pipelines.cli.commands import main
from pipelines.workspace import Workspace, run_lock
from tests.pipelines.gate.bundles import with_other_golden_scores

ROOT = Path(__file__).parents[3]
SMALL = ["--set", "train.epochs=1", "--set", "train.batch_size=512", "--set", "train.evaluations_per_epoch=2"]
# A model that learns enough of 20,000 rows in seconds to be better than popularity: the gate lets it pass.
PASSING = ["--model", "conf/model/lr.yaml", "--set", "train.epochs=3", "--set", "train.batch_size=128",
           "--set", "train.evaluations_per_epoch=1"]  # fmt: skip


class Shell:
    """Runs `quadrank ARGS --json` in this process and returns the exit code and the last JSON line."""

    def __init__(self, capsys, work: Path):
        self.capsys = capsys
        self.work = work
        self.error = ""

    def __call__(self, *arguments: str) -> tuple[int, dict]:
        with pytest.raises(SystemExit) as stop:
            main([*map(str, arguments), "--json"])
        captured = self.capsys.readouterr()
        self.error = captured.err
        lines = captured.out.strip().splitlines()
        return int(stop.value.code or 0), json.loads(lines[-1]) if lines else {}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("work")


@pytest.fixture
def shell(capsys, work, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Shell(capsys, work)


@pytest.fixture(scope="module")
def raw(work):
    with pytest.raises(SystemExit) as stop:
        main(["simulate", "--out", str(work / "raw"), "--rows", "20000", "--users", "400", "--items", "300"])
    assert stop.value.code == 0
    return work / "raw"


@pytest.fixture(scope="module")
def job(work, raw):
    """One whole `quadrank run`, shared by the tests below."""
    out = work / "run.json"
    import contextlib
    import io

    text = io.StringIO()
    with contextlib.redirect_stdout(text), pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.chdir(ROOT)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        main(["run", *data(raw, work), *PASSING, "--pasts", "--json"])
    out.write_text(text.getvalue())
    return int(stop.value.code or 0), json.loads(text.getvalue().strip().splitlines()[-1])


def data(raw, work):
    return ["--data", "conf/data/simulated.yaml", "--root", str(raw), "--work", str(work)]


def test_simulate_keeps_the_log_of_the_same_arguments(shell, raw):
    code, result = shell("simulate", "--out", raw, "--rows", "20000", "--users", "400", "--items", "300")
    assert (code, result["status"]) == (0, "reused")


def test_run_does_everything_and_says_what_it_did(job, work):
    code, result = job
    assert (code, result["exit_code"], result["status"]) == (0, 0, "done")
    assert set(result["metrics"]["test"]) >= {
        "auc",
        "auc_low",
        "auc_high",
        "gauc_by_samples",
        "log_loss",
        "normalized_entropy",
        "calibration_ratio",
        "ece",
    }
    assert set(result["controls"]) == {"popularity", "target_only", "optimum"}
    assert (
        result["metrics"]["test"]["auc_low"] < result["metrics"]["test"]["auc"] < result["metrics"]["test"]["auc_high"]
    )
    assert result["controls"]["optimum"]["auc"] > result["metrics"]["test"]["auc"]
    assert sum(result["rows"].values()) == 20_000
    assert (Path(result["bundle"]) / "MANIFEST.json").is_file()
    assert (work / "mlflow.db").is_file()


def test_the_bundle_of_a_run_with_pasts_has_those_of_the_log(job, raw, work):
    bundle = work / "bundles" / "simulated" / job[1]["run_id"]
    encoder = Encoder.load(bundle)
    pasts = SnapshotPasts(bundle, encoder.contract, encoder.users, lambda outcome: None)
    log = pl.read_parquet(raw / "interactions.parquet")
    user = log["user_id"].mode().min()  # has more events than are kept
    newest = log.filter(pl.col("user_id") == user).sort("timestamp", maintain_order=True)["item_id"].to_list()
    assert [event.item for event in pasts.newest(user)] == newest[-129:]


def test_pasts_of_a_log_without_events_in_time_are_refused_before_anything_is_built(shell, tmp_path):
    code, result = shell("run", "--data", "conf/data/mmctr.yaml", "--root", tmp_path, "--work", tmp_path, "--pasts")
    assert code == 2 and "pasts: this log has no events in time" in result["error"]
    assert [path.name for path in tmp_path.iterdir()] == ["status"]


def test_the_control_without_history_has_none(job, work):
    run = work / "runs" / job[1]["run_id"]
    read = [json.loads((folder / "checkpoint.json").read_text()) for folder in (run, run / "target_only")]
    assert [one["identity"]["model"]["use_history"] for one in read] == [True, False]
    assert job[1]["controls"]["target_only"]["auc"] != job[1]["metrics"]["test"]["auc"]


def test_what_passes_the_gate_becomes_champion_and_current(job, work):
    """And only then: test_tasks has a run that the gate refuses."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{work / 'mlflow.db'}")
    champion = client.get_model_version_by_alias("quadrank-simulated", "champion")
    assert champion.tags["model_version"] == job[1]["run_id"]
    bundles = work / "bundles" / "simulated"
    run_id = job[1]["run_id"]
    beside = {"CURRENT", "NEWEST", "HISTORY.jsonl", f"{run_id}.gate.json"}
    assert {path.name for path in bundles.iterdir()} == {run_id, *beside}
    (moved,) = (json.loads(line) for line in (bundles / "HISTORY.jsonl").read_text().splitlines())
    assert (moved["action"], moved["from"], moved["to"]) == ("promote", None, run_id)
    assert job[1]["gate"]["passed"] is True
    assert (bundles / "CURRENT").read_text() == job[1]["run_id"] == (bundles / "NEWEST").read_text()
    run = client.get_run(champion.run_id)
    assert run.data.tags["gate"] == "passed"


def test_the_same_job_again_trains_nothing(shell, job, raw, work):
    runs = {path.name for path in (work / "runs").iterdir()}
    code, result = shell("run", *data(raw, work), *PASSING, "--pasts")
    assert (code, result["status"], result["exit_code"]) == (0, "nothing new", 0)
    for same in ("run_id", "bundle", "feature_set", "rows", "metrics", "controls", "tasks"):
        assert result[same] == job[1][same]
    assert {found["does"] for found in result["stages"].values()} == {"skip"}
    assert {path.name for path in (work / "runs").iterdir()} == runs


def test_a_plan_says_what_changed_and_writes_nothing(shell, job, raw, work):
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*")}
    code, result = shell("run", *data(raw, work), *PASSING, "--dry-run")
    assert (code, result["status"]) == (0, "plan")
    done = {"does": "skip", "reason": "done: nothing changed"}
    assert [result["stages"][name] for name in ("features", "train", "evaluate")] == [done] * 3
    assert result["stages"]["export"] == {"does": "run", "reason": "settings changed: pasts"}
    assert result["stages"]["promote"] == {"does": "run", "reason": "export runs before it"}
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*")} == before


def test_days_are_part_of_the_plan(shell, job, raw, work):
    code, result = shell("run", *data(raw, work), *PASSING, "--pasts", "--dry-run", "--as-of", "2025-04-01")
    assert (code, result["stages"]["features"]["reason"]) == (0, "settings changed: newest day")
    code, result = shell("run", *data(raw, work), *PASSING, "--pasts", "--dry-run", "--window", "14d")
    assert (code, result["stages"]["features"]["reason"]) == (0, "settings changed: window")


def test_features_are_reused(shell, job, raw, work):
    code, result = shell("features", *data(raw, work))
    assert (code, result["status"]) == (0, "reused")
    assert result["feature_set"] == job[1]["feature_set"]


def test_the_tracked_run_holds_config_curves_plots_and_the_onnx_flavor(job, work):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{work / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("quadrank-simulated")
    runs = client.search_runs([experiment.experiment_id], f"tags.mlflow.runName = '{job[1]['run_id']}'")
    assert len(runs) == 1
    (run,) = runs
    assert run.info.status == "FINISHED"
    assert run.data.params["train.batch_size"] == "128"
    assert run.data.metrics["test.auc"] == pytest.approx(job[1]["metrics"]["test"]["auc"])
    assert {"contract_fingerprint", "git_revision", "feature_set"} <= set(run.data.tags)
    assert len(client.get_metric_history(run.info.run_id, "valid.auc")) >= 2
    assert {file.path for file in client.list_artifacts(run.info.run_id, "plots")} == {
        "plots/learning_curve.png",
        "plots/calibration.png",
        "plots/controls.png",
    }
    assert "model/MLmodel" in {file.path for file in client.list_artifacts(run.info.run_id, "model")}
    (version,) = client.search_model_versions("name = 'quadrank-simulated'")
    assert version.run_id == run.info.run_id


def test_whoever_watches_the_job_finds_its_outcome(job, work):
    status = work / "status" / "simulated"
    success = json.loads((status / "LAST_SUCCESS").read_text())
    assert success["run_id"] == job[1]["run_id"] and success["metrics"] == job[1]["metrics"]
    assert 'quadrank_champion_data_timestamp_seconds{name="simulated"}' in (status / "quadrank.prom").read_text()


def test_the_run_has_its_log_and_mlflow_its_stages(job, work):
    from mlflow import MlflowClient

    lines = [json.loads(line) for line in (work / "runs" / job[1]["run_id"] / "log.jsonl").read_text().splitlines()]
    assert lines[0]["message"] == "features: run, never ran" and lines[-1]["run"] == job[1]["run_id"]
    client = MlflowClient(f"sqlite:///{work / 'mlflow.db'}")
    run = client.get_run((work / "runs" / job[1]["run_id"] / "mlflow_run_id").read_text())
    stages = {name for name in run.data.metrics if name.startswith("stage.")}
    assert stages == {f"stage.{stage}.{key}" for stage in ("features", "train", "evaluate", "export", "gate", "promote")
                      for key in ("seconds", "peak_mib")}  # fmt: skip


def test_the_bundle_scores_the_test_window_as_torch_did(shell, job, work):
    code, result = shell("evaluate", "--bundle", job[1]["bundle"], "--work", work)
    assert code == 0
    assert result["metrics"]["test"]["auc"] == pytest.approx(job[1]["metrics"]["test"]["auc"], abs=1e-5)
    assert result["metrics"]["test"]["log_loss"] == pytest.approx(job[1]["metrics"]["test"]["log_loss"], abs=1e-5)


def test_export_again_gives_the_same_scores_from_any_folder(shell, job, work, tmp_path, monkeypatch):
    (tmp_path / "request.json").write_text("mine")
    monkeypatch.chdir(tmp_path)
    code, result = shell("export", "--run", job[1]["run_id"], "--out", tmp_path / "again", "--work", work)
    assert code == 0 and result["max_abs_difference"] <= 1e-5
    for name in ("golden.json", "item_table.bin", "request.json"):
        assert (tmp_path / "again" / name).read_bytes() == (Path(job[1]["bundle"]) / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "request.json"]
    assert (tmp_path / "request.json").read_text() == "mine"
    assert (work / "bundles" / "simulated" / "NEWEST").read_text() == job[1]["run_id"]


def test_a_run_keeps_where_its_feature_set_is_in_the_workspace(job, work):
    config = json.loads((work / "runs" / job[1]["run_id"] / "config.json").read_text())
    assert config["feature_set"] == f"feature_sets/simulated/{Path(job[1]['feature_set']).name}"


def test_export_writes_over_nothing(shell, job, work, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    code, result = shell("export", "--run", job[1]["run_id"], "--out", tmp_path / "thesis", "--work", work)
    assert code == 2 and "thesis: exists" in result["error"] and "--out" in result["error"]
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]


def request_file(job, tmp_path, **changes):
    request = json.loads((Path(job[1]["bundle"]) / "request.json").read_text()) | changes
    path = tmp_path / "request.json"
    path.write_text(json.dumps(request))
    return path


def test_rank_prints_candidates_best_first(shell, job, work, tmp_path):
    code, result = shell("rank", "--bundle", job[1]["bundle"], "--request", request_file(job, tmp_path))
    scores = [entry["score"] for entry in result["ranked"]]
    assert code == 0 and scores == sorted(scores, reverse=True) and 0 < scores[-1] <= scores[0] < 1
    assert result["model_version"] == job[1]["run_id"]
    # Without --request the bundle's own example is scored; the pointer is what serving is configured with.
    code, example = shell("rank", "--bundle", work / "bundles" / "simulated" / "CURRENT")
    assert (code, example) == (0, result)


def test_rank_scores_an_unknown_candidate_and_refuses_it_when_strict(shell, job, tmp_path):
    request = request_file(job, tmp_path, candidates=[987654321])
    code, result = shell("rank", "--bundle", job[1]["bundle"], "--request", request)
    assert code == 0 and len(result["ranked"]) == 1 and "987654321" in shell.error
    code, result = shell("rank", "--bundle", job[1]["bundle"], "--request", request, "--strict")
    assert code == 2 and "987654321" in result["error"]


@pytest.mark.parametrize("candidate", [-1, 1.7, True, "seven", None])
def test_rank_refuses_ids_that_cannot_be_ids(shell, job, tmp_path, candidate):
    request = request_file(job, tmp_path, candidates=[candidate])
    code, result = shell("rank", "--bundle", job[1]["bundle"], "--request", request)
    assert code == 2 and "candidates" in result["error"]


def test_promote_makes_a_bundle_champion_and_current_again(shell, job, work):
    bundles = work / "bundles" / "simulated"
    (bundles / "CURRENT").write_text("another")
    code, result = shell("promote", "--bundle", bundles / "NEWEST", "--work", work)
    assert (code, result["alias"], result["version"]) == (0, "champion", "1")
    assert result["bundle"] == job[1]["bundle"]
    assert (bundles / "CURRENT").read_text() == job[1]["run_id"]
    # It is its own champion: a tie passes.
    assert result["gate"]["champion"] == job[1]["run_id"]


def test_promote_keeps_the_champion_where_parity_is_broken(shell, job, work):
    bundles, run_id = work / "bundles" / "simulated", job[1]["run_id"]
    bad = with_other_golden_scores(bundles / run_id, "unlike")
    before = {name: (bundles / name).read_bytes() for name in ("CURRENT", "HISTORY.jsonl")}
    try:
        code, result = shell("promote", "--bundle", bad, "--work", work)
        assert (code, result["exit_code"], result["status"]) == (6, 6, "gate refused")
        assert result["error"].startswith("parity: ")
        assert "bundles/simulated/unlike" in result["error"]
        assert {name: (bundles / name).read_bytes() for name in before} == before
        assert Registry(work).version_tags("quadrank-simulated", "champion")["model_version"] == run_id
    finally:
        shutil.rmtree(bad)
        (bundles / "unlike.gate.json").unlink()


def test_rollback_needs_a_reason_and_a_bundle_that_was_before(shell, job, work):
    on = ["--name", "simulated", "--work", work]
    code, result = shell("rollback", *on)
    assert code == 2 and "say why with --why" in result["error"]
    code, result = shell("rollback", *on, "--why", "test")
    assert code == 2 and "tells of no bundle before" in result["error"]
    code, result = shell("rollback", "--data", "conf/data/simulated.yaml", "--work", work, "--list")
    assert code == 0 and result["current"] == job[1]["run_id"] and result["bundles"] == [job[1]["run_id"]]
    assert result["history"][0]["action"] == "promote"


def test_a_bundle_of_no_run_here_is_registered_and_promoted(shell, job, work, tmp_path):
    bundle = tmp_path / "copied"
    shutil.copytree(job[1]["bundle"], bundle)
    elsewhere = tmp_path / "elsewhere"
    code, result = shell("promote", "--bundle", bundle, "--work", elsewhere)
    assert code == 2 and "it is not here. Build it again with `quadrank features`" in result["error"]
    elsewhere.mkdir()
    (elsewhere / "feature_sets").symlink_to(work / "feature_sets")
    code, result = shell("promote", "--bundle", bundle, "--work", elsewhere)
    assert (code, result["version"], result["bundle"]) == (0, "1", str(bundle))
    assert "CURRENT does not change: the bundle is in another folder" in shell.error
    assert not (elsewhere / "bundles/simulated/CURRENT").exists()
    code, result = shell("promote", "--bundle", bundle, "--work", elsewhere)
    assert (code, result["version"]) == (0, "1")  # once
    assert result["gate"]["champion"] == job[1]["run_id"]  # which the alias names, and the registry has


def test_an_interrupted_run_goes_on_in_its_own_mlflow_run(shell, job, raw, work, monkeypatch):
    from mlflow import MlflowClient

    import pipelines.job.train

    looks = []

    def interrupt(evaluation):
        looks.append(evaluation)
        raise KeyboardInterrupt

    whole = pipelines.job.train.Job.fit
    monkeypatch.setattr(
        pipelines.job.train.Job, "fit", lambda job, tracker: whole(job, tracker, on_evaluation=interrupt)
    )
    code, result = shell("train", *data(raw, work), *SMALL)
    assert code == 130 and "--resume" in result["error"] and len(looks) == 1
    monkeypatch.undo()
    monkeypatch.chdir(ROOT)
    interrupted = sorted((work / "runs").glob("*-simulated-*"))[-1]
    # Unfinished, so it is not the run that other commands mean by `latest`.
    code, result = shell("export", "--run", interrupted.name, "--work", work)
    assert code == 2 and f"quadrank train --resume {interrupted.name}" in result["error"]
    assert Workspace(work).run("latest").name == job[1]["run_id"]
    with run_lock(interrupted):
        code, result = shell("train", *data(raw, work), "--resume", "latest", *SMALL)
    assert code == 7 and "another process is training this run" in result["error"]
    code, result = shell("train", *data(raw, work), "--resume", "latest", *SMALL)
    assert code == 0 and result["run_id"] == interrupted.name
    assert "from its last checkpoint" in shell.error
    assert Workspace(work).run("latest") == interrupted
    client = MlflowClient(f"sqlite:///{work / 'mlflow.db'}")
    run = client.get_run((interrupted / "mlflow_run_id").read_text())
    assert run.info.status == "FINISHED"
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "valid.auc")]
    assert len(steps) == 2 and steps[0] == looks[0].step < steps[1]

    # Finished now: it is never reopened, by name or as the latest.
    before = (interrupted / "metrics.json").stat().st_mtime_ns
    code, result = shell("train", *data(raw, work), "--resume", interrupted.name, *SMALL)
    assert code == 2 and "never reopened" in result["error"]
    code, result = shell("train", *data(raw, work), "--resume", "latest", *SMALL)
    assert code == 2 and "no unfinished run" in result["error"]
    assert (interrupted / "metrics.json").stat().st_mtime_ns == before


def test_a_run_that_was_stopped_before_its_first_evaluation_starts_anew(shell, job, raw, work, monkeypatch):
    import pipelines.job.train

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipelines.job.train, "fit_and_calibrate", stopped)
    assert shell("train", *data(raw, work), *SMALL)[0] == 130
    monkeypatch.undo()
    monkeypatch.chdir(ROOT)
    (stopped_at,) = [path.parent for path in (work / "runs").glob("*/config.json")
                     if not (path.parent / "metrics.json").exists()]  # fmt: skip
    code, result = shell("train", *data(raw, work), "--resume", "latest", *SMALL, "--set", "data.history.max_len=7")
    assert code == 2 and "another contract" in result["error"]
    lr = ["--model", "conf/model/lr.yaml"]
    code, result = shell("train", *data(raw, work), "--resume", "latest", *SMALL, *lr)
    assert (code, result["run_id"]) == (0, stopped_at.name)
    assert "has no checkpoint, since it was stopped before its first: it starts anew" in shell.error
    # What was trained is what the folder says.
    assert json.loads((stopped_at / "config.json").read_text())["preset"]["model"]["architecture"] == "lr"


def test_tune_nests_trials_and_writes_a_config_that_train_accepts(shell, job, raw, work, tmp_path):
    space = tmp_path / "space.yaml"
    space.write_text(
        "startup_trials: 1\nschedule: none\n"
        "space: {model.dropout: {low: 0.0, high: 0.3}, model.rows: {low: 1, high: 2}}\n"
    )
    code, result = shell("tune", *data(raw, work), "--study", "t", "--trials", "2", "--space", space, *SMALL)
    assert code == 0 and sum(result["trials"].values()) == 2
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{work / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("quadrank-simulated").experiment_id
    children = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{result['run_id']}'")
    assert len(children) == 2
    # Trials are no runs: other commands go past them, and say so where one is named.
    trials = [child.data.tags["run_folder"] for child in children]
    assert {str(Path(one).parent) for one in trials} == {str(work / "runs" / "tune" / "t")}
    assert Workspace(work).run("latest").parent == work / "runs"
    for name in (Path(trials[0]).name, f"tune/t/{Path(trials[0]).name}"):
        code, refused = shell("export", "--run", name, "--work", work)
        assert code == 2 and "a trial of the sweep 't'" in refused["error"] and "t.best.yaml" in refused["error"]
    code, trained = shell("train", *data(raw, work), "--model", result["config"], *SMALL)
    assert code == 0 and trained["metrics"]["test"]["auc"] > 0.5
