"""Hashing, verifying and publishing bundles, on small folders without a model in them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ctr.bundle import MANIFEST, Facts, open_bundle, publish, seal
from features.errors import ConfigError, DataError
from features.feature_set import FileEntry, Window

FACTS = Facts(
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
        seal(folder, FACTS)
    return out


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write(tmp_path / "bundle")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="outside: missing"):
        open_bundle(bundle)


def test_what_is_no_bundle_says_so(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(DataError, match=r"not a bundle\. Make one with `quadrank export`"):
        open_bundle(tmp_path / "nowhere")
    manifest = json.loads((bundle / MANIFEST).read_text())
    (bundle / MANIFEST).write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(DataError, match="bundle format 99, this version reads format 1"):
        open_bundle(bundle)
    (bundle / MANIFEST).write_text(json.dumps({"format": 1}))
    with pytest.raises(DataError, match="name: Field required"):
        open_bundle(bundle)


def test_a_moved_bundle_and_one_behind_a_link_open(bundle: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "deep"
    moved.parent.mkdir()
    shutil.move(bundle, moved)
    (tmp_path / "CURRENT").symlink_to(moved)
    assert open_bundle(tmp_path / "CURRENT").path == moved.resolve()


def test_a_failure_midway_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), publish(tmp_path / "bundle") as folder:
        fill(folder)
        seal(folder, FACTS)
        _ = 1 / 0
    assert names_in(tmp_path) == []


def test_a_failure_midway_leaves_the_old_bundle_untouched(bundle: Path) -> None:
    with pytest.raises(ZeroDivisionError), publish(bundle) as folder:
        fill(folder, {"ranker.onnx": b"new"})
        _ = 1 / 0
    assert (open_bundle(bundle).path / "ranker.onnx").read_bytes() == b"graph"
    assert names_in(bundle.parent) == ["bundle"]


def test_an_unsealed_folder_is_never_published(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=MANIFEST), publish(tmp_path / "bundle") as folder:
        fill(folder)
    assert names_in(tmp_path) == []


def test_a_bundle_is_replaced_whole(bundle: Path) -> None:
    write(bundle, {"ranker.onnx": b"new"})
    assert sorted(open_bundle(bundle).manifest.files) == ["ranker.onnx"]
    assert names_in(bundle.parent) == ["bundle"]


def test_a_failed_swap_puts_the_old_bundle_back(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def fails_on_the_new_one(source: Path, target: Path) -> Path:
        if target == bundle and not source.name.endswith("-old"):
            raise OSError("disk full")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", fails_on_the_new_one)
    with pytest.raises(OSError, match="disk full"):
        write(bundle, {"ranker.onnx": b"new"})
    assert (open_bundle(bundle).path / "ranker.onnx").read_bytes() == b"graph"
    assert names_in(bundle.parent) == ["bundle"]


def test_a_folder_that_is_not_a_bundle_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="thesis: exists and is not a bundle"):
        write(tmp_path / "thesis")
    assert (tmp_path / "thesis/chapter.tex").read_text() == "years of work"


def test_a_link_is_never_replaced_by_a_folder(bundle: Path) -> None:
    link = bundle.parent / "CURRENT"
    link.symlink_to(bundle)
    with pytest.raises(ConfigError, match="CURRENT: exists"):
        write(link)
    assert link.is_symlink()
