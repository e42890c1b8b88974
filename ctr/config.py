"""Typed settings of the model (`conf/model/*.yaml`) and of training (`conf/train.yaml`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from features.contract.settings import Settings, load_yaml, merge, validate


class ModelConfig(Settings):
    """What a model is made of: item encoder, readers of the history, tower. The presets in conf/model combine them."""

    architecture: str = Field(
        "qin", pattern=r"^[a-z0-9_]+$", description="label in tables and reports; changes nothing"
    )
    embedding_dim: PositiveInt = Field(16, description="width of every id, tag and category embedding")
    vector_dim: PositiveInt = Field(32, description="width each item vector is projected to")
    vector_gate: bool = Field(False, description="layer norm and a learned gate on each projected vector")
    modality_dropout: float = Field(0.0, ge=0, lt=1, description="chance that training hides a vector")
    attention: Literal["sparse", "din", "mean", "transformer", "none"] = "sparse"
    attention_dim: PositiveInt = Field(64, description="width K of the target attention")
    evidence_heads: NonNegativeInt = Field(
        0, description="kernel regressions over past feedback (ctr/history/kernel_attention.py)"
    )
    evidence_values: PositiveInt = Field(4, description="values of an event in each evidence head")
    match_features: bool = Field(False, description="highest and mean cosines between target and history")
    tower: Literal["quadratic", "linear", "mlp", "factorized", "cross", "two_streams", "none"] = "quadratic"
    layers: PositiveInt = Field(2, description="quadratic or cross layers L")
    rows: PositiveInt = Field(2, description="linear rows R in each quadratic layer")
    merge_rows: bool = Field(
        False, description="train the rows of each quadratic layer as the one matrix that they add up to"
    )
    hidden: tuple[PositiveInt, ...] = Field((256, 128, 64), min_length=1, description="units of a perceptron's layers")
    tasks: tuple[str, ...] = Field((), description="further labels of the data contract to predict, each a head")
    cross_cells: NonNegativeInt = Field(
        0, description="a weight for each pair of a context and an item value, of column pairs with at most so many"
    )
    base: Literal["none", "boosting"] = Field(
        "none",
        description="boosting: trees on tabular features (ctr/trees), whose logit is mixed with the tower's",
    )
    trees: PositiveInt = Field(500, description="most trees; the validation rows choose how many count")
    tree_rate: PositiveFloat = Field(0.05, description="learning rate of the trees")
    tree_leaves: int = Field(15, ge=2, description="most leaves of a tree")
    tree_l2: NonNegativeFloat = Field(1.0, description="L2 on the values of leaves")
    tree_patience: PositiveInt = Field(30, description="trees without improvement before growing stops")
    dropout: float = Field(0.1, ge=0, le=0.99, description="chance that training drops a value")
    use_history: bool = Field(True, description="false: the target-only control")
    use_user_id: bool = Field(False, description="embed the user id; overfits where users are seen rarely")
    id_dropout: float = Field(
        0.0, ge=0, lt=1, description="chance that training reads an item as one whose id is unknown"
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> ModelConfig:
        if len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks: a label is named twice in {', '.join(self.tasks)}")
        if self.tower == "none" and self.base == "none":
            raise ValueError("tower: none leaves nothing that predicts; set base: boosting, or another tower")
        if self.tower == "none" and self.tasks:
            raise ValueError(
                f"tasks: trees predict the click alone, not {self.tasks[0]!r}; set tower to another than none"
            )
        return self

    @property
    def compares(self) -> bool:
        """Whether cosines between target and history are needed."""
        return self.use_history and bool(self.match_features or self.evidence_heads or self.base == "boosting")


class GuardConfig(Settings):
    """What training does with a step whose loss or gradient is not finite, or whose loss explodes."""

    explosion: float = Field(
        10.0,
        gt=1,
        description="a loss above so many times the median of the last ones, and the loss of the mean label of its "
        "rows, is an explosion",
    )
    skips: NonNegativeInt = Field(10, description="most steps left out between two evaluations; beyond, go back")
    rollbacks: NonNegativeInt = Field(
        2, description="most returns to the best weights so far, at half the rate each; beyond, stop with exit code 5"
    )


class WarmStartConfig(Settings):
    """How a training goes on from the weights of an earlier run (`--warm-start`); a full training reads none of it."""

    new_rows: Literal["content", "unknown"] = Field(
        "content", description="how rows of new items begin: as their vectors say, or as the unknown item"
    )
    accumulators: Literal["keep", "decay", "reset"] = Field(
        "keep", description="second moments of the optimizers: go on, count half, or begin anew with all moments"
    )
    new_accumulators: Literal["mean", "zero"] = Field(
        "mean", description="second moments of new rows: the mean over the known ones, or none"
    )
    rate: float = Field(0.5, gt=0, le=1, description="share of `learning_rate` that a warm start trains at")
    rewarm_steps: NonNegativeInt = Field(0, description="steps in which the rate rises to its value")
    replay: float = Field(0.25, ge=0, le=1, description="share of the older rows that is trained on again")
    epochs: PositiveInt = Field(1, description="passes over the new and the replayed rows")
    full_every: PositiveInt = Field(
        7, description="with `champion`, every so many runs are full trainings; 1 makes all of them full"
    )


class CheckpointConfig(Settings):
    """How often a run is saved between two evaluations, after each of which it is saved in any case."""

    steps: NonNegativeInt = Field(0, description="steps between two checkpoints; 0: minutes alone decide")
    minutes: NonNegativeFloat = Field(5.0, description="minutes between two checkpoints; 0: steps alone decide")


class TrainConfig(Settings):
    """One training run."""

    epochs: PositiveInt = 3
    batch_size: PositiveInt = 1024
    learning_rate: PositiveFloat = 1e-3
    schedule: Literal["plateau", "cosine", "constant"] = "plateau"
    embedding_l2: NonNegativeFloat = Field(1e-6, description="L2 on embedding tables and vector projections")
    clip_norm: PositiveFloat = Field(
        10.0, description="largest gradient norm, L2 left out; larger ones are scaled down"
    )
    evaluations_per_epoch: PositiveInt = Field(4, description="evaluations on the validation rows in each epoch")
    patience: NonNegativeInt = Field(
        4, description="evaluations without improvement before stopping; 0 never stops early"
    )
    metric: Literal["auc", "log_loss", "gauc_by_samples", "group_auc"] = Field(
        "log_loss",
        description="what early stopping watches; gauc_by_samples is within users, group_auc within requests",
    )
    seed: int = Field(1, ge=-(2**63), lt=2**63, description="of the weights, the order of rows and dropout")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = Field("fp32", description="of matrix products and history sums in training")
    table_optimizer: Literal["adam", "lazy_adam", "rowwise_adagrad"] = Field(
        "adam",
        description="optimizer of embedding tables; all but adam update, and regularise, only the rows of a batch",
    )
    reset_embeddings: bool = Field(False, description="reinitialise embedding tables at each epoch (arXiv 2305.19531)")
    task_weights: dict[str, NonNegativeFloat] = Field({}, description="of the loss of each of model.tasks; else 1")
    list_loss: NonNegativeFloat = Field(
        0.0, description="weight of the softmax cross-entropy over each request's candidates; needs requests in the log"
    )
    calibration: Literal["none", "platt", "isotonic"] = Field(
        "platt", description="fitted on the validation rows after training"
    )
    controls: Literal["always", "weekly", "never"] = Field(
        "weekly", description="when the target-only control is trained beside a run"
    )
    tracking: Literal["now", "later"] = Field(
        "now", description="later: a run begins although MLflow does not answer, and what it logs is sent later"
    )
    accumulate: PositiveInt = Field(1, description="batches a step; its gradient is that of all their rows together")
    compile: bool = Field(False, description="torch.compile of the model, on CUDA")
    guard: GuardConfig = GuardConfig()
    warm_start: WarmStartConfig = WarmStartConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()


class Preset(Settings):
    """A model file: the model, and the training settings that suit it."""

    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _weights_are_of_tasks(self) -> Preset:
        if unknown := sorted(set(self.train.task_weights) - set(self.model.tasks)):
            known = ", ".join(self.model.tasks) or "none"
            raise ValueError(f"train.task_weights: {unknown[0]!r} is not one of model.tasks ({known})")
        if self.train.list_loss and self.model.tower == "none":
            raise ValueError("train.list_loss: trees alone (model.tower none) are grown by the log loss; set it to 0")
        return self


def load_preset(model_path: Path, train_path: Path, overrides: dict[str, Any] | None = None) -> Preset:
    """Training defaults from `train_path`, the model file on top, `--set` on top of both.

    Raises:
        ConfigError: missing file, unknown key (nearest valid one named), impossible value.
    """
    content = merge({"train": load_yaml(train_path)}, load_yaml(model_path))
    return validate(Preset, merge(content, overrides or {}), str(model_path))
