"""`quadrank bench daily` at a tiny size."""

import json

import pytest

from pipelines.cli.commands import main


@pytest.mark.slow
def test_a_day_added_keeps_the_old_days(tmp_path, capsys):
    arguments = [
        "bench",
        "daily",
        "--rows",
        "10000",
        "--window",
        "4",
        "--repeats",
        "1",
        "--out",
        str(tmp_path),
        "--json",
    ]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    payload = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [result["name"] for result in payload["results"]] == ["a day added", "whole window"]
    assert list(payload["ratios"]) == ["day_over_window_4d_10k"]
