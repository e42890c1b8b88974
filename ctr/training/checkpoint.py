"""The state of a training run on disk: one object, written so that a kill at any moment leaves a valid one.

checkpoint.json                  what state the run is in, and which tensor file belongs to it
checkpoint-<step>.safetensors    weights, optimizer moments, sums of losses, random number generators
best.safetensors                 weights of the best evaluation so far; model.safetensors once the run is done
curve.jsonl                      one line an evaluation
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ctr.config import ModelConfig, TrainConfig
from ctr.training.optimizer import EVALUATIONS_BEFORE_HALVING
from ctr.training.train_step import TrainStep
from features.contract.settings import Settings
from features.errors import ConfigError, DataError
from features.store.atomic import replace_file, write_text
from features.store.feature_set import FeatureSet, sha256_of

RECORD = "checkpoint.json"
MODEL = "model.safetensors"
CURVE = "curve.jsonl"
# Fitted after training: calibrations on the validation rows, trees on all training rows.
FITTED_AFTER = ("calibrator.", "task_calibrators.", "trees.")
FORMAT: Literal[5] = 5

# JSON has no NaN: it is written as null.
Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


class Evaluation(Settings):
    """One evaluation on the validation rows. A metric that these rows do not define is NaN.

    `group_auc` is AUC within requests, None where the log does not name them or no request has both labels.
    `train_loss` is what training minimises, `train_click_loss` the log loss of the click in it: of the training rows
    since the evaluation before, comparable with `log_loss`.
    """

    step: int
    epoch: float
    auc: Number
    log_loss: Number
    gauc_by_samples: Number
    group_auc: float | None = None
    train_loss: Number
    train_click_loss: Number
    learning_rate: Number

    def metrics(self) -> dict[str, float]:
        """Its numbers by name, without `step` and `epoch`, and without those that it does not have."""
        return self.model_dump(exclude={"step", "epoch"}, exclude_none=True)


class TrainState(BaseModel):
    """Where a run stands: everything beside tensors that its next step depends on.

    Args:
        step: optimizer steps done.
        epoch: epochs done.
        batch: batches done of the epoch after those.
        best: the best evaluation so far.
        evaluations_since_best: how many came after it.
        halvings: how often a plateau has halved the learning rate.
        curve: all evaluations.
        skipped: steps that the guard left out.
        rollbacks: how often it went back to the last good weights.
    """

    model_config = ConfigDict(extra="forbid")

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best: Evaluation | None = None
    evaluations_since_best: int = 0
    halvings: int = 0
    curve: list[Evaluation] = []
    skipped: int = 0
    rollbacks: int = 0

    @property
    def last_evaluation(self) -> int:
        """Steps done at the last evaluation; 0 before the first."""
        return self.curve[-1].step if self.curve else 0

    def awaits_evaluation(self, steps_an_epoch: int, evaluation_steps: frozenset[int]) -> bool:
        """Whether an evaluation is due at this step (one of `evaluation_steps` of its epoch) and was not made yet."""
        return self.step - self.epoch * steps_an_epoch in evaluation_steps and self.step > self.last_evaluation

    def record(self, evaluation: Evaluation, metric: str) -> bool:
        """Add an evaluation; returns whether it is the best so far by `metric`."""
        value = evaluation.metrics()[metric]
        self.curve.append(evaluation)
        best = None if self.best is None else self.best.metrics()[metric]
        if best is None or (value < best if metric == "log_loss" else value > best):
            self.best, self.evaluations_since_best = evaluation, 0
            return True
        self.evaluations_since_best += 1
        self.halvings += self.evaluations_since_best % EVALUATIONS_BEFORE_HALVING == 0
        return False

    def out_of_patience(self, patience: int) -> bool:
        """Whether `patience` evaluations brought no improvement; a patience of 0 never runs out."""
        return 0 < patience <= self.evaluations_since_best


class Identity(Settings):
    """What a checkpoint belongs to; it continues with nothing else."""

    model: ModelConfig
    contract_fingerprint: str
    data_fingerprint: str
    batch_size: int
    accumulate: int
    seed: int
    metric: str
    table_optimizer: str
    list_loss: bool = False  # whether rows come by request; not so in runs that do not say it
    replay: float | None = None  # of a warm start; None in a full training, and in records that do not say it
    training_rows: int | None = None  # of the feature set, of which a training may take more or fewer

    @classmethod
    def of(
        cls, model: nn.Module, feature_set: FeatureSet, config: TrainConfig, replay: float | None = None
    ) -> Identity:
        """Of one run, with the share of older rows that a warm start trains on.

        Settings that decide which rows a step sees, what a step's number means, or which weights are the best so far
        must stay; others, such as the learning rate, may change on resume.
        """
        manifest = feature_set.manifest
        tables = {n: entry.sha256 for n, entry in manifest.files.items() if n.endswith((".arrow", ".npy"))}
        return cls(
            model=model.config,
            contract_fingerprint=manifest.fingerprint,
            data_fingerprint=hashlib.sha256(json.dumps(tables, sort_keys=True).encode()).hexdigest(),
            batch_size=config.batch_size,
            accumulate=config.accumulate,
            seed=config.seed,
            metric=config.metric,
            table_optimizer=config.table_optimizer,
            list_loss=config.list_loss > 0,
            replay=replay,
            training_rows=manifest.windows["train"].rows,
        )


class DamagedCheckpointError(DataError):
    """A checkpoint is there, but nothing can be continued from it."""


@dataclass(frozen=True)
class Snapshot:
    """A run at one step, copied to the memory of the CPU, so that training may go on while it is written.

    Args:
        state: where the run stands.
        tensors: all that the next step depends on: `model.*`, `optimizer.*`, `random.*` and `losses`.
    """

    state: TrainState
    tensors: Mapping[str, Tensor]

    @classmethod
    def take(cls, state: TrainState, model: nn.Module, take_step: TrainStep) -> Snapshot:
        """Copy what a run is now."""
        packed = _pack(model, take_step)
        return cls(
            state.model_copy(deep=True),
            {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in packed.items()},
        )

    @property
    def weights(self) -> dict[str, Tensor]:
        """The model's tensors by their own names."""
        return _named("model.", self.tensors)


class _Record(Settings):
    format: Literal[5]
    identity: Identity
    threads: int
    tensors: str = Field(pattern=r"^checkpoint-[0-9]+\.safetensors$")  # beside the record, never elsewhere
    sha256: str
    state: TrainState


class CheckpointStore:
    """Saves and loads the state of one run in its folder.

    The record names its tensor file and holds its sha256, and replaces the old record in one step; only
    then does the old tensor file go. No pickle is read or written.

    Args:
        folder: the run folder.
        identity: what the run trains on.
    """

    def __init__(self, folder: Path, identity: Identity) -> None:
        self.folder = folder
        self.identity = identity

    def start(self) -> None:
        """Make the folder for a new run. Raises ConfigError if a run has already saved something there."""
        for name in (RECORD, MODEL):
            if (self.folder / name).exists():
                raise ConfigError(
                    f"{self.folder / name}: a run has been here. Continue it with --resume, or train into a new folder."
                )
        self.folder.mkdir(parents=True, exist_ok=True)

    def remove_halves(self) -> None:
        """Remove what a killed process was writing: files that had no name of their own yet."""
        for kind in ("checkpoint", "best", "curve", "model", "calibration", "config", "metrics"):
            for half in self.folder.glob(f".{kind}*"):
                half.unlink()

    def write(self, snapshot: Snapshot) -> None:
        """Replace the checkpoint and the curve by these, and the best weights where no evaluation was better."""
        state, name = snapshot.state, f"checkpoint-{snapshot.state.step}.safetensors"
        if state.best is not None and state.best.step == state.step:
            save_tensors(self._best(state), snapshot.weights)
        save_tensors(self.folder / name, snapshot.tensors)
        record = _Record(
            format=FORMAT,
            identity=self.identity,
            threads=torch.get_num_threads(),
            tensors=name,
            sha256=sha256_of(self.folder / name),
            state=state,
        )
        write_text(self.folder / CURVE, "".join(f"{one.model_dump_json()}\n" for one in state.curve))
        write_text(self.folder / RECORD, record.model_dump_json(indent=2))
        self._remove_older(state)

    def load(self, model: nn.Module, take_step: TrainStep) -> TrainState | None:
        """Put the checkpoint's tensors into model, optimizer and random number generators.

        Returns:
            Where the run stood, or None if it had not yet saved a checkpoint.

        Raises:
            ConfigError: the checkpoint is of another `Identity`.
            DamagedCheckpointError: it is damaged.

        Warns:
            UserWarning: it was written with another number of threads. The run goes on, but sums over rows round
                otherwise: its weights differ in their last digits from those of an uninterrupted run.
        """
        self.remove_halves()
        path = self.folder / RECORD
        if not path.is_file():
            return None
        try:
            record = _Record.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise DamagedCheckpointError(
                f"{path}: not a checkpoint of format {FORMAT} ({error.error_count()} problems). "
                "Train again into a new folder, without --resume."
            ) from None
        self._require_same(record.identity)
        tensors = self.folder / record.tensors
        if not tensors.is_file() or sha256_of(tensors) != record.sha256:
            raise DamagedCheckpointError(
                f"{tensors}: missing or changed since the checkpoint was written (sha256 differs). "
                "Train again into a new folder, without --resume."
            )
        if record.threads != (threads := torch.get_num_threads()):
            warnings.warn(
                f"{path}: the run had {record.threads} threads, now it has {threads}. It goes on, but sums round "
                "otherwise: the weights will differ in their last digits from those of an uninterrupted run. For "
                f"the same weights bit by bit, set OMP_NUM_THREADS={record.threads} and resume again.",
                stacklevel=2,
            )
        try:
            packed = load_file(tensors)
        except SafetensorError as error:
            raise DamagedCheckpointError(
                f"{tensors}: not a file of tensors ({error}). Train again into a new folder, without --resume."
            ) from None
        _unpack(packed, model, take_step)
        return record.state

    def load_best(self, state: TrainState) -> dict[str, Tensor]:
        """The weights of `state.best`, once they are written, without what is fitted after training."""
        best = self._best(state)
        # A run that was done, and goes on for more epochs, has published them.
        found = load_file(best if best.is_file() else self.folder / MODEL)
        return {name: tensor for name, tensor in found.items() if not name.startswith(FITTED_AFTER)}

    def finish(self, state: TrainState, model: nn.Module) -> None:
        """The run is done: publish its best weights as model.safetensors, and load them into the model."""
        # Not there when a finished run is finished again: then they are published already.
        if self._best(state).is_file():
            self._best(state).replace(self.folder / MODEL)
        self._remove_older(state)  # a kill may have kept the last checkpoint from it
        model.load_state_dict(load_file(self.folder / MODEL))

    def _remove_older(self, state: TrainState) -> None:
        """Remove the tensors and the best weights of earlier checkpoints."""
        kept = (self.folder / f"checkpoint-{state.step}.safetensors", self._best(state))
        for old in [*self.folder.glob("checkpoint-*.safetensors"), *self.folder.glob("best-*.safetensors")]:
            if old not in kept:
                old.unlink()

    def _best(self, state: TrainState) -> Path:
        return self.folder / f"best-{state.best.step if state.best else 0}.safetensors"

    def _require_same(self, found: Identity) -> None:
        theirs, ours = _flat(found), _flat(self.identity)
        for key in {"replay", "training_rows"} - found.model_fields_set:
            del ours[key]  # the record is of an earlier version
        different = [key for key in ours if theirs.get(key) != ours[key]]
        if different:
            key = different[0]
            raise ConfigError(
                f"{self.folder / RECORD}: the checkpoint has {key} = {theirs.get(key)!r}, this run has "
                f"{ours[key]!r}. Resume with the settings and the feature set it was started with, or train "
                "into a new folder without --resume."
            )


def saved_state(folder: Path) -> TrainState | None:
    """Where the run in a folder stood when it was last saved, whatever it trained on; None where that is not known."""
    try:
        return _Record.model_validate_json((folder / RECORD).read_bytes()).state
    except (OSError, ValidationError):
        return None


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file so that readers see the old one or the new one, never half of it."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    replace_file(path, lambda fresh: save_file(on_cpu, fresh))


def _pack(model: nn.Module, take_step: TrainStep) -> dict[str, Tensor]:
    """All tensors of a run under one namespace."""
    packed = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    packed |= {f"optimizer.{name}": tensor for name, tensor in take_step.state().items()}
    packed["losses"] = take_step.losses
    packed["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        packed["random.cuda"] = torch.cuda.get_rng_state()
    return packed


def _unpack(packed: dict[str, Tensor], model: nn.Module, take_step: TrainStep) -> None:
    model.load_state_dict(_named("model.", packed))
    take_step.load_state(_named("optimizer.", packed))
    take_step.losses.copy_(packed["losses"])
    torch.set_rng_state(packed["random.cpu"])
    if torch.cuda.is_available() and "random.cuda" in packed:
        torch.cuda.set_rng_state(packed["random.cuda"])


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _flat(identity: Identity) -> dict[str, Any]:
    content = identity.model_dump()
    model = content.pop("model")
    del model["architecture"]  # a label: it changes nothing
    return {f"model.{key}": value for key, value in model.items()} | content


def read_optimizer(folder: Path) -> dict[str, Tensor] | None:
    """What the optimisers of a run in `folder` kept, as `TrainStep.state` names it; None where it is gone.

    Raises:
        DataError: it is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    tensors = folder / str(record.get("tensors"))
    if not tensors.is_file():
        return None
    if sha256_of(tensors) != record["sha256"]:
        raise DataError(
            f"{tensors}: changed since the checkpoint was written (sha256 differs). Delete it: a warm start goes on "
            "without the moments of the optimisers then."
        )
    return _named("optimizer.", load_file(tensors))
