"""A sweep: what is better, what each trial draws, what is pruned, and two workers on one study."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from rich.console import Console

from features.contract.settings import validate
from features.errors import ConfigError
from features.simulator.simulate import simulate
from pipelines.cli.options import settings_of
from pipelines.job_settings import JobSettings
from pipelines.tune import sweep as tune
from pipelines.tune.space import SearchSpace, load_space
from pipelines.tune.sweep import Sweep, open_storage, run_sweep
from pipelines.workspace import Workspace
from tests.pipelines.cli.test_commands import ROOT

SPACE = {"train.learning_rate": {"low": 0.0003, "high": 0.003, "log": True}, "model.dropout": {"low": 0.0, "high": 0.4}}
TINY = ["train.epochs=1", "train.batch_size=256", "train.evaluations_per_epoch=2", "train.patience=0"]
LR = ROOT / "conf" / "model" / "lr.yaml"


@pytest.mark.parametrize(
    ("metric", "better"), [("auc", "maximize"), ("gauc_by_samples", "maximize"), ("log_loss", "minimize")]
)
def test_what_is_better_follows_from_the_metric(metric: str, better: str) -> None:
    space = {"metric": metric, "space": SPACE}
    assert validate(SearchSpace, space, "tune.yaml").better == better
    assert validate(SearchSpace, space | {"direction": better}, "tune.yaml").better == better
    worse = {"maximize": "minimize", "minimize": "maximize"}[better]
    with pytest.raises(
        ConfigError, match=f"tune.yaml: .*{worse} would choose the worst model by {metric}.*it is {better}"
    ):
        validate(SearchSpace, space | {"direction": worse}, "tune.yaml")


def draws(search: SearchSpace, trials: int) -> list[dict[str, float]]:
    """What a study of one worker draws, none of its trials trained."""
    study = optuna.create_study()
    for _ in range(trials):
        trial = study.ask()
        study.sampler = search.sampler(trial.number)
        search.suggest(trial)
        study.tell(trial, 1.0)
    return [trial.params for trial in study.trials]


@pytest.mark.filterwarnings("error")
def test_each_trial_has_draws_of_its_own_and_a_seed_repeats_them() -> None:
    search = validate(SearchSpace, {"space": SPACE, "startup_trials": 5}, "tune.yaml")
    found = draws(search, 5)
    assert len({trial["train.learning_rate"] for trial in found}) == 5
    assert draws(search, 5) == found
    assert draws(search.model_copy(update={"seed": 2}), 5)[0] != found[0]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    simulate(folder / "raw", rows=6_000, users=150, items=100, seed=1)
    (folder / "space.json").write_text(json.dumps({"startup_trials": 1, "space": SPACE}))
    return folder


def sweep(work: Path, monkeypatch: pytest.MonkeyPatch, study: str, trials: int, **space: object) -> Workspace:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    path = work / f"{study}.json"
    path.write_text(json.dumps({"startup_trials": 1, "space": SPACE} | space))
    workspace = Workspace(work)
    data = Path("conf/data/simulated.yaml")
    source, overrides = settings_of(data, TINY, str(work / "raw"), None, None)
    settings = JobSettings(source, data, LR, Path("conf/train.yaml"), overrides, workspace, Console(quiet=True))
    run_sweep(settings, Sweep(study, load_space(path), None, trials))
    return workspace


def test_a_trial_that_is_pruned_is_recorded_as_pruned(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second trial is worse than the first at its second evaluation; the pruner goes by the median there."""
    values = iter([0.7, 0.8, 0.6, 0.5])
    monkeypatch.setattr(optuna.trial.Trial, "report", reporting(optuna.trial.Trial.report, values))
    workspace = sweep(work, monkeypatch, "pruned", 2)
    found = optuna.load_study(study_name="pruned", storage=open_storage(None, "pruned", workspace))
    assert [trial.state.name for trial in found.trials] == ["COMPLETE", "PRUNED"]
    assert found.best_trial.number == 0


def reporting(report, values):
    return lambda trial, value, step: report(trial, next(values), step)


def test_a_study_of_another_direction_is_not_joined(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep(work, monkeypatch, "turned", 1)
    with pytest.raises(ConfigError, match=r"study 'turned': its direction is maximize.*another name with --study"):
        sweep(work, monkeypatch, "turned", 1, metric="log_loss")


def test_a_loss_is_minimised(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = sweep(work, monkeypatch, "loss", 2, metric="log_loss")
    found = optuna.load_study(study_name="loss", storage=open_storage(None, "loss", workspace))
    assert found.best_value == min(trial.value for trial in found.trials)


def test_two_workers_share_a_study(work: Path, tmp_path: Path) -> None:
    """Started together on a feature set that is not built yet: neither fails, and no two trials are alike."""
    command = [sys.executable, "-m", "pipelines", "tune", "--data", str(ROOT / "conf/data/simulated.yaml"),
               "--root", str(work / "raw"), "--work", str(tmp_path), "--model", str(LR), "--study", "shared",
               "--trials", "2", "--space", str(work / "space.json"), "--json"]  # fmt: skip
    command += [part for one in TINY for part in ("--set", one)]
    workers = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in "ab"
    ]
    ended = [worker.communicate() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], ended
    study = optuna.load_study(study_name="shared", storage=open_storage(None, "shared", Workspace(tmp_path)))
    assert [trial.number for trial in study.trials] == [0, 1, 2, 3]
    assert "FAIL" not in {trial.state.name for trial in study.trials}
    assert len({json.dumps(trial.params, sort_keys=True) for trial in study.trials}) == 4
    assert len({trial.params["train.learning_rate"] for trial in study.trials}) == 4
    summaries = [json.loads(out.splitlines()[-1]) for out, _ in ended]
    assert summaries[0]["run_id"] == summaries[1]["run_id"]  # one MLflow run over all trials
    assert len(list((tmp_path / "feature_sets" / "simulated").glob("*/MANIFEST.json"))) == 1
    trials = {path.parent for path in (tmp_path / "runs").rglob("config.json")}
    assert len(trials) == 4 and {path.parent.name for path in trials} == {"shared"}


def test_the_feature_set_is_built_once_for_all_trials(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    build = tune.build

    def counted(source, workspace, wait):
        built.append(wait)
        return build(source, workspace, wait)

    monkeypatch.setattr(tune, "build", counted)
    sweep(work, monkeypatch, "once", 2)
    assert built == [tune.LONGEST_WAIT]
