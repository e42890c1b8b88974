"""The training loop: batches in, the best weights out, resumable to the bit at any checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from ctr.config import TrainConfig
from ctr.data.batch import Batch
from ctr.data.loader import Loader
from ctr.data.prefetch import on_device, validated, windows
from ctr.evaluation.watched import WatchedRows
from ctr.model.click_model import ClickModel
from ctr.training.checkpoint import CheckpointStore, Evaluation, Identity, Snapshot, TrainState
from ctr.training.checkpoint_writer import CheckpointWriter, Schedule
from ctr.training.optimizer import learning_rate, rewarmed
from ctr.training.recovery import RATE_AFTER, Recovery
from ctr.training.train_step import TrainStep, require_device
from ctr.training.warm.parent import Parent
from ctr.training.warm.transfer import Began, begin_from, rows_to_train
from features.errors import ConfigError
from features.progress import Progress
from features.progress import progress as show_progress
from features.stopping import StopRequest, held
from features.store.feature_set import FeatureSet, SplitName

__all__ = ["Evaluation", "FitResult", "StopTraining", "fit", "predict", "predict_tasks", "require_training"]

STEPS_BETWEEN_LOGS = 20
SCORING_ROWS = 1024


class StopTraining(Exception):  # noqa: N818  # a request of the caller, not an error
    """Raised by `on_evaluation` to end training after this evaluation, as a sweep does with a poor trial."""


@dataclass(frozen=True)
class FitResult:
    """What came out of one call of `fit`.

    Args:
        best: metrics of the best evaluation; its weights are in the model.
        curve: all evaluations, also those before a resume.
        rows_per_second: training rows a second in this call, without the time of evaluations.
        epochs_run: passes over the training rows, before a resume included.
        stopped_early: patience ran out.
        stopped_by_callback: `on_evaluation` raised StopTraining.
        seconds: wall time of this call.
        skipped: steps that the guard left out, before a resume included.
        rollbacks: how often training went back to its last good weights.
        began: what a warm start gave the model.
    """

    best: dict[str, float]
    curve: list[Evaluation]
    rows_per_second: float
    epochs_run: float
    stopped_early: bool
    stopped_by_callback: bool
    seconds: float
    skipped: int = 0
    rollbacks: int = 0
    began: Began | None = None


def require_training(feature_set: FeatureSet, config: TrainConfig, warm: Parent | None = None) -> None:
    """Refuse before anything is written what `fit` would refuse: settings, and rows that do not fit them.

    Raises:
        ConfigError: as `fit`, but for what lies in its folder.
        DataError: validation rows that do not define `config.metric`.
    """
    chosen = None
    if warm is not None:
        config, chosen = _of_a_warm_start(config, feature_set, warm)
    require_device(config, _device(config.device))
    _training_rows(feature_set, config, chosen)
    WatchedRows.of(feature_set).require(config.metric)


def fit(
    model: nn.Module,
    feature_set: FeatureSet,
    config: TrainConfig,
    run_dir: Path,
    *,
    on_evaluation: Callable[[Evaluation], None] | None = None,
    progress: Progress = show_progress,
    resume: bool = False,
    warm: Parent | None = None,
) -> FitResult:
    """Train `model`, evaluate it on the validation rows on the way, and leave it with the best weights.

    The run is saved at every evaluation, and between two of them as `config.checkpoint` says, by a thread that writes
    a copy: kill it at any time, call again with `resume`, and on a CPU it ends with the same weights, bit by bit. A
    signal that `features.stopping` listens to ends it after the step in hand, once that is saved. `resume` starts
    afresh where nothing had been saved, and only loads the best weights where the run was done.

    Args:
        model: with tables attached, `config` (its ModelConfig), `outputs(batch)`, `forward(batch) -> logit_B`, and
            `regularized_parameters()`. A lone last row of an epoch is left out: batch norm needs two.
        feature_set: where rows come from.
        config: settings.
        run_dir: gets model.safetensors, curve.jsonl and the checkpoint (ctr/training/checkpoint.py).
        on_evaluation: called after each evaluation, while it is saved; may raise StopTraining. A run that is resumed
            from before that calls it again with the same evaluation.
        progress: how to show it; `features.progress.silent` to not show it.
        resume: continue the run in `run_dir`.
        warm: the run that a warm start goes on from, which agrees with the model (`ctr.training.warm.agreement`). The
            model is a `ClickModel` then, and `config.warm_start` says how it goes on.

    Raises:
        ConfigError: batch size outside 2..training rows, no such device, a loss of lists on a log without requests, a
            checkpoint of another run, or, without `resume`, a run in `run_dir`.
        DataError: a damaged checkpoint, a feature set whose rows do not fit its tables, or validation rows that do
            not define `config.metric`.
        NumericalError: a score is not finite; or losses and gradients are not, or explode, more often than
            `config.guard` allows. What was saved before stays as it is.
    """
    started = time.monotonic()
    device = _device(config.device)
    chosen = None
    if warm is not None:
        config, chosen = _of_a_warm_start(config, feature_set, warm)
    train = _training_rows(feature_set, config, chosen)
    valid = Loader(feature_set, "valid", max(config.batch_size, SCORING_ROWS))
    watched = WatchedRows.of(feature_set)
    watched.require(config.metric)
    torch.manual_seed(config.seed)
    model.to(device)
    take_step = TrainStep(model, config, device)
    replay = None if warm is None else config.warm_start.replay
    store = CheckpointStore(run_dir, Identity.of(model, feature_set, config, replay))
    began = _begun(warm, model, take_step, feature_set, config)
    recovery = Recovery(model, store, config.guard)
    state = store.load(model, take_step) if resume else None
    if state is None:
        store.start()
        state = TrainState()
    if state.best is not None:
        recovery.forget_first()

    steps_an_epoch = math.ceil(len(train) / config.accumulate)
    evaluation_steps = _evaluation_steps(steps_an_epoch, config.evaluations_per_epoch)
    steps = config.epochs * steps_an_epoch
    done = state.epoch * train.rows + state.batch * config.batch_size
    rows, seconds_evaluating, stopped_by_callback = 0, 0.0, False
    schedule = Schedule(config.checkpoint, state.step)
    model.train()
    with (
        progress("training", config.epochs * train.rows, "rows", done) as bar,
        closing(_windows_left(train, state, config, device, take_step)) as steps_left,
        CheckpointWriter(store) as writer,
        held() as stop,
    ):

        def rate_of(step: int) -> float:
            rate = learning_rate(config, step, steps, state.halvings) * RATE_AFTER**state.rollbacks
            return rate if warm is None else rate * rewarmed(config.warm_start, step)

        def save() -> None:
            writer.write(Snapshot.take(state, model, take_step))
            schedule.saved(state.step)

        # A run that was saved where an evaluation was due begins with it.
        waiting = [()] if state.awaits_evaluation(steps_an_epoch, evaluation_steps) else []
        for window in chain(waiting, steps_left):
            if window:
                take_step(window, rate_of(state.step), state.step)
                taken = sum(len(batch) for batch in window)
                state.step, state.batch, rows = state.step + 1, state.batch + len(window), rows + taken
                bar.advance(taken)
            rate, evaluates = rate_of(state.step - 1), state.awaits_evaluation(steps_an_epoch, evaluation_steps)
            if evaluates or state.step % STEPS_BETWEEN_LOGS == 0:
                recovery.check(state, take_step, rate, writer)
            if stop.requested:
                save()
                stop.obey()
            if not evaluates:
                if schedule.due(state.step) and not writer.busy:
                    save()
                continue

            evaluation_started = time.monotonic()
            state.skipped += take_step.guard.skipped()
            take_step.guard.begin()
            measured = _validation_metrics(model, valid, watched, device, stop)
            if measured is None:
                save()
                stop.obey()
                continue
            train_loss, train_click_loss = (take_step.losses[:2] / take_step.losses[2]).tolist()
            evaluation = Evaluation(
                step=state.step,
                epoch=state.step / steps_an_epoch,
                train_loss=train_loss,
                train_click_loss=train_click_loss,
                learning_rate=rate,
                **measured,
            )
            state.record(evaluation, config.metric)
            recovery.forget_first()
            take_step.losses.zero_()
            save()
            seconds_evaluating += time.monotonic() - evaluation_started
            bar.advance(
                0, note=f"epoch {evaluation.epoch:.2f}, {config.metric} {evaluation.metrics()[config.metric]:.4f}"
            )
            if on_evaluation is not None:
                try:
                    on_evaluation(evaluation)
                except StopTraining:
                    stopped_by_callback = True
                    break
            if state.out_of_patience(config.patience):
                break

    assert state.best is not None, "every epoch ends with an evaluation"
    store.finish(state, model)
    seconds = time.monotonic() - started
    return FitResult(
        best=state.best.metrics(),
        curve=state.curve,
        rows_per_second=rows / (seconds - seconds_evaluating),
        epochs_run=state.step / steps_an_epoch,
        stopped_early=state.out_of_patience(config.patience),
        stopped_by_callback=stopped_by_callback,
        seconds=seconds,
        skipped=state.skipped,
        rollbacks=state.rollbacks,
        began=began,
    )


def predict(
    model: nn.Module,
    feature_set: FeatureSet,
    split: SplitName,
    batch_size: int = SCORING_ROWS,
    device: torch.device | None = None,
) -> np.ndarray:
    """Click probabilities of a split in its stored row order, float32 [rows].

    Args:
        model: with tables attached; it is in evaluation mode afterwards.
        feature_set: where rows come from.
        split: train, valid or test.
        batch_size: rows scored at a time.
        device: where to score; the model is moved there. Default: where it is.
    """
    if device is None:
        device = device_of(model)
    scores = _score(model.to(device), Loader(feature_set, split, batch_size), device, StopRequest())
    assert scores is not None, "nothing stops it"
    return scores


def predict_tasks(model: ClickModel, feature_set: FeatureSet, split: SplitName) -> dict[str, np.ndarray]:
    """Probabilities of the further labels that a model predicts, by label: as `predict`, in one pass for all."""
    loader = Loader(feature_set, split, SCORING_ROWS)
    device = device_of(model)
    model.eval()
    found: dict[str, list[np.ndarray]] = {name: [] for name in model.config.tasks}
    if not found:
        return {}
    with torch.inference_mode(), closing(on_device(validated(loader.epoch(0)), device)) as batches:
        for batch in batches:
            for name, logit_B in model.outputs(batch).tasks.items():
                found[name].append(torch.sigmoid(logit_B).cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _training_rows(feature_set: FeatureSet, config: TrainConfig, chosen: np.ndarray | None) -> Loader:
    rows = feature_set.manifest.windows["train"].rows if chosen is None else len(chosen)
    if not 2 <= config.batch_size <= rows:
        raise ConfigError(
            f"Set train.batch_size between 2 and {rows:,}, the rows of the training window: batch norm needs "
            f"two rows. Got {config.batch_size:,}."
        )
    if config.list_loss and feature_set.contract.interactions.request is None:
        raise ConfigError(
            f"train.list_loss {config.list_loss:g}: compares the candidates of one request, and the contract of "
            f"{feature_set.contract.name!r} has no interactions.request. Name the column of its id, or set "
            "train.list_loss to 0."
        )
    return Loader(
        feature_set,
        "train",
        config.batch_size,
        seed=config.seed,
        shuffle=True,
        drop_last=rows % config.batch_size == 1,  # a lone last row
        chosen=chosen,
        by_request=config.list_loss > 0,
    )


def _of_a_warm_start(config: TrainConfig, feature_set: FeatureSet, warm: Parent) -> tuple[TrainConfig, np.ndarray]:
    """The settings of a warm start and the rows that it trains on: on a day of few rows, all of them are one batch."""
    settings = config.warm_start
    chosen = rows_to_train(feature_set, warm.newest, settings.replay, config.seed)
    if len(chosen) < 2:
        raise ConfigError(
            f"--warm-start: {len(chosen)} rows of the training window are newer than those of run {warm.run_id} or "
            "replayed, fewer than the two that batch norm needs. Wait for newer rows, or raise train.warm_start.replay."
        )
    changed = {"epochs": settings.epochs, "batch_size": min(config.batch_size, len(chosen))}
    return config.model_copy(update=changed), chosen


def _begun(
    warm: Parent | None, model: nn.Module, take_step: TrainStep, feature_set: FeatureSet, config: TrainConfig
) -> Began | None:
    """Give the model what its parent knows; a checkpoint that is loaded afterwards knows more."""
    if warm is None:
        return None
    assert isinstance(model, ClickModel), "only a click model is known part by part"
    return begin_from(warm, model, take_step, feature_set, config.warm_start)


def _device(name: Literal["auto", "cpu", "cuda"]) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device cuda: torch sees no CUDA device here. Set train.device to auto or cpu.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def device_of(model: nn.Module) -> torch.device:
    """Where a model is; trees have buffers alone."""
    return next(chain(model.parameters(), model.buffers())).device


def _evaluation_steps(steps: int, evaluations: int) -> frozenset[int]:
    """After which steps (from 1) of an epoch to evaluate: evenly spread, always after the last one."""
    return frozenset(math.ceil(steps * number / evaluations) for number in range(1, evaluations + 1))


def _windows_left(
    train: Loader, state: TrainState, config: TrainConfig, device: torch.device, take_step: TrainStep
) -> Generator[tuple[Batch, ...], None, None]:
    """The batches of each step from where `state` stands to the last epoch; turns the epoch over in `state`.

    An epoch's last window holds what is left of it: no batch is dropped, and none is kept for the next epoch.
    """
    while state.epoch < config.epochs and not state.out_of_patience(config.patience):
        if config.reset_embeddings and state.epoch > 0 and state.batch == 0:
            take_step.reset_embeddings()
        with closing(on_device(validated(train.epoch(state.epoch, state.batch)), device)) as batches:
            yield from windows(batches, config.accumulate)
        state.epoch, state.batch = state.epoch + 1, 0


def _validation_metrics(
    model: nn.Module, valid: Loader, watched: WatchedRows, device: torch.device, stop: StopRequest
) -> dict[str, float] | None:
    """What early stopping watches: rows count by their weight, as they do in the loss. None where a signal stops it."""
    scores = _score(model, valid, device, stop)
    model.train()
    return None if scores is None else watched.metrics(scores)


@torch.inference_mode()
def _score(model: nn.Module, loader: Loader, device: torch.device, stop: StopRequest) -> np.ndarray | None:
    model.eval()
    scores = torch.empty(loader.rows, device=device)
    start = 0
    with closing(on_device(validated(loader.epoch(0)), device)) as batches:
        for batch in batches:
            if stop.requested:
                return None
            scores[start : start + len(batch)] = torch.sigmoid(model(batch))
            start += len(batch)
    return scores.cpu().numpy()
