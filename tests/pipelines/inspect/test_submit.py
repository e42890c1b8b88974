"""From the files of the MM-CTR challenge (a generated miniature) to its submission, as a user types it."""

import io
import json
import zipfile

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from ctr.data.columns import column
from features.build.build import build_feature_set
from features.contract.contract import load_contract
from pipelines.cli.commands import main
from pipelines.inspect import submit
from pipelines.workspace import Workspace
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
        assert code == 4 and "no column 'ID'" in found["error"]
        whole.with_columns(ID=pl.lit(1)).write_parquet(path)
        code, found = shell("submit", "--work", work)
        assert code == 4 and "column 'ID' needs a value of its own in each of its 50 rows" in found["error"]
        path.unlink()
        code, found = shell("submit", "--work", work)
        assert code == 4 and "no such file" in found["error"]
    finally:
        whole.write_parquet(path)


def test_a_column_of_predictions_called_id_would_hide_the_ids(shell, work):
    code, found = shell("submit", "--work", work, "--column", "ID")
    assert (code, found["exit_code"]) == (2, 2)
    assert "--column ID" in found["error"]


def test_test_files_are_read_as_the_build_reads_them(tmp_path, monkeypatch):
    """A glob of csv files, in the order of their names."""
    for name, first, rows in (("train", 0, 400), ("valid", 400, 80), ("test-1", 480, 30), ("test-2", 510, 20)):
        number = np.arange(first, first + rows)
        table = pl.DataFrame({"user": number % 7, "item": number % 11, "time": 1_767_225_600 + number * 60})
        own = {"ID": number * 3 % 1009} if "test" in name else {"label": (number % 3 == 0).astype(int)}
        table.with_columns(**own).write_csv(tmp_path / f"{name}.csv")
    (tmp_path / "small.yaml").write_text(
        f"name: small\nroot: {tmp_path}\nhistory: {{max_len: 4}}\n"
        "interactions: {path: train.csv, user: user, item: item, time: time, label: label}\n"
        "split: {by: files, valid: valid.csv, test: 'test-*.csv'}\n"
    )
    feature_set = build_feature_set(load_contract(tmp_path / "small.yaml"), tmp_path / "sets").feature_set
    scores = np.linspace(0, 1, 50)
    monkeypatch.setattr(submit, "load_run", lambda *_: (tmp_path, None, feature_set))
    monkeypatch.setattr(submit, "predict", lambda *_: scores)
    submit.submit_run("latest", None, "Task2", Workspace(tmp_path), Console(quiet=True))
    with zipfile.ZipFile(tmp_path / "submission.zip") as archive:
        table = pl.read_csv(io.BytesIO(archive.read("prediction.csv")))
    assert table["ID"].to_list() == [number * 3 % 1009 for number in range(480, 530)]
    in_order = np.argsort(column(feature_set, "test", "time"))
    assert table["Task2"].to_list() == pytest.approx(scores[in_order].tolist())
