"""`quadrank features --verify`: a published feature set is compared with its hashes, file by file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.cli.commands import main
from tests.features.raw import CONTENT, make_tables, write_tables


@pytest.fixture
def features(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `quadrank features --json` on a small log; returns the exit code and the JSON."""
    write_tables(tmp_path, make_tables())
    (tmp_path / "raw.yaml").write_text(yaml.safe_dump(CONTENT))

    def run(*options: str) -> tuple[int, dict[str, Any]]:
        paths = ("--data", tmp_path / "raw.yaml", "--root", tmp_path, "--work", tmp_path)
        with pytest.raises(SystemExit) as stop:
            main([*map(str, ("features", *paths, *options)), "--json"])
        return int(stop.value.code or 0), json.loads(capsys.readouterr().out.strip().splitlines()[-1])

    return run


def test_a_sound_feature_set_says_what_was_compared(features: Any) -> None:
    code, first = features("--verify")
    assert (code, first["status"]) == (0, "done")
    listed = json.loads((Path(first["feature_set"]) / "MANIFEST.json").read_text())["files"]
    code, again = features("--verify")
    assert (code, again["status"]) == (0, "reused")
    assert again["verified"] == {"files": len(listed), "bytes": sum(one["bytes"] for one in listed.values())}


def test_a_flipped_byte_ends_in_exit_code_4(features: Any) -> None:
    _, built = features()
    path = Path(built["feature_set"]) / "items.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    code, result = features("--verify")
    assert (code, result["status"]) == (4, "error")
    assert "items.arrow: missing or changed" in result["error"] and f"Delete {path.parent}" in result["error"]


def test_without_the_option_nothing_is_compared(features: Any) -> None:
    _, built = features()
    (Path(built["feature_set"]) / "items.arrow").unlink()
    code, result = features()
    assert code == 0 and "verified" not in result
