"""Publication: all or nothing, once for the same input, one builder at a time, damage is found."""

from __future__ import annotations

import errno
import io
import os
import shutil
import time
from pathlib import Path
from threading import Event, Thread
from typing import Any

import polars as pl
import pytest

from features.build import publish
from features.build.build import build_feature_set
from features.build.revision import code_hash, revision
from features.contract.contract import Contract
from features.errors import DataError, DiskError, LockError
from features.store.feature_set import MANIFEST, FeatureSet
from tests.features.raw import ROWS, Tables, raw_log


def swap_two(tables: Tables) -> None:
    """The same rows in another order: other content, so another version."""
    tables["log"] = tables["log"].reverse()


def raw_files(contract: Contract) -> list[Path]:
    return [Path(file) for file in publish.source_files(contract)]


def versions(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "raw").iterdir() if path.is_dir())


def current(out: Path) -> str:
    return (out / "raw" / "CURRENT").read_text()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_what_is_built_is_found_in_a_store_that_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Also where its notes do not know the raw files, which lie elsewhere."""
    first = build_feature_set(raw_log(tmp_path / "raw"), tmp_path / "out")
    moved = raw_log(tmp_path / "moved")

    def refuse(path: Path, *args: Any, **kwargs: Any) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "write_text", refuse)
    again = build_feature_set(moved, tmp_path / "out")
    assert again.reused
    assert again.feature_set.path == first.feature_set.path


def test_an_unchanged_input_is_built_once(tmp_path: Path) -> None:
    first = build_feature_set(raw_log(tmp_path / "raw"), tmp_path / "out")
    made = (first.feature_set.path / MANIFEST).stat().st_mtime_ns
    again = build_feature_set(raw_log(tmp_path / "raw"), tmp_path / "out")
    assert (first.reused, again.reused) == (False, True)
    assert again.feature_set.path == first.feature_set.path and versions(tmp_path / "out") == [
        current(tmp_path / "out")
    ]
    assert (again.feature_set.path / MANIFEST).stat().st_mtime_ns == made
    # The same files elsewhere are the same input.
    assert build_feature_set(raw_log(tmp_path / "moved"), tmp_path / "out").reused


def test_a_build_that_has_no_room_is_refused_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = sum(file.stat().st_size for file in raw_files(raw_log(tmp_path / "raw")))
    monkeypatch.setattr("features.store.disk.free_bytes", lambda path: raw - 1)
    with pytest.raises(DiskError, match=f"a feature set of 'raw' takes about {raw:,} bytes"):
        build_feature_set(raw_log(tmp_path / "raw"), tmp_path / "out")
    assert versions(tmp_path / "out") == []


def test_a_further_version_takes_as_much_as_the_one_in_use(tmp_path: Path) -> None:
    contract = raw_log(tmp_path / "raw")
    built = build_feature_set(contract, tmp_path / "out").feature_set
    in_files = sum(path.stat().st_size for path in built.path.rglob("*") if path.is_file())
    assert publish.bytes_of_a_build(contract, tmp_path / "out" / "raw") == in_files


@pytest.mark.parametrize(
    ("change", "over"),
    [
        (swap_two, None),
        (lambda t: t.update(items=t["items"].with_columns(genre=pl.lit("x"))), None),
        (lambda t: t.update(users=t["users"].reverse()), None),
        (lambda t: t.update(text=t["text"].reverse()), None),
        (None, {"history": {"max_len": 4}}),
    ],
    ids=["log", "items", "users", "vectors", "contract"],
)
def test_a_changed_input_is_a_new_version(tmp_path: Path, change: Any, over: Any) -> None:
    out = tmp_path / "out"
    first = build_feature_set(raw_log(tmp_path / "raw"), out).feature_set
    second = build_feature_set(raw_log(tmp_path / "raw", change, over), out)
    assert not second.reused and versions(out) == sorted([first.path.name, second.feature_set.path.name])
    assert current(out) == second.feature_set.path.name != first.path.name
    assert FeatureSet.open(out / "raw").path == second.feature_set.path
    first.verify()
    second.feature_set.verify()
    # Back to the first input: found again, and pointed at.
    assert build_feature_set(raw_log(tmp_path / "raw"), out).reused and current(out) == first.path.name


def test_other_code_builds_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build_feature_set(raw_log(tmp_path / "raw"), tmp_path / "out").feature_set
    monkeypatch.setattr(publish, "code_hash", lambda: "a mend")
    second = build_feature_set(raw_log(tmp_path / "raw"), tmp_path / "out")
    assert not second.reused and second.feature_set.path != first.path


def test_the_manifest_names_the_code(tmp_path: Path) -> None:
    code = build_feature_set(raw_log(tmp_path / "raw"), tmp_path / "out").feature_set.manifest.code
    assert (code.sha256, code.revision) == (code_hash(), revision())


def test_the_version_says_the_day_of_the_newest_event_or_as_of(tmp_path: Path) -> None:
    def last_first(tables: Tables) -> None:
        """By user, the newest event may stand in any window."""
        time = pl.when(pl.col("user_id") == 1).then(pl.col("time") + 86_400).otherwise("time")
        tables["log"] = tables["log"].with_columns(time=time)

    plain = build_feature_set(raw_log(tmp_path / "a"), tmp_path / "out")
    assert plain.feature_set.path.name == f"2023-11-14-{plain.feature_set.manifest.source[:8]}"
    asked = build_feature_set(raw_log(tmp_path / "a"), tmp_path / "out", as_of="2026-01-31")
    assert asked.feature_set.path.name.startswith("2026-01-31-") and not asked.reused
    over = {"split": {"by": "user", "valid": 0.3, "test": 0.3}}
    moved = build_feature_set(raw_log(tmp_path / "a", last_first, over), tmp_path / "out").feature_set
    newest = max(window.last_time for window in moved.manifest.windows.values())
    assert moved.manifest.windows["test"].last_time < newest  # else this shows nothing
    assert moved.path.name.startswith("2023-11-15-")


def broken(tables: Tables) -> None:
    """Fails late: the fault is in the very last row's context, which is met when rows are written."""
    last = pl.int_range(ROWS) == ROWS - 1
    tables["log"] = tables["log"].with_columns(hour=pl.when(last).then(0.5).otherwise(pl.col("hour").cast(pl.Float64)))


def test_a_failing_build_leaves_the_earlier_version(tmp_path: Path) -> None:
    out = tmp_path / "out"
    good = build_feature_set(raw_log(tmp_path / "raw"), out).feature_set
    with pytest.raises(DataError, match="'hour'"):
        build_feature_set(raw_log(tmp_path / "raw", broken), out)
    assert versions(out) == [good.path.name] == [current(out)]
    FeatureSet.open(out / "raw").verify()


def test_a_build_that_dies_while_publishing_leaves_the_earlier_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    good = build_feature_set(raw_log(tmp_path / "raw"), out).feature_set

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(publish, "flush_tree", dies)
    with pytest.raises(KeyboardInterrupt):
        build_feature_set(raw_log(tmp_path / "raw", swap_two), out)
    assert versions(out) == [good.path.name] == [current(out)]


def test_one_builder_at_a_time(tmp_path: Path) -> None:
    contract = raw_log(tmp_path / "raw")
    with (
        publish.build_lock(tmp_path / "out" / "raw"),
        pytest.raises(LockError, match="another process builds") as caught,
    ):
        build_feature_set(contract, tmp_path / "out")
    assert caught.value.exit_code == 7 and versions(tmp_path / "out") == []
    assert not build_feature_set(contract, tmp_path / "out").reused  # the lock went with its holder


def test_what_is_built_already_is_found_without_the_lock(tmp_path: Path) -> None:
    contract = raw_log(tmp_path / "raw")
    first = build_feature_set(contract, tmp_path / "out").feature_set
    with publish.build_lock(tmp_path / "out" / "raw"):
        again = build_feature_set(contract, tmp_path / "out")
    assert again.reused and again.feature_set.path == first.path


def test_a_second_builder_waits_and_takes_what_the_first_one_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contract, folder = raw_log(tmp_path / "raw"), tmp_path / "out" / "raw"
    built_elsewhere = build_feature_set(contract, tmp_path / "elsewhere").feature_set.path
    holds, said = Event(), io.StringIO()
    # pytest's own capture is not to be read from another thread: what is written meanwhile may be lost.
    monkeypatch.setattr("sys.stderr", said)

    def first() -> None:
        with publish.build_lock(folder):
            holds.set()
            until = time.monotonic() + 60
            while "waiting up to" not in said.getvalue() and time.monotonic() < until:
                time.sleep(0.01)
            shutil.copytree(built_elsewhere, folder / built_elsewhere.name)

    builder = Thread(target=first, daemon=True)
    builder.start()
    holds.wait()
    found = build_feature_set(contract, tmp_path / "out", wait=120.0)
    builder.join()
    assert found.reused and found.feature_set.path == folder / built_elsewhere.name
    assert f"{folder}: another process builds this feature set; waiting up to 120 s" in said.getvalue()


def test_a_second_builder_waits_no_longer_than_it_was_told(tmp_path: Path) -> None:
    contract = raw_log(tmp_path / "raw")
    with (
        publish.build_lock(tmp_path / "out" / "raw"),
        pytest.raises(LockError, match=r"another process builds this feature set after 0\.3 s"),
    ):
        build_feature_set(contract, tmp_path / "out", wait=0.3)


def test_what_a_killed_build_left_is_cleared(tmp_path: Path) -> None:
    stale = tmp_path / "out" / "raw" / f"{publish.STAGING}dead"
    (stale / "rows").mkdir(parents=True)
    (stale / MANIFEST).write_text("{}")
    built = build_feature_set(raw_log(tmp_path / "raw"), tmp_path / "out").feature_set
    assert versions(tmp_path / "out") == [built.path.name]


def test_what_is_not_published_yet_is_not_found(tmp_path: Path) -> None:
    """Another process has written its manifest and flushes its files; its folder is about to get another name."""
    built = build_feature_set(raw_log(tmp_path / "raw"), tmp_path / "out").feature_set
    built.path.rename(built.path.with_name(f"{publish.STAGING}dead"))
    assert publish.find_version(tmp_path / "out" / "raw", built.manifest.source) is None


def test_the_newest_sound_version_of_a_source_is_found(tmp_path: Path) -> None:
    built = build_feature_set(raw_log(tmp_path / "raw"), tmp_path / "out").feature_set
    folder, source = built.path.parent, built.manifest.source
    shutil.copytree(built.path, folder / "2100-01-01-aaaaaaaa")
    newest = publish.find_version(folder, source)
    assert newest is not None and newest.path.name == "2100-01-01-aaaaaaaa"
    (newest.path / MANIFEST).write_text("{}")
    sound = publish.find_version(folder, source)
    assert sound is not None and sound.path == built.path
    assert publish.find_version(folder, "another source") is None


def test_every_file_that_a_contract_names_is_read(tmp_path: Path) -> None:
    names = ["train.csv", "valid.csv", "test.csv", "past.csv", "items.csv", "users.csv", "vectors.npy", "ids.npy"]
    for name in names:
        (tmp_path / name).touch()
    contract = Contract.model_validate(
        {
            "name": "files",
            "root": str(tmp_path),
            "interactions": {"path": "train.csv", "user": "user", "item": "item", "time": "time", "label": "label"},
            "history": {"tables": [{"path": "past.csv", "user": "user", "item": "item", "time": "time"}]},
            "items": {"path": "items.csv", "id": "item"},
            "users": {"path": "users.csv", "id": "user"},
            "embeddings": {"text": {"path": "vectors.npy", "ids": "ids.npy"}},
            "split": {"by": "files", "valid": "valid.csv", "test": "test.csv"},
        }
    )
    assert publish.source_files(contract) == [str(tmp_path / name) for name in names]


def test_a_version_whose_manifest_is_broken_is_built_again(tmp_path: Path) -> None:
    first = build_feature_set(raw_log(tmp_path / "raw"), tmp_path / "out").feature_set
    (first.path / MANIFEST).write_text("{")
    again = build_feature_set(raw_log(tmp_path / "raw"), tmp_path / "out")
    assert not again.reused and again.feature_set.path == first.path
    again.feature_set.verify()


@pytest.mark.parametrize("name", ["rows/train/part-00000.arrow", "users.arrow", "encoder.json"])
@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_a_version_that_lacks_a_part_of_itself_is_built_again(tmp_path: Path, name: str, harm: Any) -> None:
    first = build_feature_set(raw_log(tmp_path / "raw"), tmp_path / "out").feature_set
    harm(first.path / name)
    again = build_feature_set(raw_log(tmp_path / "raw"), tmp_path / "out")
    assert not again.reused
    assert again.feature_set.path == first.path
    again.feature_set.verify()


def test_a_version_that_was_deleted_is_built_again(tmp_path: Path) -> None:
    """As the message of `verify` says, although `CURRENT` still names it."""
    first = build_feature_set(raw_log(tmp_path / "raw"), tmp_path / "out").feature_set
    shutil.rmtree(first.path)
    again = build_feature_set(raw_log(tmp_path / "raw"), tmp_path / "out")
    assert not again.reused
    assert current(tmp_path / "out") == again.feature_set.path.name == first.path.name


def broken_version(tmp_path: Path) -> FeatureSet:
    """A published version whose manifest cannot be read: the same input builds it again, under the same name."""
    found = build_feature_set(raw_log(tmp_path / "raw"), tmp_path / "out").feature_set
    (found.path / MANIFEST).write_text("{")
    return found


def test_a_version_that_is_replaced_is_never_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opened it reads on: nothing is deleted before the new one stands in its place."""
    first = broken_version(tmp_path)
    there: list[bool] = []
    original = shutil.rmtree

    def watched(path: Path, **options: Any) -> None:
        if (path / MANIFEST).is_file() and (path / MANIFEST).read_text() == "{":
            there.append(first.path != path and (first.path / MANIFEST).is_file())
        original(path, **options)

    monkeypatch.setattr(publish.shutil, "rmtree", watched)
    build_feature_set(raw_log(tmp_path / "raw"), tmp_path / "out")
    assert there == [True] and versions(tmp_path / "out") == [first.path.name]


def killed_while_renaming(first: FeatureSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Build again, and die between the two renames: the old one is aside, the new one not there yet."""
    original = Path.rename

    def dies(self: Path, target: Path) -> Path:
        if Path(target) == first.path:
            raise KeyboardInterrupt
        return original(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dies)
        with pytest.raises(KeyboardInterrupt):
            build_feature_set(raw_log(first.path.parents[2] / "raw"), first.path.parents[1])
    assert not first.path.exists()


def test_a_kill_between_the_renames_is_mended_by_the_next_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = broken_version(tmp_path)
    killed_while_renaming(first, monkeypatch)
    again = build_feature_set(raw_log(tmp_path / "raw"), tmp_path / "out")
    assert not again.reused and versions(tmp_path / "out") == [first.path.name] == [current(tmp_path / "out")]


def test_a_kill_between_the_renames_takes_nothing_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next build may fail, too: what was set aside is put back before it begins."""
    first = broken_version(tmp_path)
    killed_while_renaming(first, monkeypatch)
    with pytest.raises(DataError, match="'hour'"):
        build_feature_set(raw_log(tmp_path / "raw", broken), tmp_path / "out")
    assert (first.path / "items.arrow").is_file()


@pytest.mark.parametrize(
    "name", ["items.arrow", "encoder.json", "rows/test/part-00000.arrow", "embeddings/text.npy", "profile.json"]
)
def test_one_flipped_byte_is_found(tmp_path: Path, name: str) -> None:
    built = build_feature_set(raw_log(tmp_path / "raw"), tmp_path / "out").feature_set
    built.verify()
    path = built.path / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: missing or changed"):
        built.verify()
    path.unlink()
    with pytest.raises(DataError, match=f"{name}: missing or changed"):
        built.verify()


def test_every_file_is_in_the_manifest(tmp_path: Path) -> None:
    built = build_feature_set(raw_log(tmp_path / "raw"), tmp_path / "out").feature_set
    found = {path.relative_to(built.path).as_posix() for path in built.path.rglob("*") if path.is_file()}
    assert found == set(built.manifest.files) | {MANIFEST}
    assert {"items.arrow", "users.arrow", "events/part-00000.arrow", "embeddings/text.present.npy"} <= found
    assert all((built.path / name).stat().st_size == entry.bytes for name, entry in built.manifest.files.items())
