"""A project folder of one's own: what is in it, that its files are valid, and that a job runs there."""

import re
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from features.contract.contract import Contract, load_contract
from pipelines.cli.commands import main

ROOT = Path(__file__).parents[2]
JOB_TARGETS = ("simulate", "features", "train", "tune", "export", "promote", "rollback", "serve", "report")


def init(folder, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(["init", str(folder), *arguments, "--json"])
    return int(stop.value.code or 0)


@pytest.fixture
def project(tmp_path):
    assert init(tmp_path / "shop") == 0
    return tmp_path / "shop"


def recipe(folder, target, *variables):
    """What `make target` would run, its command named `quadrank` whichever it is."""
    command = ["make", "--dry-run", "--old-file=.venv/.ready", target, *variables]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return result.stdout.replace(".venv/bin/quadrank", "quadrank")


def test_a_project_holds_settings_a_makefile_and_a_readme(project):
    assert {path.relative_to(project).as_posix() for path in project.rglob("*") if path.is_file()} == {
        ".gitignore",
        "Makefile",
        "README.md",
        "conf/data/simulated.yaml",
        "conf/data/yours.yaml",
        "conf/studies/simulated.yaml",
        "conf/studies/simulated_ablation.yaml",
        *(path.relative_to(ROOT).as_posix() for path in (ROOT / "conf").glob("*.yaml")),
        *(path.relative_to(ROOT).as_posix() for path in (ROOT / "conf/model").glob("*.yaml")),
        *(path.relative_to(ROOT).as_posix() for path in (ROOT / "conf/spaces").glob("*.yaml")),
    }


def test_the_readme_says_what_every_settings_file_is_for(project):
    named = re.findall(r"`(conf/[^`]+)`", (project / "README.md").read_text(encoding="utf-8"))
    files = [path.relative_to(project).as_posix() for path in (project / "conf").rglob("*.yaml")]
    told = [file for file in files if any(fnmatch(file, f"{one}*" if one.endswith("/") else one) for one in named)]
    assert sorted(told) == sorted(files)


@pytest.mark.parametrize("target", JOB_TARGETS)
def test_a_target_runs_what_it_runs_in_a_checkout(project, target):
    variables = ["SET=train.epochs=1 data.interactions.label=rating >= 4", "ROWS=100", "ROOT=/some where"]
    assert recipe(project, target, *variables) == recipe(ROOT, target, *variables)


def test_the_makefile_takes_the_contract_that_was_asked_for(tmp_path):
    assert init(tmp_path / "films", "--data", "movielens_100k") == 0
    assert "--data conf/data/movielens_100k.yaml" in recipe(tmp_path / "films", "train")
    assert (tmp_path / "films/conf/data/movielens_100k.yaml").is_file()


def test_the_contract_to_fill_in_is_valid_as_it_is(project):
    assert load_contract(project / "conf/data/yours.yaml").name == "yours"


def test_every_setting_of_the_contract_to_fill_in_is_valid_when_it_is_switched_on(project):
    """`negatives` alone goes with a log that has no label."""
    text = (project / "conf/data/yours.yaml").read_text(encoding="utf-8")
    switched_on = re.sub(r"^( *)#(?=[a-z])(?!negatives)", r"\1", text, flags=re.MULTILINE)
    contract = Contract.model_validate(yaml.safe_load(switched_on))
    assert contract.items is not None and set(contract.embeddings) == {"text", "image"}


def test_the_contract_to_fill_in_has_every_section_once(project):
    """The truth is known of a simulated log alone."""
    text = (project / "conf/data/yours.yaml").read_text(encoding="utf-8")
    named = re.findall(r"^#?([a-z]+):", text, flags=re.MULTILINE)
    assert sorted(named) == sorted(set(Contract.model_fields) - {"truth"})


def test_a_project_has_an_ablation_of_its_own_data(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    with pytest.raises(SystemExit) as stop:
        main(["ablate", "--root", "nowhere"])
    assert stop.value.code == 4
    assert "nowhere/interactions.parquet: no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "there"),
    [
        ((), "conf/studies holds mind"),
        (("b_ablation", "c_ablation"), "conf/studies holds b_ablation, c_ablation, mind"),
    ],
)
def test_a_project_without_one_ablation_is_told_to_name_a_study(tmp_path, monkeypatch, capsys, more, there):
    assert init(tmp_path / "news", "--data", "mind") == 0
    for name in more:
        shutil.copyfile(tmp_path / "news/conf/studies/mind.yaml", tmp_path / f"news/conf/studies/{name}.yaml")
    monkeypatch.chdir(tmp_path / "news")
    with pytest.raises(SystemExit) as stop:
        main(["ablate"])
    assert stop.value.code == 2
    expected = f"error: ablate: name the variants to compare, --study FILE; {there}. Its form is in docs/proof.md"
    assert expected in capsys.readouterr().err


def test_without_any_study_the_way_to_one_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["ablate"])
    assert stop.value.code == 2
    assert (
        "--study FILE; there is no folder conf/studies here. `quadrank init DIR` writes one" in capsys.readouterr().err
    )


def test_clean_all_removes_nothing_that_is_not_confirmed(project):
    (project / "mlflow.db").touch()
    result = subprocess.run(["make", "clean-all"], cwd=project, capture_output=True, text=True, check=False)
    assert result.returncode != 0 and "with CONFIRM=yes" in result.stdout
    assert (project / "mlflow.db").exists()


def command(*arguments):
    """Run `quadrank ARGUMENTS` in this process; its exit code."""
    with pytest.raises(SystemExit) as stop:
        main([*arguments])
    return int(stop.value.code or 0)


def test_the_contract_to_fill_in_reads_a_log_with_the_columns_it_names(project, monkeypatch):
    """The simulated log has them."""
    monkeypatch.chdir(project)
    assert command("simulate", "--out", "data/yours", "--rows", "3000", "--users", "60", "--items", "50") == 0
    assert command("features", "--data", "conf/data/yours.yaml") == 0
    assert (project / "feature_sets/yours/CURRENT").exists()


@pytest.mark.slow
def test_the_whole_job_runs_in_a_project(project, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert command("simulate", "--rows", "20000", "--users", "400", "--items", "300") == 0
    small = ["--set", "train.epochs=3", "--set", "train.batch_size=128", "--set", "train.evaluations_per_epoch=1"]
    assert command("run", "--data", "conf/data/simulated.yaml", "--model", "conf/model/lr.yaml", *small) == 0
    assert command("rank", "--bundle", "bundles/simulated/CURRENT") == 0


def test_version_control_leaves_out_what_the_commands_write(project):
    shutil.copyfile(project / ".gitignore", project / "kept")
    subprocess.run(["git", "init", "--quiet"], cwd=project, check=True)
    for folder in ("data", "runs", "jobs", "bundles", "feature_sets", "mlartifacts", ".cache", "inspections"):
        name = f"{folder}/a"
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).touch()
    (project / "mlflow.db").touch()
    seen = subprocess.run(["git", "status", "--porcelain"], cwd=project, capture_output=True, text=True, check=True)
    assert {line.split()[1] for line in seen.stdout.splitlines()} == {
        ".gitignore",
        "Makefile",
        "README.md",
        "conf/",
        "kept",
    }


def next_steps(capsys):
    """What `init` tells to do next, its first line."""
    return next(line.strip() for line in capsys.readouterr().err.splitlines() if line.startswith("  cd "))


def test_the_next_step_can_be_pasted_whatever_the_folder_is_called(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert init("my shop's", "--data", "movielens_100k") == 0
    assert next_steps(capsys) == """cd 'my shop'"'"'s' && quadrank download movielens_100k"""


def test_a_contract_that_nothing_is_downloaded_for_says_where_its_files_go(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert init("shop", "--data", "clickstream") == 0
    assert next_steps(capsys) == "cd shop, put the files that conf/data/clickstream.yaml names into data/clickstream"


def test_a_week_of_a_data_set_is_downloaded_with_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert init("shop", "--data", "ebnerd_week") == 0
    assert next_steps(capsys) == "cd shop, put the files that conf/data/ebnerd_week.yaml names into data/ebnerd_demo"


def test_a_folder_that_holds_anything_is_refused(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    assert init(tmp_path) == 2
    assert "not empty, it holds notes.txt" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt"]


def test_a_contract_that_is_not_shipped_is_refused_with_the_nearest(tmp_path, capsys):
    assert init(tmp_path / "shop", "--data", "simulate") == 2
    assert "Did you mean 'simulated'?" in capsys.readouterr().err
    assert not (tmp_path / "shop").exists()
