"""`quadrank inspect-embeddings`: table, pictures, JSON."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from features.simulator.simulate import simulate
from features.vectors.inspection.advice import LEARNED
from pipelines.cli.commands import main

CONF = Path(__file__).parents[3] / "conf" / "data" / "simulated.yaml"


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["inspect-embeddings", *arguments])
    return int(ended.value.code or 0)


def test_it_writes_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulate(tmp_path / "raw", rows=6_000, users=100, items=200, seed=1)
    code = run("--data", str(CONF), "--root", str(tmp_path / "raw"), "--work", str(tmp_path), "--json")
    printed = capsys.readouterr()
    payload = json.loads(printed.out.splitlines()[-1])
    assert code == 0 and payload["exit_code"] == 0
    folder = tmp_path / "inspections" / "simulated"
    assert (folder / "inspection.png").stat().st_size > 10_000
    written = json.loads((folder / "inspection.json").read_text())
    assert [one["name"] for one in written["sets"]] == ["text", "image"] == [one["name"] for one in payload["sets"]]
    assert written["advice"] in printed.err and "next click in 10 nearest" in printed.err
    assert 0.8 < written["sets"][1]["items_covered"] < 0.95
    assert written["sets"][0]["recall"]["value"] > 2 * written["sets"][0]["random_recall"]
    assert "samples" not in written["sets"][0] and written["sets"][0]["probe"]["category"] > 0.8


def test_out_names_the_folder(tmp_path: Path) -> None:
    simulate(tmp_path / "raw", rows=2_000, users=50, items=120, seed=1)
    folder = tmp_path / "elsewhere"
    assert run("--data", str(CONF), "--root", str(tmp_path / "raw"), "--work", str(tmp_path), "--out", str(folder)) == 0
    assert {path.name for path in folder.iterdir()} == {"inspection.json", "inspection.png"}


def test_sets_that_say_nothing_are_drawn_too(tmp_path: Path) -> None:
    """One vector, and vectors of zeros: no pair, no length, no direction."""
    simulate(tmp_path / "raw", rows=2_000, users=50, items=120, seed=1)
    ids = pl.read_parquet(tmp_path / "raw" / "items.parquet")["item_id"]
    for name, number in (("zeros", len(ids)), ("lonely", 1)):
        table = {"item_id": ids[:number], "vector": [[0.0, 0.0]] * number}
        pl.DataFrame(table).write_parquet(tmp_path / "raw" / f"{name}.parquet")
    contract = tmp_path / "odd.yaml"
    contract.write_text(
        "name: odd\ninteractions: {path: interactions.parquet, user: user_id, item: item_id, time: timestamp, "
        "label: clicked}\nembeddings: {zeros: {path: zeros.parquet}, lonely: {path: lonely.parquet}}\n"
    )
    assert run("--data", str(contract), "--root", str(tmp_path / "raw"), "--work", str(tmp_path)) == 0
    written = json.loads((tmp_path / "inspections" / "odd" / "inspection.json").read_text())
    assert [one["recall"] is None for one in written["sets"]] == [False, True]
    assert written["sets"][0]["recall"]["value"] == pytest.approx(written["sets"][0]["random_recall"])
    assert written["advice"].startswith("No set finds")


def contract_with(folder: Path, name: str, more: str = "") -> str:
    """A contract of the simulated log's interactions alone, with more sections."""
    path = folder / f"{name}.yaml"
    path.write_text(
        f"name: {name}\ninteractions: {{path: interactions.parquet, user: user_id, item: item_id, time: timestamp, "
        f"label: clicked}}\n{more}"
    )
    return str(path)


def test_a_learned_set_is_measured_but_not_judged(tmp_path: Path) -> None:
    simulate(tmp_path / "raw", rows=2_000, users=50, items=120, seed=1)
    contract = contract_with(tmp_path, "learning", "embeddings: {covisit: {learn: history, width: 8}}\n")
    assert run("--data", contract, "--root", str(tmp_path / "raw"), "--work", str(tmp_path)) == 0
    written = json.loads((tmp_path / "inspections" / "learning" / "inspection.json").read_text())
    assert (written["sets"][0]["width"], written["sets"][0]["advice"]) == (8, LEARNED)


def test_a_contract_without_vectors_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulate(tmp_path / "raw", rows=2_000, users=50, items=120, seed=1)
    assert run("--data", contract_with(tmp_path, "bare"), "--root", str(tmp_path / "raw"), "--work", str(tmp_path)) == 2
    assert "has no `embeddings` to inspect" in capsys.readouterr().err
