"""Which codes a night tries again, and the limits and the kill that a trouble sets; the command is a stand-in."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.month import night
from benchmarks.month.night import Nights


def nights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codes: list[int]) -> tuple[Nights, list[Any]]:
    asked: list[Any] = []

    def ended(self: Nights, arguments: list[str], limit: int | None, kill: bool) -> tuple[int, dict[str, Any], str]:
        asked.append((arguments, limit, kill))
        return codes[len(asked) - 1], {"exit_code": codes[len(asked) - 1]}, "first\nlast\n"

    monkeypatch.setattr(Nights, "_quadrank", ended)
    return Nights(["run"], tmp_path, "http://none", 3), asked


@pytest.mark.parametrize(
    ("codes", "tried"),
    [([0], [0]), ([4, 0], [4]), ([6, 0], [6]), ([75, 0], [75, 0]), ([75, 75, 0], [75, 75]), ([7, 3], [7, 3]),
     ([-9, 0], [-9, 0]), ([1, 0], [1])],
)  # fmt: skip
def test_a_night_tries_again_once_where_the_docs_say_so(tmp_path, monkeypatch, codes, tried):
    nightly, _ = nights(tmp_path, monkeypatch, codes)
    ended = nightly.run("2025-03-10", None)
    assert ended.codes == tuple(tried) and ended.summary == {"exit_code": tried[-1]} and ended.last_line == "last"


def test_a_full_disk_lasts_for_all_tries_and_a_kill_is_one(tmp_path, monkeypatch):
    nightly, asked = nights(tmp_path, monkeypatch, [75, 75])
    nightly.run("2025-03-10", "disk")
    assert asked == [(["run", "--as-of", "2025-03-10"], size, False) for size in night.SMALL_FILES]
    nightly, asked = nights(tmp_path, monkeypatch, [-9, 0])
    nightly.run("2025-03-10", "kill")
    assert [kill for *_, kill in asked] == [True, False]


def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Nights:
    """Nights whose command is a small Python script that gets the arguments."""
    (tmp_path / "pipelines.py").write_text(f"import sys, json, os, pathlib, time\n{script}\n")
    monkeypatch.setattr(night, "ROOT", tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    return Nights(["run", "--work", str(work)], work, "http://tracking", 3)


def test_a_command_is_a_process_whose_code_and_json_are_read(tmp_path, monkeypatch):
    script = (
        "print(json.dumps({'asked': sys.argv[1:], 'uri': os.environ['MLFLOW_TRACKING_URI']}))\n"
        "print('quadrank: exit 4', file=sys.stderr); sys.exit(4)"
    )
    nightly = stand_in(tmp_path, monkeypatch, script)
    ended = nightly.run("2025-03-10", None)
    work = str(tmp_path / "work")
    assert ended.codes == (4,) and ended.last_line == "quadrank: exit 4"
    expected = {"asked": ["run", "--work", work, "--as-of", "2025-03-10", "--json"], "uri": "http://tracking"}
    assert ended.summary == expected
    assert nightly.clean() == 4


def test_the_full_disk_takes_no_larger_file(tmp_path, monkeypatch):
    script = (
        f"try: pathlib.Path({str(tmp_path / 'large')!r}).write_bytes(bytes(600 * 2**10))\n"
        "except OSError as error: print(json.dumps({'number': error.errno})); sys.exit(75)"
    )
    nightly = stand_in(tmp_path, monkeypatch, script)
    assert nightly.run("2025-03-10", "disk").codes == (75, 75)
    assert (tmp_path / "large").stat().st_size == night.SMALL_FILES[1]
    assert nightly.run("2025-03-10", None).codes == (0,)


def test_a_kill_comes_with_the_first_new_checkpoint(tmp_path, monkeypatch):
    """The first try would wait for ever; the second finds what the first one wrote."""
    script = (
        "work = pathlib.Path(sys.argv[3]); new = work / 'runs/b/checkpoint.json'\n"
        "if new.exists(): print('{}'); sys.exit(0)\n"
        "time.sleep(0.3); new.parent.mkdir(); new.write_text('')\n"
        "time.sleep(600)"
    )
    nightly = stand_in(tmp_path, monkeypatch, script)
    (tmp_path / "work/runs/a").mkdir(parents=True)
    (tmp_path / "work/runs/a/checkpoint.json").touch()
    assert nightly.run("2025-03-10", "kill").codes == (night.KILLED, 0)


def test_the_interpreter_is_the_one_that_runs_the_tests(tmp_path, monkeypatch):
    nightly = stand_in(tmp_path, monkeypatch, "print(json.dumps({'python': sys.executable}))")
    assert nightly.run("2025-03-10", None).summary == {"python": sys.executable}
