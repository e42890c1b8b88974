"""What `quadrank replay` says where it finds no raw log."""

from __future__ import annotations

from pathlib import Path

from features.contract.contract import Contract
from pipelines.serving.replay import _why_no_raw_log


def test_a_raw_log_that_is_not_found_is_asked_for_by_its_folder(tmp_path: Path) -> None:
    columns = {"user": "user", "item": "item", "time": "time", "label": "clicked"}
    contract = Contract.model_validate(
        {"name": "shop", "root": str(tmp_path), "interactions": {"path": "log.parquet", **columns}}
    )
    why = _why_no_raw_log(contract)
    assert why is not None
    assert why.startswith(f"{tmp_path}/log.parquet: no such file")
    assert why.endswith("A bundle keeps no `root` of its contract: name the folder of the raw log with --root.")
