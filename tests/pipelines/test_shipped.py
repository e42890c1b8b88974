"""Which settings file a command reads: the one in the working folder, else of a default the shipped one."""

import json
from pathlib import Path

import pytest
import yaml

from pipelines import shipped
from pipelines.cli.commands import main
from pipelines.shipped import default_settings, shipped_conf
from tests.features.raw import CONTENT

ROOT = Path(__file__).parents[2]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_checkout_ships_its_own_conf():
    assert shipped_conf() == ROOT / "conf"


def test_an_installed_package_ships_the_conf_inside_of_it(tmp_path, monkeypatch):
    (tmp_path / "conf").mkdir()
    monkeypatch.setattr(shipped, "__file__", str(tmp_path / "shipped.py"))
    assert shipped_conf() == tmp_path / "conf"


def test_a_default_is_the_shipped_file_where_none_is_here(elsewhere):
    assert default_settings("train.yaml") == ROOT / "conf/train.yaml"


def test_a_default_is_the_file_of_the_working_folder_first(elsewhere):
    (elsewhere / "conf").mkdir()
    (elsewhere / "conf/train.yaml").touch()
    assert default_settings("train.yaml") == Path("conf/train.yaml")


MINE = ["--data", "mine.yaml"]
MODEL = ["--model", "conf/model/qin.yaml"]


@pytest.mark.parametrize(
    ("arguments", "how"),
    [
        (["train", *MINE, *MODEL], "`quadrank init DIR` writes"),
        (["train", *MINE, "--train", "conf/train.yaml"], "`quadrank init DIR` writes"),
        (["train", "--data", "conf/data/mind.yaml"], "`quadrank init DIR --data mind` writes"),
        (["run", *MINE, *MODEL], "`quadrank init DIR` writes"),
        (["run", *MINE, *MODEL, "--dry-run"], "`quadrank init DIR` writes"),
        (["run", "--data", "conf/data/mind.yaml"], "`quadrank init DIR --data mind` writes"),
        (["features", "--data", "conf/data/mind.yaml"], "`quadrank init DIR --data mind` writes"),
        (["tune", *MINE, "--study", "s", *MODEL], "`quadrank init DIR` writes"),
        (["tune", *MINE, "--study", "s", "--space", "conf/tune.yaml"], "`quadrank init DIR` writes"),
        (["promote", "--bundle", "b", "--gate", "conf/gate.yaml"], "`quadrank init DIR` writes"),
        (["rollback", "--data", "conf/data/mind.yaml"], "`quadrank init DIR --data mind` writes"),
        (["rank", "--bundle", "b", "--request", "r", "--serve", "conf/serve.yaml"], "`quadrank init DIR` writes"),
        (["serve", "--bundle", "b", "--serve", "conf/serve.yaml"], "`quadrank init DIR` writes"),
        (["stress", "--config", "conf/stress.yaml"], "`quadrank init DIR` writes"),
        (["compare", "--study", "conf/studies/mind.yaml"], "`quadrank init DIR --data mind` writes"),
        (["compare", "--data", "conf/data/mind.yaml", "--models", "qin"], "`quadrank init DIR --data mind` writes"),
        (["ablate", "--study", "conf/studies/movielens_ablation.yaml"], "`quadrank init DIR --data movielens` writes"),
        (["ablate", "--study", "conf/studies/simulated.yaml"], "`quadrank init DIR` writes"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_shipped_file_that_is_named_and_not_here_is_answered_with_init(elsewhere, capsys, arguments, how):
    (elsewhere / "mine.yaml").write_text(yaml.safe_dump(CONTENT | {"name": "mine"}), encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    path = next(one for one in arguments if one.startswith("conf/"))
    assert f"{path}: no such file in {elsewhere}. QuadRank ships it: {how}" in capsys.readouterr().err


def test_a_file_that_is_not_shipped_either_is_simply_not_there(elsewhere, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["features", "--data", "conf/data/nowhere.yaml"])
    assert stop.value.code == 2
    assert "error: conf/data/nowhere.yaml: no such file.\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "path"),
    [("--model", "conf/model/qin.yaml"), ("--train", "conf/train.yaml"), ("--gate", "conf/gate.yaml")],
)
def test_a_job_whose_shipped_file_is_not_here_leaves_its_outcome(elsewhere, option, path):
    (elsewhere / "mine.yaml").write_text(yaml.safe_dump(CONTENT | {"name": "mine"}), encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        main(["run", "--data", "mine.yaml", option, path])
    assert stop.value.code == 2
    outcome = json.loads((elsewhere / "status/mine/outcome.json").read_text(encoding="utf-8"))
    assert outcome["exit_code"] == 2
    assert outcome["error"].startswith(f"{path}: no such file in {elsewhere}. QuadRank ships it")


def test_a_file_that_is_not_shipped_is_answered_as_ever(elsewhere, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--data", "conf/data/mine.yaml"])
    assert stop.value.code == 2
    assert "error: conf/data/mine.yaml: no such file." in capsys.readouterr().err


def test_presets_by_name_are_found_where_no_conf_is(elsewhere, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["compare", "--models", "lr,nothing"])
    assert stop.value.code == 2
    assert "no preset" in (said := capsys.readouterr().err) and "model/nothing.yaml" in said and "qin_plus" in said
