"""Records that were broken by hand: what is in use is not known then, so `gc` names the file and removes nothing."""

from __future__ import annotations

import pytest

from features.errors import DataError
from pipelines.workspace import Workspace
from tests.pipelines.operate.places import cleaned, unused


def test_a_history_that_cannot_be_read_is_named_and_nothing_goes(workspace: Workspace, days: list[str]) -> None:
    """Which bundles were in use is not known then."""
    file = workspace.bundles("shop") / "HISTORY.jsonl"
    file.write_text('{"from": null, "to": "a"}\n{"to": }\n')
    with pytest.raises(DataError) as found:
        cleaned(workspace, yes=True)
    line = "'{\"to\": }'"
    assert str(found.value) == f"{file}: line 2 is no move of CURRENT: {line}. Take the line out, or the file away."
    assert [(workspace.bundles("shop") / run).is_dir() for run in days] == [True] * 4


@pytest.mark.parametrize("content", ["[]", "{", '{"feature_set": 5}', '{"warm_start": {"run_id": "a"}}', "{}"])
def test_a_run_in_use_whose_config_is_broken_is_named_and_nothing_goes(
    workspace: Workspace, days: list[str], content: str
) -> None:
    """Which feature set it needs is not known then."""
    file = workspace.runs / days[3] / "config.json"
    file.write_text(content)
    with pytest.raises(DataError) as found:
        cleaned(workspace, yes=True)
    assert str(found.value) == (
        f"{file}: does not name the feature set of its run, which is in use, so what may go is not known. Put the file "
        "back as it was, or take the folder away."
    )
    assert [(workspace.runs / run).is_dir() for run in days] == [True] * 4


def test_a_run_whose_config_is_broken_goes_as_any_other(workspace: Workspace, days: list[str]) -> None:
    (workspace.runs / days[0] / "config.json").write_text('{"feature_set": 5, "warm_start": "x"}')
    assert unused(workspace)[f"runs/{days[0]}"] == "run"


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"model_version": "x"}', '{"model_version": 3, "feature_set": "a"}', "{}"]
)
def test_a_bundle_in_use_whose_manifest_is_broken_is_named_and_nothing_goes(
    workspace: Workspace, days: list[str], content: str
) -> None:
    """Which run and feature set it needs is not known then."""
    file = workspace.bundles("shop") / days[3] / "MANIFEST.json"
    file.write_text(content)
    with pytest.raises(DataError) as found:
        cleaned(workspace, yes=True)
    assert str(found.value) == (
        f"{file}: does not name the run and the feature set of its bundle, which is in use, so what may go is not "
        "known. Put the file back as it was, or take the folder away."
    )
    assert [(workspace.bundles("shop") / run).is_dir() for run in days] == [True] * 4


@pytest.mark.parametrize("place", ["bundles/shop", "feature_sets/shop"])
def test_a_pointer_that_is_no_text_is_named_and_nothing_goes(workspace: Workspace, days: list[str], place: str) -> None:
    """What is in use is not known then."""
    (workspace.root / place / "CURRENT").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"CURRENT: is no text: .* Write the name of a folder beside it into it\."):
        cleaned(workspace, yes=True)
    assert [(workspace.bundles("shop") / run).is_dir() for run in days] == [True] * 4
