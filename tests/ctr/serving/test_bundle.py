"""Hashing, verifying and publishing bundles, on small folders without a model in them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from ctr.serving.bundle import (
    GOLDEN,
    MANIFEST,
    STAGING,
    BundleManifest,
    BundleMetadata,
    Golden,
    GoldenRequest,
    open_bundle,
    publish,
    seal,
    write_json,
)
from features.errors import ConfigError, DataError
from features.store.feature_set import FileEntry, Window
from features.store.pointer import NEWEST, point_at

METADATA = BundleMetadata(
    name="toy",
    model_version="run-1",
    architecture="qin",
    fingerprint="0" * 64,
    feature_set="2026-01-01-00000000",
    metrics={"test": {"auc": 0.7}},
    controls={},
    windows={"train": Window(rows=10, positives=3, first_time=0, last_time=9)},
    inputs={"candidate_item": ["candidates"]},
    git_revision="unknown",
    versions={"onnx": "1"},
    created="2026-01-01T00:00:00+00:00",
)
CONTENT = {"ranker.onnx": b"graph", "item_table.bin": bytes(range(256)), "vocabularies/genre.arrow": b"words"}


def fill(folder: Path, content: dict[str, bytes] = CONTENT) -> None:
    for name, text in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text)


def write(out: Path, content: dict[str, bytes] = CONTENT) -> Path:
    with publish(out) as folder:
        fill(folder, content)
        seal(folder, METADATA)
    return out


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write(tmp_path / "bundle")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_bundle_of_a_version_that_knew_fewer_fields_is_whole(bundle: Path):
    """What a later version adds to manifests was not there when the checksum was made."""
    record = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    del record["generation"], record["checksum"]
    content = json.dumps(record, sort_keys=True, separators=(",", ":"))
    record["checksum"] = hashlib.sha256(content.encode()).hexdigest()
    (bundle / MANIFEST).write_text(json.dumps(record), encoding="utf-8")
    assert open_bundle(bundle).manifest.generation == 0


def test_a_bundle_is_read_back_with_its_facts_and_the_hash_of_every_file(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.manifest.model_version == "run-1"
    assert opened.manifest.metrics == {"test": {"auc": 0.7}}
    assert sorted(opened.manifest.files) == sorted(CONTENT)
    # From `printf graph | sha256sum`.
    expected = "eef93e1d14482804277fca0172464032d1a4fdbcc338524059fa1e861454ad4d"
    assert opened.manifest.files["ranker.onnx"] == FileEntry(bytes=5, sha256=expected)


@pytest.mark.parametrize("position", [0, 100, 255])
def test_one_flipped_bit_is_refused_and_the_file_named(bundle: Path, position: int) -> None:
    table = bytearray((bundle / "item_table.bin").read_bytes())
    table[position] ^= 1
    (bundle / "item_table.bin").write_bytes(table)
    with pytest.raises(DataError, match=r"item_table\.bin: changed since it was exported") as caught:
        open_bundle(bundle)
    assert caught.value.exit_code == 4


def test_a_missing_file_is_named(bundle: Path) -> None:
    (bundle / "vocabularies/genre.arrow").unlink()
    with pytest.raises(DataError, match=r"genre\.arrow: missing from the bundle"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["model.pkl", "vocabularies/.hidden"])
def test_a_file_that_was_not_exported_is_named(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes(b"?")
    with pytest.raises(DataError, match=f"{Path(name).name}: not in {MANIFEST}"):
        open_bundle(bundle)


def test_a_manifest_cannot_point_outside_the_bundle(bundle: Path) -> None:
    shutil.copy(bundle / "ranker.onnx", bundle.parent / "outside")
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["files"]["../outside"] = manifest["files"]["ranker.onnx"]
    # As somebody would write it who knows the format.
    write_json(bundle / MANIFEST, BundleManifest.model_validate(manifest).with_checksum())
    with pytest.raises(DataError, match="outside: missing"):
        open_bundle(bundle)


def test_what_is_no_bundle_says_so(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(DataError, match=r"not a bundle\. Make one with `quadrank export`"):
        open_bundle(tmp_path / "nowhere")
    manifest = json.loads((bundle / MANIFEST).read_text())
    (bundle / MANIFEST).write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(DataError, match="bundle format 99, this version reads format 5"):
        open_bundle(bundle)
    (bundle / MANIFEST).write_text(json.dumps({"format": 5}))
    with pytest.raises(DataError, match="name: Field required"):
        open_bundle(bundle)


def test_a_folder_in_the_place_of_the_manifest_makes_no_bundle(bundle: Path) -> None:
    (bundle / MANIFEST).unlink()
    (bundle / MANIFEST).mkdir()
    with pytest.raises(DataError, match=r"MANIFEST\.json: no such file: not a bundle"):
        open_bundle(bundle)


def test_golden_requests_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    golden = Golden(tolerance=2e-5, cases=[GoldenRequest(name="one", request={"user": "Zoë"}, scores=[0.25, 0.5])])
    with publish(tmp_path / "bundle") as folder:
        write_json(folder / GOLDEN, golden)
        seal(folder, METADATA)
    assert open_bundle(tmp_path / "bundle").golden() == golden
    assert "Zoë" in (tmp_path / "bundle" / GOLDEN).read_text(encoding="utf-8")


def test_a_malformed_file_is_named_with_the_place_in_it(bundle: Path) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["windows"]["train"]["rows"] = "many"
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"MANIFEST\.json: not a MANIFEST\.json of format 5: windows\.train\.rows: "):
        open_bundle(bundle)
    (bundle / MANIFEST).write_text("no JSON")
    with pytest.raises(DataError, match=r"of format 5: the file: "):
        open_bundle(bundle)


def test_a_moved_bundle_and_one_behind_a_link_open(bundle: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "deep"
    moved.parent.mkdir()
    shutil.move(bundle, moved)
    (tmp_path / "link").symlink_to(moved)
    assert open_bundle(tmp_path / "link").path == moved.resolve()


def test_a_failure_midway_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), publish(tmp_path / "bundle") as folder:
        fill(folder)
        seal(folder, METADATA)
        _ = 1 / 0
    assert names_in(tmp_path) == []


def test_an_unsealed_folder_is_never_published(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=MANIFEST), publish(tmp_path / "bundle") as folder:
        fill(folder)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("there", ["bundle", "thesis", "file", "link"])
def test_what_exists_is_never_written_over(tmp_path: Path, there: str) -> None:
    bundle, out = write(tmp_path / "bundle"), tmp_path / there
    if there == "thesis":
        out.mkdir()
        (out / "chapter.tex").write_text("years of work")
    elif there == "file":
        out.write_text("years of work")
    elif there == "link":
        out.symlink_to(bundle)
    before = names_in(tmp_path)
    with pytest.raises(
        ConfigError, match=f"{there}: exists, and an existing folder is never overwritten. Name a new folder"
    ):
        write(out, {"ranker.onnx": b"new"})
    assert names_in(tmp_path) == before
    assert (open_bundle(bundle).path / "ranker.onnx").read_bytes() == b"graph"


@pytest.mark.parametrize("out", ["bundle/second", "bundle/deep/second"])
def test_nothing_is_published_into_a_bundle(bundle: Path, out: str) -> None:
    """One file more, and the bundle is refused by who loads it."""
    before = names_in(bundle)
    with pytest.raises(ConfigError, match=r"second: lies in .*bundle, which holds what its MANIFEST\.json names"):
        write(bundle.parent / out)
    assert names_in(bundle) == before
    open_bundle(bundle)


def test_nothing_is_published_into_a_feature_set(tmp_path: Path) -> None:
    (tmp_path / "MANIFEST.json").write_text("{}")
    with pytest.raises(ConfigError) as refused:
        write(tmp_path / "second")
    assert "bundle" not in str(refused.value).replace(str(tmp_path), "")
    assert [path.name for path in tmp_path.iterdir()] == ["MANIFEST.json"]


@pytest.mark.parametrize("out", ["CURRENT/second", "CURRENT/deep/second"])
def test_nothing_is_published_below_a_file(tmp_path: Path, out: str) -> None:
    (tmp_path / "CURRENT").write_text("first")
    with pytest.raises(
        ConfigError, match=r"second: .*CURRENT is no folder, so nothing can lie below it\. Name another"
    ):
        write(tmp_path / out)
    assert [path.name for path in tmp_path.iterdir()] == ["CURRENT"]


def test_an_empty_folder_may_be_there(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    assert sorted(open_bundle(write(tmp_path / "bundle")).manifest.files) == sorted(CONTENT)


def test_of_two_exports_to_one_folder_the_second_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one ends between the last check and the rename."""
    rename = Path.rename

    def overtaken(source: Path, target: Path) -> Path:
        target.mkdir()
        (target / "ranker.onnx").write_bytes(b"other")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", overtaken)
    with pytest.raises(ConfigError, match="bundle: exists"):
        write(tmp_path / "bundle")
    assert names_in(tmp_path) == ["bundle"] and (tmp_path / "bundle/ranker.onnx").read_bytes() == b"other"


def test_what_killed_exports_left_is_removed_and_what_runs_is_kept(tmp_path: Path) -> None:
    killed = tmp_path / f"{STAGING}old-0123abcd"
    fill(killed)
    with publish(tmp_path / "running") as folder:
        fill(folder)
        write(tmp_path / "bundle")
        assert not killed.exists() and folder.is_dir()
        seal(folder, METADATA)
    assert names_in(tmp_path) == ["bundle", "running"]


def test_a_bundle_is_opened_through_its_pointers(tmp_path: Path) -> None:
    for version in ("first", "second"):
        write(tmp_path / version, {"ranker.onnx": version.encode()})
    with pytest.raises(DataError, match=r"CURRENT: no bundle of this name has passed the gate yet\. NEWEST"):
        open_bundle(tmp_path / "CURRENT")
    point_at(tmp_path, "first")
    point_at(tmp_path, "second", NEWEST)
    assert open_bundle(tmp_path / "CURRENT").path == tmp_path.resolve() / "first" == open_bundle(tmp_path).path
    assert open_bundle(tmp_path / "NEWEST").path == tmp_path.resolve() / "second"
