"""`quadrank inspect-embeddings`: table, pictures, JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from features.simulator.simulate import simulate
from pipelines.cli import main

CONF = Path(__file__).parents[2] / "conf" / "data" / "simulated.yaml"


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


def test_a_contract_without_vectors_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulate(tmp_path / "raw", rows=2_000, users=50, items=60, seed=1)
    bare = tmp_path / "bare.yaml"
    bare.write_text(
        "name: bare\ninteractions: {path: interactions.parquet, user: user_id, item: item_id, time: timestamp, "
        "label: clicked}\n"
    )
    assert run("--data", str(bare), "--root", str(tmp_path / "raw"), "--work", str(tmp_path)) == 2
    assert "has no `embeddings` to inspect" in capsys.readouterr().err
