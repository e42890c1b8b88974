"""`--set` in each command: a section that the command does not read is refused, and those that it reads are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.cli.commands import main

ROOT = Path(__file__).parents[3]
SIMULATED = ["--data", "conf/data/simulated.yaml"]


@pytest.mark.parametrize(
    ("arguments", "section", "sections"),
    [
        (["features", *SIMULATED], "model", "data"),
        (["features", *SIMULATED], "train", "data"),
        (["inspect-embeddings", *SIMULATED], "model", "data"),
        (["inspect-embeddings", *SIMULATED], "train", "data"),
        (["train", *SIMULATED], "drift", "data, model, train"),
        (["run", *SIMULATED], "serve", "data, model, train"),
        (["tune", *SIMULATED, "--study", "s"], "tune", "data, model, train"),
        (["rank", "--bundle", "b"], "model", "serve"),
        (["drift", "--base", "a", "--new", "b"], "train", "drift"),
        (["compare", "--study", "conf/studies/movielens.yaml"], "train", "study"),
        (["ablate"], "model", "study"),
        (["stress"], "train", "stress"),
        (["bench", "train"], "data", "model, train"),
    ],
)
def test_a_section_that_the_command_does_not_read_is_refused(
    arguments: list[str],
    section: str,
    sections: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    work = ["--work", str(tmp_path)] if arguments[0] in ("features", "inspect-embeddings", "train", "run") else []
    with pytest.raises(SystemExit) as stop:
        main([*arguments, *work, "--set", f"{section}.epochs=1"])
    assert stop.value.code == 2
    expected = f"error: --set {section}.…: this command reads no section of that name. It reads: {sections}."
    assert capsys.readouterr().err.strip() == f"{expected}\nquadrank: exit 2"
    assert not any(tmp_path.iterdir())


def test_settings_of_a_study_are_refused_where_there_is_no_study_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        main(["compare", "--models", "qin", "--set", "study.seeds=1"])
    assert stop.value.code == 2
    assert "--set changes a study file, and --models has none: use --seeds and --data" in capsys.readouterr().err
