"""Steps that are skipped, returns to the last good weights, and the end of patience with both."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ctr.config import GuardConfig, TrainConfig
from ctr.data.batch import Batch
from ctr.data.feature_tables import frozen_tables
from ctr.model.calibrator import Calibrator, Curve
from ctr.training.loop import Evaluation, FitResult, fit
from features.errors import NumericalError
from features.progress import silent
from features.store.feature_set import FeatureSet
from tests.ctr.tiny import TinyModel
from tests.toy import toy_feature_set

# 800 rows in batches of 64: 13 steps an epoch, evaluated after 5, 9 and 13 of them.
CONFIG = TrainConfig(
    batch_size=64, epochs=2, learning_rate=0.02, schedule="constant", evaluations_per_epoch=3, patience=0, device="cpu"
)


@pytest.fixture(scope="module")
def feature_set(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    return toy_feature_set(tmp_path_factory.mktemp("toy"), rows=1000, users=40)


class Broken(TinyModel):
    """Its logits of training are not finite in some of its forward passes, counted from 0."""

    breaks: Callable[[int], bool] = staticmethod(lambda step: False)
    steps = 0

    def forward(self, batch: Batch) -> Tensor:
        logit_B = super().forward(batch)
        if not self.training:
            return logit_B
        self.steps += 1
        return logit_B * math.inf if self.breaks(self.steps - 1) else logit_B


def broken(feature_set: FeatureSet, breaks: Callable[[int], bool]) -> Broken:
    torch.manual_seed(3)
    model = Broken(feature_set.schema.items)
    model.breaks = breaks  # type: ignore[method-assign]
    model.attach(frozen_tables(feature_set))
    return model


def train(model: Broken, feature_set: FeatureSet, folder: Path, guard: dict[str, Any], **call: Any) -> FitResult:
    config = CONFIG.model_copy(update={"guard": GuardConfig(**guard)} | call.pop("config", {}))
    return fit(model, feature_set, config, folder, progress=silent, **call)


def test_a_few_bad_steps_are_left_out_and_counted(feature_set, tmp_path):
    result = train(broken(feature_set, lambda step: step in (3, 8, 20)), feature_set, tmp_path, {"skips": 1})
    assert (result.skipped, result.rollbacks) == (3, 0)
    assert [look.step for look in result.curve] == [5, 9, 13, 18, 22, 26]
    assert all(math.isfinite(look.train_loss) for look in result.curve)
    assert result.curve[-1].log_loss < result.curve[0].log_loss


def test_the_training_loss_is_the_mean_of_the_steps_that_were_taken(feature_set, tmp_path):
    """Of the five steps before the first evaluation the last four are left out: what stays is the first one's loss."""
    model, losses = broken(feature_set, lambda step: step in (1, 2, 3, 4)), []
    outputs = model.outputs

    def noted(batch: Batch) -> Any:
        found = outputs(batch)
        losses.append(
            torch.nn.functional.binary_cross_entropy_with_logits(found.click_B, batch.label_B, batch.weight_B)
        )
        losses[-1] = (losses[-1] * len(batch) / batch.weight_B.sum()).item()
        return found

    model.outputs = noted  # type: ignore[method-assign]
    result = train(model, feature_set, tmp_path, {"skips": 4})
    assert result.curve[0].train_loss == pytest.approx(losses[0], rel=1e-5)


def test_too_many_bad_steps_go_back_to_the_best_weights_at_half_the_rate(feature_set, tmp_path):
    """Steps 6 to 8 break: at the evaluation after step 9 the weights are again those of the evaluation after step 5."""
    seen: list[Evaluation] = []
    best: list[dict[str, Tensor]] = []
    model = broken(feature_set, lambda step: 6 <= step <= 8)

    def look(evaluation: Evaluation) -> None:
        seen.append(evaluation)
        if len(seen) == 1:
            best.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        if len(seen) == 2:
            assert all(torch.equal(tensor, best[0][name]) for name, tensor in model.state_dict().items())

    result = train(model, feature_set, tmp_path, {"skips": 2}, on_evaluation=look)
    assert (result.skipped, result.rollbacks) == (3, 1)
    assert [one.learning_rate for one in seen] == [0.02, 0.02, 0.01, 0.01, 0.01, 0.01]
    assert seen[1].log_loss == seen[0].log_loss and seen[-1].log_loss < seen[1].log_loss


def test_before_the_first_evaluation_the_first_weights_are_the_good_ones(feature_set, tmp_path):
    model = broken(feature_set, lambda step: 2 <= step <= 4)
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def look(evaluation: Evaluation) -> None:
        if evaluation.step == 5:
            assert all(torch.equal(tensor, first[name]) for name, tensor in model.state_dict().items())

    assert train(model, feature_set, tmp_path, {"skips": 2}, on_evaluation=look).rollbacks == 1


def test_a_finished_run_that_goes_on_returns_to_its_published_weights(feature_set, tmp_path):
    """Their calibration was fitted after training, and stays out."""
    done, model = broken(feature_set, lambda step: False), broken(feature_set, lambda step: 2 <= step <= 4)
    done.calibrator, model.calibrator = Calibrator(), Calibrator()
    train(done, feature_set, tmp_path, {})
    good = {name: tensor.clone() for name, tensor in done.state_dict().items()}
    done.calibrator.set(Curve(1.0, 9.0))
    save_file(done.state_dict(), tmp_path / "model.safetensors")
    seen: list[int] = []

    def look(evaluation: Evaluation) -> None:
        seen.append(evaluation.step)
        if evaluation.step == 31:
            assert all(torch.equal(tensor, good[name]) for name, tensor in model.state_dict().items())

    longer = {"epochs": 3}
    result = train(model, feature_set, tmp_path, {"skips": 2}, config=longer, resume=True, on_evaluation=look)
    assert seen == [31, 35, 39]
    assert result.rollbacks == 1


def test_after_the_last_return_training_stops_and_nothing_is_overwritten(feature_set, tmp_path):
    """The evaluation after step 5 is saved; all is broken from step 8 on, and the second evaluation goes back once."""
    seen: list[Evaluation] = []
    model = broken(feature_set, lambda step: step >= 6)
    expected = (
        r"step 9: not finite: loss (nan|inf).* 4 steps were skipped since the last evaluation, more than "
        r"train\.guard\.skips 2, after 1 returns .*Lower train\.learning_rate"
    )
    with pytest.raises(NumericalError, match=expected) as error:
        train(model, feature_set, tmp_path, {"skips": 2, "rollbacks": 1}, on_evaluation=seen.append)
    assert error.value.exit_code == 5
    assert [look.step for look in seen] == [5, 9]
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    # And the run can be continued from there.
    healthy = broken(feature_set, lambda step: False)
    result = train(healthy, feature_set, tmp_path, {}, resume=True, config={"learning_rate": 0.01})
    assert [look.step for look in result.curve] == [5, 9, 13, 18, 22, 26]
    assert result.curve[:2] == seen


def test_with_neither_skips_nor_returns_the_first_bad_step_stops(feature_set, tmp_path):
    with pytest.raises(NumericalError, match=r"step 3: not finite.* 1 steps were skipped"):
        train(broken(feature_set, lambda step: step == 3), feature_set, tmp_path, {"skips": 0, "rollbacks": 0})


def test_a_run_that_went_back_resumes_to_the_bit(feature_set, tmp_path):
    def breaks(step: int) -> bool:
        return 6 <= step <= 8

    whole = broken(feature_set, breaks)
    expected = train(whole, feature_set, tmp_path / "whole", {"skips": 2})

    class Killed(BaseException):
        pass

    def killed(evaluation: Evaluation) -> None:
        if evaluation.step == 13:
            raise Killed

    with pytest.raises(Killed):
        train(broken(feature_set, breaks), feature_set, tmp_path / "broken", {"skips": 2}, on_evaluation=killed)
    rest = broken(feature_set, lambda step: False)
    result = train(rest, feature_set, tmp_path / "broken", {"skips": 2}, resume=True)
    assert (result.skipped, result.rollbacks) == (expected.skipped, expected.rollbacks) == (3, 1)
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in rest.state_dict().items())
