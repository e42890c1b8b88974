"""The files that `quadrank score` reads and writes, and what it refuses to read or to replace."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from ctr.export.past_snapshot import write_pasts
from ctr.serving.bundle import open_bundle, seal
from features.encoding.encoder import Encoder
from features.errors import ConfigError, DataError
from pipelines.serving.score import score_file
from tests.ctr.serving.shop import export
from tests.pipelines.serving.test_score import modelled

ROWS = pa.table({"user": ["u1", "u2"] * 50, "item": list(range(100, 150)) * 2, "load": [float(i) for i in range(100)]})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, feature_set = modelled(folder := tmp_path_factory.mktemp("shop"))
    path = export(model, feature_set, folder / "bundle", scorer=True).path
    manifest = open_bundle(path).manifest
    write_pasts(feature_set, Encoder.load(path), path)
    seal(path, manifest)
    return path


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pq.write_table(ROWS, path)
    return path


def damaged(path: Path) -> None:
    """Pages that are no longer what was compressed; the footer is whole."""
    pq.write_table(ROWS, path, compression="zstd")
    data = bytearray(path.read_bytes())
    for place in range(40, 200):
        data[place] ^= 0xFF
    path.write_bytes(data)


def with_a_column_twice(path: Path) -> None:
    pq.write_table(ROWS.append_column("load", ROWS["load"]), path)


@pytest.mark.parametrize("pasts", [False, True])
@pytest.mark.parametrize(
    ("write", "words"),
    [
        (damaged, "cannot be read to its end"),
        (with_a_column_twice, "cannot be read.*load"),
    ],
)
def test_what_cannot_be_read_is_named(
    bundle: Path, tmp_path: Path, write: Callable[[Path], None], words: str, pasts: bool
) -> None:
    write(tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=rf"rows\.parquet: {words}"):
        score_file(
            bundle, tmp_path / "rows.parquet", tmp_path / "out.parquet", None, 10, 1, Console(quiet=True), pasts=pasts
        )
    assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]


@pytest.mark.parametrize("pasts", [False, True])
def test_a_name_with_brackets_is_no_pattern(bundle: Path, tmp_path: Path, pasts: bool) -> None:
    pq.write_table(ROWS, tmp_path / "rows[1].parquet")
    out = tmp_path / "out.parquet"
    summary = score_file(bundle, tmp_path / "rows[1].parquet", out, None, 10, 1, Console(quiet=True), pasts=pasts)
    assert summary["rows"] == len(pq.read_table(out)) == 100


def test_lists_of_no_row_are_no_history(bundle: Path, tmp_path: Path) -> None:
    """A file whose rows all lack them has columns without a type."""
    scores = []
    for name, lists in {"without": (), "nothing": ("", "_label", "_residual", "_pause")}.items():
        rows, out = ROWS, tmp_path / f"{name}-scores.parquet"
        for column in lists:
            rows = rows.append_column(f"history{column}", pa.nulls(len(ROWS)))
        pq.write_table(rows, tmp_path / f"{name}.parquet")
        score_file(bundle, tmp_path / f"{name}.parquet", out, None, 10, 1, Console(quiet=True))
        scores.append(pq.read_table(out)["score"].to_pylist())
    assert scores[0] == scores[1]


def test_the_output_is_not_the_input_and_the_input_is_parquet(bundle: Path, tmp_path: Path) -> None:
    path, quiet = tmp_path / "rows.parquet", Console(quiet=True)
    path.write_text("user,item\n1,2\n")
    with pytest.raises(ConfigError, match="is the input, which would be replaced"):
        score_file(bundle, path, path, None, 10, 1, quiet)
    with pytest.raises(DataError, match=r"rows\.parquet: cannot be read as parquet: [^.]*(\.[^.]+)*\.$"):
        score_file(bundle, path, tmp_path / "out.parquet", None, 10, 1, quiet)
    with pytest.raises(DataError, match="no such file"):
        score_file(bundle, tmp_path / "no.parquet", tmp_path / "out.parquet", None, 10, 1, quiet)


def test_no_log_and_no_folder_is_replaced_and_no_folder_is_read(bundle: Path, rows: Path, tmp_path: Path) -> None:
    log = shutil.copy(rows, tmp_path / "log.parquet")
    before = log.read_bytes()
    quiet = Console(quiet=True)
    with pytest.raises(ConfigError, match="is the --events, which would be replaced"):
        score_file(bundle, rows, log, log, 10, 1, quiet)
    with pytest.raises(ConfigError, match=r"is a folder\. Name a file in it"):
        score_file(bundle, rows, tmp_path, None, 10, 1, quiet)
    with pytest.raises(DataError, match=r"is a folder\. Score its files one by one"):
        score_file(bundle, tmp_path, tmp_path / "out.parquet", None, 10, 1, quiet)
    assert log.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["log.parquet"]


def test_no_scores_are_written_below_a_file_or_into_a_bundle(bundle: Path, rows: Path, tmp_path: Path) -> None:
    quiet, copy = Console(quiet=True), shutil.copytree(bundle, tmp_path / "bundle")
    with pytest.raises(ConfigError, match=r"out\.parquet: .*rows\.parquet is no folder, so nothing can lie below it"):
        score_file(copy, rows, rows / "out.parquet", None, 10, 1, quiet)
    with pytest.raises(ConfigError, match=r"out\.parquet: lies in .*bundle, which holds what its"):
        score_file(copy, rows, copy / "out.parquet", None, 10, 1, quiet)
    open_bundle(copy)
