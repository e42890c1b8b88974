"""The commands as a user types them, end to end on a small simulated log: outputs, exit codes, messages."""

import json
from pathlib import Path

import pytest

from pipelines.cli import main

ROOT = Path(__file__).parents[2]
SMALL = ["--set", "train.epochs=1", "--set", "train.batch_size=512", "--set", "train.evaluations_per_epoch=2"]


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
        main(["run", "--data", "conf/data/simulated.yaml", "--root", str(raw), "--work", str(work), *SMALL, "--json"])
    out.write_text(text.getvalue())
    return int(stop.value.code or 0), json.loads(text.getvalue().strip().splitlines()[-1])


def data(raw, work):
    return ["--data", "conf/data/simulated.yaml", "--root", str(raw), "--work", str(work)]


def test_simulate_keeps_the_log_of_the_same_arguments(shell, raw):
    code, result = shell("simulate", "--out", raw, "--rows", "20000", "--users", "400", "--items", "300")
    assert (code, result["status"]) == (0, "reused")


def test_run_does_everything_and_says_what_it_did(job, work):
    code, result = job
    assert code in (0, 6) and result["exit_code"] == code
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
    assert run.data.params["train.batch_size"] == "512"
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


def test_the_bundle_scores_the_test_window_as_torch_did(shell, job, work):
    code, result = shell("evaluate", "--bundle", job[1]["bundle"], "--work", work)
    assert code == 0
    assert result["metrics"]["test"]["auc"] == pytest.approx(job[1]["metrics"]["test"]["auc"], abs=1e-5)
    assert result["metrics"]["test"]["log_loss"] == pytest.approx(job[1]["metrics"]["test"]["log_loss"], abs=1e-5)


def test_export_again_gives_the_same_scores(shell, job, work, tmp_path):
    code, result = shell("export", "--run", job[1]["run_id"], "--out", tmp_path / "again", "--work", work)
    assert code == 0 and result["max_abs_difference"] <= 1e-5
    for name in ("golden.json", "item_table.bin"):
        assert (tmp_path / "again" / name).read_bytes() == (Path(job[1]["bundle"]) / name).read_bytes()


def request_file(job, tmp_path, **changes):
    request = json.loads((Path(job[1]["bundle"]).parent / "request.json").read_text()) | changes
    path = tmp_path / "request.json"
    path.write_text(json.dumps(request))
    return path


def test_rank_prints_candidates_best_first(shell, job, tmp_path):
    code, result = shell("rank", "--bundle", job[1]["bundle"], "--request", request_file(job, tmp_path))
    scores = [entry["score"] for entry in result["ranked"]]
    assert code == 0 and scores == sorted(scores, reverse=True) and 0 < scores[-1] <= scores[0] < 1
    assert result["model_version"] == job[1]["run_id"]


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


def test_promote_moves_the_alias_or_refuses(shell, job, work):
    code, result = shell("promote", "--bundle", job[1]["bundle"], "--work", work)
    assert code == job[0]
    if code == 0:
        assert result["alias"] == "champion" and result["version"] == "1"
    else:
        assert "AUC" in result["error"] or "calibration" in result["error"]


def test_an_interrupted_run_goes_on_in_its_own_mlflow_run(shell, raw, work, monkeypatch):
    from mlflow import MlflowClient

    import pipelines.train

    looks = []

    def interrupt(evaluation):
        looks.append(evaluation)
        raise KeyboardInterrupt

    whole = pipelines.train.Job.fit
    monkeypatch.setattr(pipelines.train.Job, "fit", lambda job: whole(job, on_evaluation=interrupt))
    code, result = shell("train", *data(raw, work), *SMALL)
    assert code == 130 and "--resume" in result["error"] and len(looks) == 1
    monkeypatch.undo()
    monkeypatch.chdir(ROOT)
    interrupted = sorted((work / "runs").glob("*-simulated-*"))[-1]
    code, result = shell("train", *data(raw, work), "--resume", interrupted.name, *SMALL)
    assert code == 0 and result["run_id"] == interrupted.name
    client = MlflowClient(f"sqlite:///{work / 'mlflow.db'}")
    run = client.get_run((interrupted / "mlflow_run_id").read_text())
    assert run.info.status == "FINISHED"
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "valid.auc")]
    assert len(steps) == 2 and steps[0] == looks[0].step < steps[1]


def test_tune_nests_trials_and_writes_a_config_that_train_accepts(shell, job, raw, work, tmp_path):
    space = tmp_path / "space.yaml"
    space.write_text(
        "startup_trials: 1\nspace: {model.dropout: {low: 0.0, high: 0.3}, model.rows: {low: 1, high: 2}}\n"
    )
    code, result = shell("tune", *data(raw, work), "--study", "t", "--trials", "2", "--space", space, *SMALL)
    assert code == 0 and sum(result["trials"].values()) == 2
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{work / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("quadrank-simulated").experiment_id
    children = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{result['run_id']}'")
    assert len(children) == 2
    code, trained = shell("train", *data(raw, work), "--model", result["config"], *SMALL)
    assert code == 0 and trained["metrics"]["test"]["auc"] > 0.5


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--set", "train.epoch=1"], 2, ["train.epoch", "epochs"]),
        (["--set", "model.dropout=2"], 2, ["dropout"]),
        (["--set", "tarin.epochs=1"], 2, ["tarin", "train"]),
        (["--set", "train.epochs"], 2, ["section.key=value"]),
        (["--set", "data.history.maxlen=3"], 2, ["maxlen", "max_len"]),
        (["--model", "conf/model/none.yaml"], 2, ["none.yaml", "qin.yaml"]),
        (["--root", "/nowhere"], 4, ["/nowhere", "interactions.parquet"]),
        (["--set", "data.interactions.label=clicks"], 4, ["clicks", "clicked", "interactions.parquet"]),
    ],
)
def test_wrong_settings_are_explained(shell, raw, work, arguments, code, words):
    found, result = shell("train", *data(raw, work), *arguments)
    assert (found, result["status"]) == (code, "error")
    for word in words:
        assert word in result["error"]


def test_a_second_job_on_the_same_data_is_kept_out(shell, raw, work):
    from pipelines.workspace import Workspace

    with Workspace(work).lock("simulated"):
        code, result = shell("run", *data(raw, work), *SMALL)
    assert code == 7 and "lock" in result["error"]
