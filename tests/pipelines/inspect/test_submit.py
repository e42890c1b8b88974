"""From the files of the MM-CTR challenge (a generated miniature) to its submission, as a user types it."""

import io
import json
import zipfile

import polars as pl
import pytest

from pipelines.cli.commands import main
from tests import miniatures
from tests.pipelines.cli.test_commands import ROOT, Shell

SMALL = ["train.epochs=1", "train.batch_size=64", "train.evaluations_per_epoch=1", "model.embedding_dim=8",
         "model.vector_dim=8", "model.attention_dim=8", "model.layers=1"]  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("challenge")
    (folder / "raw").mkdir()
    miniatures.mmctr(folder / "raw", seed=1)
    # IDs that are no row numbers, in no order: they must come back as they stand in the file.
    test = pl.read_parquet(folder / "raw" / "test.parquet")
    test.with_columns(ID=(pl.col("ID") * 7919) % 10_007).write_parquet(folder / "raw" / "test.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        command = ["train", "--data", "conf/data/mmctr.yaml", "--root", str(folder / "raw"), "--work", str(folder)]
        sets = [part for one in SMALL for part in ("--set", one)]
        with pytest.raises(SystemExit) as stop:
            main([*command, "--model", "conf/model/qin_paper.yaml", *sets, "--json"])
        assert not stop.value.code
    return folder


@pytest.fixture
def shell(capsys, work, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Shell(capsys, work)


def test_every_id_once_in_the_order_of_the_file(shell, work):
    code, found = shell("submit", "--work", work)
    assert (code, found["rows"]) == (0, 50), shell.error
    with zipfile.ZipFile(found["submission"]) as archive:
        assert archive.namelist() == ["prediction.csv"]
        table = pl.read_csv(io.BytesIO(archive.read("prediction.csv")))
    assert table.columns == ["ID", "Task2"]
    raw = pl.read_parquet(work / "raw" / "test.parquet")
    assert table["ID"].to_list() == raw["ID"].to_list()
    assert table["Task2"].is_between(0, 1).all() and table["Task2"].n_unique() > 30


def test_each_prediction_is_of_its_own_row(shell, work):
    """Scored one by one through the bundle, from the raw rows of the file."""
    shell("export", "--work", work)
    _, found = shell("submit", "--work", work)
    with zipfile.ZipFile(found["submission"]) as archive:
        predicted = pl.read_csv(io.BytesIO(archive.read("prediction.csv")))["Task2"]
    for place, row in enumerate(pl.read_parquet(work / "raw" / "test.parquet").head(5).to_dicts()):
        request = {"user": row["user_id"], "candidates": [row["item_id"]]}
        request["history"] = [item for item in row["item_seq"] if item]
        (work / "request.json").write_text(json.dumps(request))
        bundle = work / "bundles" / "mmctr" / found["run_id"]
        _, ranked = shell("rank", "--bundle", bundle, "--request", work / "request.json")
        assert ranked["ranked"][0]["score"] == pytest.approx(predicted[place], abs=1e-5)


def test_a_file_that_changed_is_refused(shell, work):
    path = work / "raw" / "test.parquet"
    whole = pl.read_parquet(path)
    try:
        whole.reverse().write_parquet(path)
        code, found = shell("submit", "--work", work)
        assert code == 4 and "The file changed after the build" in found["error"]
        whole.drop("ID").write_parquet(path)
        code, found = shell("submit", "--work", work)
        assert code == 4 and "needs a column 'ID'" in found["error"]
    finally:
        whole.write_parquet(path)
