"""`--set` in each command: a section that the command does not read is refused, and those that it reads are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.cli.commands import main
from pipelines.cli.options import name_of

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
        (["run", *SIMULATED], "serve", "data, model, train, gate"),
        (["tune", *SIMULATED, "--study", "s"], "tune", "data, model, train"),
        (["rank", "--bundle", "b"], "model", "serve"),
        (["drift", "--base", "a", "--new", "b"], "train", "drift"),
        (["promote", "--bundle", "b"], "train", "gate"),
        (["compare", "--study", "conf/studies/movielens.yaml"], "train", "study, data"),
        (["ablate"], "model", "study, data"),
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
    assert [path.name for path in tmp_path.iterdir()] == (["status"] if arguments[0] == "run" else [])


def test_settings_of_a_study_are_refused_where_there_is_no_study_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        main(["compare", "--models", "qin", "--set", "study.seeds=1"])
    assert stop.value.code == 2
    expected = "--set study.…: changes a study file, and --models has none: use --seeds and --data"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "assignments", "name"),
    [
        ("name: shop\nroot: data\n", [], "shop"),
        ('{"name": "shop", "root": "data"}', [], "shop"),
        ("root: [\nname: 'shop'  # ours\n", [], "shop"),
        ("name: shop\n", ["train.epochs=1", "data.name=store"], "store"),
        ("name: shop\n", ["data.name= 'store' "], "store"),
        ("name: ../shop\n", [], None),
        ("name: [shop]\n", [], None),
        ("root: data\n", [], None),
    ],
)
def test_a_contract_is_named_though_the_rest_of_it_cannot_be_used(
    tmp_path: Path, text: str, assignments: list[str], name: str | None
) -> None:
    (tmp_path / "shop.yaml").write_text(text)
    assert name_of(tmp_path / "shop.yaml", assignments) == name


def test_a_contract_that_is_not_there_has_no_name(tmp_path: Path) -> None:
    assert name_of(tmp_path / "shop.yaml", None) is None
