"""A build looks at its input once: files that appear meanwhile wait for the next, and none is hashed again in vain."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import polars as pl
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from features.build import build as build_module
from features.build.build import build_feature_set
from features.contract.contract import Contract
from features.errors import DataError
from features.sources import files
from features.store.feature_set import FeatureSet
from tests.features.raw import decoded_rows, in_order, make_tables, raw_log

OLD = 1_600_000_000  # seconds since 1970: long before any build here
MANY = {"interactions": {"path": "log/*.parquet"}}


def two_days(folder: Path) -> Contract:
    contract = raw_log(folder, None, MANY)
    (folder / "log").mkdir()
    for number, piece in enumerate(make_tables()["log"].iter_slices(60)):
        piece.write_parquet(folder / f"log/{number}.parquet")
    for file in folder.rglob("*.parquet"):
        os.utime(file, (OLD, OLD))
    return contract


def rows_of(built: FeatureSet) -> int:
    return sum(window.rows for window in built.manifest.windows.values())


def meanwhile(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Let something happen after the input was looked at and before it is read."""
    original = build_module.Tables.read

    def read(*arguments: Any) -> build_module.Tables:
        happens()
        return original(*arguments)

    monkeypatch.setattr(build_module.Tables, "read", read)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read to be hashed, in a process that has hashed nothing yet."""
    names: list[str] = []
    original = files.open_file

    def watched(file: str) -> object:
        names.append(Path(file).name)
        return original(file)

    monkeypatch.setattr(files, "open_file", watched)
    files._content_hash.cache_clear()
    return names


def test_a_file_that_appears_meanwhile_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contract = two_days(tmp_path)
    late = make_tables()["log"].head(7)
    with monkeypatch.context() as patch:
        meanwhile(patch, lambda: late.write_parquet(tmp_path / "log/2.parquet"))
        assert rows_of(build_feature_set(contract, tmp_path / "out").feature_set) == 120
    after = build_feature_set(contract, tmp_path / "out")
    assert (after.reused, rows_of(after.feature_set)) == (False, 127)


def test_a_column_that_the_logger_begins_to_write_changes_no_row(tmp_path: Path) -> None:
    """Nor do narrower integers in tomorrow's file."""
    contract = two_days(tmp_path)
    before = build_feature_set(contract, tmp_path / "before").feature_set
    tomorrow = pl.read_parquet(tmp_path / "log/1.parquet")
    tomorrow = tomorrow.with_columns(pl.col("item_id").cast(pl.Int32), experiment=pl.lit("b"))
    tomorrow.write_parquet(tmp_path / "log/1.parquet")
    after = build_feature_set(contract, tmp_path / "after").feature_set
    assert in_order(decoded_rows(after)) == in_order(decoded_rows(before))


def test_a_file_that_changes_meanwhile_stops_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contract = two_days(tmp_path)
    meanwhile(monkeypatch, lambda: make_tables()["log"].head(7).write_parquet(tmp_path / "log/1.parquet"))
    with pytest.raises(DataError, match=r"log/1\.parquet: changed while the feature set was built"):
        build_feature_set(contract, tmp_path / "out")
    assert not (tmp_path / "out/raw/CURRENT").exists()


def test_a_file_that_is_deleted_meanwhile_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("user\n1\n")
    with files.looked_at_once(tmp_path / "notes.json") as look:
        files.content_hash(file)
        file.unlink()
        with pytest.raises(DataError, match=r"a\.csv: cannot be read: .*Check that it is there"):
            look.refuse_changes()


def test_a_file_that_is_replaced_between_two_looks_of_a_build_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("user\n1\n")
    with files.looked_at_once(tmp_path / "notes.json") as look:
        files.content_hash(file)
        file.write_text("user\n1\n2\n")
        files.content_hash(file)
        with pytest.raises(DataError, match=r"a\.csv: changed while the feature set was built"):
            look.refuse_changes()


def test_a_file_is_hashed_once_for_all_builds(tmp_path: Path, hashed: list[str]) -> None:
    contract = two_days(tmp_path)
    build_feature_set(contract, tmp_path / "out")
    assert sorted(hashed) == ["0.parquet", "1.parquet", "items.parquet", "text.parquet", "users.parquet"]
    hashed.clear()
    files._content_hash.cache_clear()
    assert build_feature_set(contract, tmp_path / "out").reused and hashed == []


def test_a_file_of_the_same_size_and_another_time_is_hashed_again(tmp_path: Path, hashed: list[str]) -> None:
    contract = two_days(tmp_path)
    build_feature_set(contract, tmp_path / "out")
    hashed.clear()
    files._content_hash.cache_clear()
    os.utime(tmp_path / "log/1.parquet", (OLD + 1, OLD + 1))
    assert build_feature_set(contract, tmp_path / "out").reused and hashed == ["1.parquet"]


def test_a_file_that_was_just_written_is_hashed_again(tmp_path: Path, hashed: list[str]) -> None:
    """Within one tick of a coarse clock it may be written again and keep its size and time."""
    contract = two_days(tmp_path)
    os.utime(tmp_path / "log/1.parquet")
    build_feature_set(contract, tmp_path / "out")
    remembered = json.loads((tmp_path / "out/raw/.hashes.json").read_text())
    assert {Path(name).name for name in remembered} == {"0.parquet", "items.parquet", "text.parquet", "users.parquet"}


def test_a_build_that_fails_forgets_no_hash(tmp_path: Path, hashed: list[str]) -> None:
    contract = two_days(tmp_path)
    build_feature_set(contract, tmp_path / "out")
    mistaken = raw_log(tmp_path, None, {"interactions": {"path": "logs/*.parquet"}})
    with pytest.raises(DataError, match="logs"):
        build_feature_set(mistaken, tmp_path / "out")
    hashed.clear()
    files._content_hash.cache_clear()
    build_feature_set(contract, tmp_path / "out")
    assert "0.parquet" not in hashed and "1.parquet" not in hashed


def test_notes_of_files_that_are_read_no_more_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_OTHERS", 2)
    for day in range(5):
        file = tmp_path / f"{day}.csv"
        file.write_text(f"user\n{day}\n")
        os.utime(file, (OLD, OLD))
        with files.looked_at_once(tmp_path / "notes.json"):
            files.content_hash(file)
    assert [Path(name).name for name in json.loads((tmp_path / "notes.json").read_text())] == [
        "2.csv",
        "3.csv",
        "4.csv",
    ]


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}'])
def test_broken_notes_are_written_anew(tmp_path: Path, hashed: list[str], content: str) -> None:
    contract = two_days(tmp_path)
    (tmp_path / "out/raw").mkdir(parents=True)
    (tmp_path / "out/raw/.hashes.json").write_text(content)
    build_feature_set(contract, tmp_path / "out")
    assert len(hashed) == len(json.loads((tmp_path / "out/raw/.hashes.json").read_text())) == 5


class Marked(MemoryFileSystem):
    """A store that gives each version of a file an etag."""

    protocol = "marked"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("marked://"))

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        return super().info(path, **options) | {"ETag": hashlib.md5(self.cat(path)).hexdigest()}


@pytest.fixture
def marked() -> str:
    fsspec.register_implementation("marked", Marked, clobber=True)
    fsspec.filesystem("marked").pipe("/remote/a.csv", b"user\n1\n")
    return "marked://remote/a.csv"


def hash_in_a_new_process(notes: Path, url: str) -> str:
    files._content_hash.cache_clear()
    with files.looked_at_once(notes):
        return files.content_hash(url)


def test_a_remote_file_is_hashed_once_by_the_mark_of_its_version(
    tmp_path: Path, hashed: list[str], marked: str
) -> None:
    first = hash_in_a_new_process(tmp_path / "notes.json", marked)
    assert hash_in_a_new_process(tmp_path / "notes.json", marked) == first and hashed == ["a.csv"]


def test_a_remote_file_of_a_new_version_is_hashed_again(tmp_path: Path, hashed: list[str], marked: str) -> None:
    first = hash_in_a_new_process(tmp_path / "notes.json", marked)
    fsspec.filesystem("marked").pipe("/remote/a.csv", b"user\n2\n")
    assert hash_in_a_new_process(tmp_path / "notes.json", marked) != first


def test_a_remote_file_without_a_mark_of_its_version_is_hashed_each_time(tmp_path: Path, hashed: list[str]) -> None:
    fsspec.filesystem("memory").pipe("/remote/b.csv", b"user\n1\n")
    for _ in range(2):
        hash_in_a_new_process(tmp_path / "notes.json", "memory://remote/b.csv")
    assert hashed == ["b.csv", "b.csv"]


def test_paths_are_listed_anew_after_the_build(tmp_path: Path) -> None:
    pl.DataFrame({"a": [1]}).write_csv(tmp_path / "a.csv")
    with files.looked_at_once(tmp_path / "hashes.json"):
        files.find_files(f"{tmp_path}/*.csv")
        pl.DataFrame({"a": [1]}).write_csv(tmp_path / "b.csv")
        assert len(files.find_files(f"{tmp_path}/*.csv")) == 1
    assert len(files.find_files(f"{tmp_path}/*.csv")) == 2
