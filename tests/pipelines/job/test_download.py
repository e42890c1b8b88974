"""Public data is fetched only on demand, from the right address, whole, and without trusting what is in it."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from features.datasets.archives import fetch_archive
from features.datasets.public import DATASETS, Archive
from features.errors import DataError
from pipelines.cli.commands import main


def packed(**files: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return content.getvalue()


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A web server on this machine alone, for the files of `tmp_path / "served"`."""
    (tmp_path / "served").mkdir()
    handler = partial(_Quiet, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


def test_an_archive_is_fetched_checked_and_unpacked(tmp_path: Path, address: str) -> None:
    content = packed(**{"ml/ratings.dat": "1::2::3::4\n", "ml/deep/README": "x"})
    (tmp_path / "served/ml.zip").write_bytes(content)
    archive = Archive(f"{address}/ml.zip", "ml", len(content), hashlib.sha256(content).hexdigest())
    folder = fetch_archive(archive, tmp_path / "data")
    assert folder == tmp_path / "data/ml" and (folder / "ratings.dat").read_text() == "1::2::3::4\n"
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["ml"]
    with pytest.raises(DataError, match="ml: is there already"):
        fetch_archive(archive, tmp_path / "data")


def link() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        entry = zipfile.ZipInfo("ml/link")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "known", "words"),
    [
        (packed(**{"../out.txt": "x"}), {}, "'../out.txt' would be written outside of its folder"),
        (packed(**{"/tmp/out.txt": "x"}), {}, "'/tmp/out.txt' would be written outside"),
        (packed(**{"ml/..\\..\\out.txt": "x"}), {}, "would be written outside"),
        (link(), {}, "'ml/link' would be written outside"),
        (packed(**{"ml/a": "0" * 200_000}), {}, "unpacks to more than is allowed, at 'ml/a'"),
        (b"x" * 200_000, {}, "is larger than 100,000 bytes"),
        (packed(other="x"), {}, "holds no folder 'ml' but other"),
        (b"no zip", {}, "cannot be unpacked"),
        (packed(**{"ml/a": "x"}), {"size": 5}, "bytes came, expected 5"),
        (packed(**{"ml/a": "x"}), {"sha256": "0" * 64}, "is not the known 0000"),
        (None, {}, "cannot be fetched: HTTP Error 404"),
    ],
)
def test_a_bad_archive_leaves_nothing(
    tmp_path: Path, address: str, content: bytes | None, known: dict[str, Any], words: str
) -> None:
    if content is not None:
        (tmp_path / "served/ml.zip").write_bytes(content)
    with pytest.raises(DataError) as error:
        fetch_archive(Archive(f"{address}/ml.zip", "ml", **known), tmp_path / "data", most_bytes=100_000)
    assert words in str(error.value)
    assert list((tmp_path / "data").iterdir()) == [] and not (tmp_path / "out.txt").exists()


@pytest.mark.parametrize("name", DATASETS)
def test_the_command_tells_terms_and_fetches_nothing_unasked(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["download", name, "--out", str(tmp_path / "data"), "--json"])
    assert end.value.code == 0 and not (tmp_path / "data").exists()
    shown = capsys.readouterr()
    summary = json.loads(shown.out.splitlines()[-1])
    assert summary["folder"] is None and summary["contract"] == f"conf/data/{name}.yaml"
    assert all(word in shown.err for word in (DATASETS[name].owner, DATASETS[name].page, *DATASETS[name].steps))


def test_the_command_fetches_for_those_who_agree(
    tmp_path: Path, address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "served/ml.zip").write_bytes(packed(**{"ml/ratings.csv": "x"}))
    served = Archive(f"{address}/ml.zip", "ml")
    monkeypatch.setattr("pipelines.job.download.find_dataset", lambda name: replace(DATASETS[name], archive=served))
    with pytest.raises(SystemExit) as end:
        main(["download", "movielens_latest", "--yes", "--out", str(tmp_path / "data"), "--json"])
    assert end.value.code == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["folder"] == str(tmp_path / "data/ml")


def test_commands_that_are_suggested_can_be_pasted(
    tmp_path: Path, address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "served/ml.zip").write_bytes(packed(**{"ml/ratings.csv": "x"}))
    served = Archive(f"{address}/ml.zip", "ml")
    monkeypatch.setattr("pipelines.job.download.find_dataset", lambda name: replace(DATASETS[name], archive=served))
    out = tmp_path / "my [data]"
    for options in ([], ["--yes"]):
        with pytest.raises(SystemExit):
            main(["download", "movielens_latest", "--out", str(out), *options])
    shown = capsys.readouterr().out
    assert f"quadrank download movielens_latest --yes --out '{out}'\n" in shown
    assert f"quadrank features --data conf/data/movielens_latest.yaml --root '{out}/ml'\n" in shown


def test_an_unknown_data_set_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["download", "movilens"])
    assert end.value.code == 2 and "Did you mean 'movielens'?" in capsys.readouterr().err
