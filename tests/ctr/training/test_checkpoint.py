"""Checkpoints: what is saved comes back to the bit, and nothing foreign or damaged is continued."""

from __future__ import annotations

import json
import math
import pickle
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ctr.training.checkpoint
from ctr.config import TrainConfig
from ctr.data.batch import Batch
from ctr.data.loader import Loader
from ctr.training.checkpoint import CheckpointStore, Evaluation, Identity, Snapshot, TrainState
from ctr.training.train_step import TrainStep
from features.errors import ConfigError, DataError
from features.store.feature_set import FeatureSet, sha256_of
from tests.ctr.tiny import TinyModel, tiny_model
from tests.toy import toy_feature_set

CONFIG = TrainConfig(batch_size=64)


@pytest.fixture(scope="module")
def feature_set(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    return toy_feature_set(tmp_path_factory.mktemp("toy"), rows=400, users=20)


@pytest.fixture(scope="module")
def batch(feature_set: FeatureSet) -> Batch:
    return next(Loader(feature_set, "train", 64).epoch(0))


def look(step: int = 10, auc: float = 0.6, gauc: float = 0.5) -> Evaluation:
    return Evaluation(
        step=step,
        epoch=0.5,
        auc=auc,
        log_loss=1 - auc,
        gauc_by_samples=gauc,
        group_auc=0.6,
        train_loss=0.7,
        train_click_loss=0.6,
        learning_rate=1e-3,
    )


def new_step(model: TinyModel, config: TrainConfig = CONFIG) -> TrainStep:
    return TrainStep(model, config, torch.device("cpu"))


def open_store(
    folder: Path, feature_set: FeatureSet, model: TinyModel, config: TrainConfig = CONFIG
) -> CheckpointStore:
    return CheckpointStore(folder, Identity.of(model, feature_set, config))


@pytest.fixture
def saved(tmp_path, feature_set, batch) -> tuple[Path, TinyModel, TrainStep]:
    """A run of two steps, saved."""
    model = tiny_model(feature_set)
    take_step = new_step(model)
    take_step([batch], 1e-3, 0)
    take_step([batch], 1e-3, 0)
    store = open_store(tmp_path, feature_set, model)
    state = TrainState(step=2, epoch=0, batch=2, halvings=1)
    state.record(look(step=2, gauc=math.nan), "auc")
    store.write(Snapshot.take(state, model, take_step))
    return tmp_path, model, take_step


def test_the_next_step_after_loading_is_the_same_to_the_bit(saved, feature_set, batch):
    folder, model, take_step = saved
    # The next step draws dropout noise; the other run starts with another generator and must get this one's.
    take_step([batch], 1e-3, 0)
    other = tiny_model(feature_set, seed=99)
    other_step = new_step(other)
    state = open_store(folder, feature_set, other).load(other, other_step)
    other_step([batch], 1e-3, 0)
    assert (state.step, state.batch, state.halvings) == (2, 2, 1)
    assert math.isnan(state.curve[0].gauc_by_samples)
    assert state.best.model_dump(exclude={"gauc_by_samples"}) == look(step=2).model_dump(exclude={"gauc_by_samples"})
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_without_a_checkpoint_there_is_nothing_to_load(tmp_path, feature_set):
    model = tiny_model(feature_set)
    assert open_store(tmp_path, feature_set, model).load(model, new_step(model)) is None


def test_settings_of_the_optimizer_come_from_the_resuming_run(saved, feature_set, batch):
    folder, _, _ = saved
    nothing = replace(batch, weight_B=torch.zeros(len(batch)))

    def moved(embedding_l2: float, rate: float) -> dict[str, torch.Tensor]:
        model = tiny_model(feature_set)
        take_step = new_step(model, TrainConfig(embedding_l2=embedding_l2))
        open_store(folder, feature_set, model).load(model, take_step)
        take_step([nothing], rate, 2)
        return {name: tensor.detach() for name, tensor in model.named_parameters()}

    still, plain, pulled = moved(0.0, 0.0), moved(0.0, 0.125), moved(0.5, 0.125)
    assert {name for name in still if not torch.equal(plain[name], pulled[name])} == {"item.weight"}
    assert not torch.equal(still["item.weight"], plain["item.weight"])


def test_what_a_killed_process_was_writing_is_removed(saved, feature_set):
    folder, model, take_step = saved
    names = ("model.safetensors", "curve.jsonl", "calibration.json", "config.json", "metrics.json")
    halves = [folder / f".{name}-0a1b2c3d" for name in names]
    for half in halves:
        half.write_text("hal")
    open_store(folder, feature_set, model).load(model, take_step)
    assert [half for half in halves if half.exists()] == []


def test_a_finished_run_keeps_no_weights_that_a_killed_one_left(saved, feature_set):
    """Killed between its record and the removal of what was best before: no later checkpoint removes that."""
    folder, model, _ = saved
    store = open_store(folder, feature_set, model)
    state = TrainState(step=2, batch=2)
    state.record(look(step=2), "auc")
    for name in ("best-1.safetensors", "checkpoint-1.safetensors"):
        (folder / name).write_bytes(b"of a step before")
    store.finish(state, model)
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint-2.safetensors",
        "checkpoint.json",
        "curve.jsonl",
        "model.safetensors",
    ]


def test_no_file_is_a_pickle_and_none_is_left_over(saved, feature_set):
    folder, model, take_step = saved
    state = TrainState(step=5, batch=5)
    state.record(look(step=5), "auc")
    store = open_store(folder, feature_set, model)
    store.write(Snapshot.take(state, model, take_step))
    assert sorted(path.name for path in folder.iterdir()) == [
        "best-5.safetensors",
        "checkpoint-5.safetensors",
        "checkpoint.json",
        "curve.jsonl",
    ]
    # A safetensors file starts with the length of its JSON header.
    content = (folder / "checkpoint-5.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert {"model.item.weight", "optimizer.dense.0.exp_avg", "random.cpu"} <= set(header)
    assert [json.loads(line)["step"] for line in (folder / "curve.jsonl").read_text().splitlines()] == [5]


class Burglar:
    """A pickle of it writes a file when it is read."""

    def __init__(self, loot: Path):
        self.loot = loot

    def __reduce__(self):
        return Path.touch, (self.loot,)


def test_a_pickle_in_place_of_the_tensors_is_refused_and_never_runs(saved, feature_set):
    folder, model, take_step = saved
    (folder / "checkpoint-2.safetensors").write_bytes(pickle.dumps(Burglar(folder / "loot")))
    record = json.loads((folder / "checkpoint.json").read_text())
    record["sha256"] = sha256_of(folder / "checkpoint-2.safetensors")
    (folder / "checkpoint.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match=r"checkpoint-2\.safetensors: not a file of tensors"):
        open_store(folder, feature_set, model).load(model, take_step)
    assert not (folder / "loot").exists()


@pytest.mark.parametrize("name", ["../outside.safetensors", "/outside.safetensors", "model.safetensors"])
def test_a_record_cannot_name_tensors_of_another_place(saved, feature_set, name):
    folder, model, take_step = saved
    record = json.loads((folder / "checkpoint.json").read_text())
    (folder / "checkpoint.json").write_text(json.dumps(record | {"tensors": name}))
    with pytest.raises(DataError, match=r"not a checkpoint of format \d \(1 problems\)"):
        open_store(folder, feature_set, model).load(model, take_step)


def test_an_undefined_metric_is_null_in_the_curve(saved):
    folder, _, _ = saved
    assert json.loads((folder / "curve.jsonl").read_text())["gauc_by_samples"] is None


@pytest.mark.parametrize("survivors", range(1, 6))
def test_a_kill_between_any_two_writes_leaves_a_valid_checkpoint(saved, feature_set, monkeypatch, survivors):
    """Kill the process at its n-th rename: what loads is the old state or the new one, never a mixture."""
    folder, model, take_step = saved
    old = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        model.item.weight.add_(1)
    renames = 0

    def killed(path: Path, target: Path) -> None:
        nonlocal renames
        renames += 1
        if renames == survivors:
            raise KeyboardInterrupt
        original(path, target)

    original = Path.replace
    monkeypatch.setattr(Path, "replace", killed)
    state = TrainState(step=3, batch=3)
    state.record(look(step=3), "auc")
    store = open_store(folder, feature_set, model)
    finished = False
    try:
        store.write(Snapshot.take(state, model, take_step))
        finished = True
    except KeyboardInterrupt:
        pass
    monkeypatch.undo()
    assert finished == (survivors > 4)  # best, tensors, curve, record

    other = tiny_model(feature_set, seed=99)
    found = store.load(other, new_step(other))
    assert found.step == (3 if finished else 2)
    expected = model.state_dict() if finished else old
    assert torch.equal(other.state_dict()["item.weight"], expected["item.weight"])
    store.finish(found, other)
    assert torch.equal(other.state_dict()["item.weight"], expected["item.weight"])


def test_a_damaged_tensor_file_is_refused(saved, feature_set):
    folder, model, take_step = saved
    path = folder / "checkpoint-2.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"checkpoint-2\.safetensors: missing or changed"):
        open_store(folder, feature_set, model).load(model, take_step)
    path.unlink()
    with pytest.raises(DataError, match="missing or changed"):
        open_store(folder, feature_set, model).load(model, take_step)


def test_a_damaged_record_is_refused(saved, feature_set):
    folder, model, take_step = saved
    path = folder / "checkpoint.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(DataError, match=r"checkpoint\.json: not a checkpoint"):
        open_store(folder, feature_set, model).load(model, take_step)


@pytest.mark.parametrize("changed", [{"batch_size": 32}, {"seed": 2}, {"accumulate": 2}, {"metric": "auc"}])
def test_other_batches_are_refused(saved, feature_set, changed):
    folder, model, take_step = saved
    store = open_store(folder, feature_set, model, CONFIG.model_copy(update=changed))
    with pytest.raises(ConfigError, match=f"the checkpoint has {next(iter(changed))}"):
        store.load(model, take_step)


def test_more_training_rows_of_the_same_files_are_refused(saved, feature_set):
    """As of a training on training and validation rows that an ordinary one goes on with."""
    folder, model, take_step = saved
    windows = feature_set.manifest.windows
    more = windows["train"].model_copy(update={"rows": windows["train"].rows + 1})
    manifest = feature_set.manifest.model_copy(update={"windows": {**windows, "train": more}})
    store = open_store(folder, FeatureSet(feature_set.path, manifest), model)
    with pytest.raises(ConfigError, match="the checkpoint has training_rows = "):
        store.load(model, take_step)


def test_a_record_that_does_not_say_how_many_rows_it_is_of_goes_on(saved, feature_set):
    folder, model, take_step = saved
    path = folder / "checkpoint.json"
    record = json.loads(path.read_text())
    del record["identity"]["training_rows"]
    path.write_text(json.dumps(record))
    assert open_store(folder, feature_set, model).load(model, take_step) is not None


def test_another_table_is_other_data_and_another_order_of_files_is_not(feature_set):
    def identity(changed: dict[str, str], backwards: bool = False) -> str:
        files = feature_set.manifest.files
        names = sorted(files, reverse=backwards)
        entries = {
            name: files[name].model_copy(update={"sha256": changed.get(name, files[name].sha256)}) for name in names
        }
        other = FeatureSet(feature_set.path, feature_set.manifest.model_copy(update={"files": entries}))
        return Identity.of(tiny_model(feature_set), other, CONFIG).data_fingerprint

    table = next(name for name in feature_set.manifest.files if name.startswith("rows/train/"))
    assert identity({}) == identity({}, backwards=True)
    assert identity({table: "0" * 64}) != identity({})


def test_every_evaluation_has_a_line_in_the_curve(saved, feature_set):
    folder, model, take_step = saved
    state = TrainState(step=4, epoch=0, batch=4, halvings=0)
    for step in (2, 4):
        state.record(look(step=step), "auc")
    open_store(folder, feature_set, model).write(Snapshot.take(state, model, take_step))
    assert [json.loads(line)["step"] for line in (folder / "curve.jsonl").read_text().splitlines()] == [2, 4]


def test_a_label_may_change(saved, feature_set):
    folder, model, take_step = saved
    model.config = model.config.model_copy(update={"architecture": "another_name"})
    assert open_store(folder, feature_set, model).load(model, take_step).step == 2


def test_another_number_of_threads_is_said_with_the_way_out(saved, feature_set, monkeypatch):
    folder, model, take_step = saved
    threads = torch.get_num_threads()
    store = open_store(folder, feature_set, model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.load(model, take_step)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 3)
    with pytest.warns(
        UserWarning, match=rf"had {threads} threads, now it has {threads + 3}.*OMP_NUM_THREADS={threads} "
    ):
        assert store.load(model, take_step).step == 2


def test_a_checkpoint_of_another_format_is_refused(saved, feature_set):
    folder, model, take_step = saved
    record = json.loads((folder / "checkpoint.json").read_text())
    (folder / "checkpoint.json").write_text(json.dumps(record | {"format": 4}))
    with pytest.raises(DataError, match="not a checkpoint of format 5"):
        open_store(folder, feature_set, model).load(model, take_step)


def test_another_model_is_refused_and_left_untouched(saved, feature_set):
    folder, _, _ = saved
    model = tiny_model(feature_set, dropout=0.5)
    before = model.item.weight.detach().clone()
    with pytest.raises(ConfigError, match=r"model\.dropout = 0\.2, this run has 0\.5"):
        open_store(folder, feature_set, model).load(model, new_step(model))
    assert torch.equal(model.item.weight, before)


def test_another_contract_and_other_data_are_refused(saved, feature_set, tmp_path_factory):
    folder, model, take_step = saved
    manifest = feature_set.manifest.model_copy(update={"fingerprint": "0" * 64})
    with pytest.raises(ConfigError, match="contract_fingerprint"):
        open_store(folder, FeatureSet(feature_set.path, manifest), model).load(model, take_step)
    tomorrow = toy_feature_set(tmp_path_factory.mktemp("tomorrow"), rows=400, users=20, seed=1)
    with pytest.raises(ConfigError, match="data_fingerprint"):
        open_store(folder, tomorrow, model).load(model, take_step)


def test_a_new_run_does_not_start_on_top_of_another(saved, feature_set):
    folder, model, _ = saved
    with pytest.raises(ConfigError, match="a run has been here"):
        open_store(folder, feature_set, model).start()


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    ctr.training.checkpoint.save_tensors(path, {"w": torch.ones(2)})

    def full(tensors: object, fresh: Path) -> None:
        fresh.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(ctr.training.checkpoint, "save_file", full)
    with pytest.raises(OSError, match="no space"):
        ctr.training.checkpoint.save_tensors(path, {"w": torch.zeros(2)})
    assert ctr.training.checkpoint.load_file(path)["w"].tolist() == [1.0, 1.0]


def test_record_counts_looks_since_the_best_and_halves_every_second_one():
    state = TrainState()
    improved = [state.record(look(step, auc), "auc") for step, auc in enumerate([0.6, 0.7, 0.7, 0.5, 0.6, 0.8])]
    assert improved == [True, True, False, False, False, True]
    assert (state.best.step, state.evaluations_since_best, state.halvings) == (5, 0, 1)
    assert not state.out_of_patience(1)


def test_lower_log_loss_is_better_and_patience_runs_out():
    state = TrainState()
    # look() has log_loss = 1 - auc
    assert [state.record(look(0, auc), "log_loss") for auc in (0.6, 0.5, 0.7, 0.6, 0.6)] == [
        True,
        False,
        True,
        False,
        False,
    ]
    assert state.out_of_patience(2) and not state.out_of_patience(3) and not state.out_of_patience(0)
