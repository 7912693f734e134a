"""Joins model, objective, optimizer, data and policies into a `Trainer`, by what gin says of each."""

import math

import jax

from pretrain.core.errors import check
from pretrain.core.objective import Vocabulary
from pretrain.core.storage import Path
from pretrain.models.build import build_model
from pretrain.models.config import TransformerConfig
from pretrain.models.flops import count_flops
from pretrain.models.functional import FunctionalModel, Params
from pretrain.models.layers import compute_dtype
from pretrain.models.parametrization import learning_rate_scales
from pretrain.objectives.base import Objective
from pretrain.optim.clipping import skip_bad_updates
from pretrain.optim.optimizers import Optimizer, build_optimizer
from pretrain.optim.schedules import Schedule
from pretrain.sharding.parallelism import Parallelism
from pretrain.sharding.rules import RULES, use_mesh
from pretrain.train.checkpoint import Checkpointing
from pretrain.train.control import LossScale
from pretrain.train.loop import Data, Trainer, Training
from pretrain.train.recovery import Recovery
from pretrain.train.spikes import Detector
from pretrain.train.statistics import Statistics
from pretrain.train.step import StepBuilder
from pretrain.train.timekeeper import Supervision

# What the trainer is made of beside sizes: a wrong value shows when the experiment is opened.
TRAINER_CONFIGS = (
    Parallelism, Optimizer, Schedule, Checkpointing, Recovery, Detector, LossScale, Statistics, Supervision,
)  # fmt: skip


def build_trainer(
    training: Training,
    specification: TransformerConfig,
    model: FunctionalModel,
    objective: Objective,
    mesh: jax.sharding.Mesh,
    data: Data,
    workdir: Path,
    params: Params | None = None,
) -> Trainer:
    """Everything a training run needs, joined but not started.

    Args:
        training, specification: sizes of the run and of the model, with the tokenizer's vocabulary.
        model, objective: what is trained on what, with the tokenizer's ids.
        mesh, data, workdir: where, from what and to what.
        params: to start from instead of fresh ones, when there is no checkpoint.
    """
    spec = objective.batch_spec(1, training.sequence_length)
    targets = spec["targets"].shape[1] if "targets" in spec else training.sequence_length
    return Trainer(
        training,
        build_step(training, specification, model, objective),
        mesh,
        data,
        workdir,
        Checkpointing(),
        count_flops(specification, training.sequence_length, targets, objective.encoded_length).training,
        params,
        Recovery(),
        Detector(),
        Statistics(),
    )


def build_step(
    training: Training, specification: TransformerConfig, model: FunctionalModel, objective: Objective
) -> StepBuilder:
    """The functions of a run to compile: optimizer, precision and what the recovery policy needs of a step."""
    axes, recovery = model.logical_axes(), Recovery()
    scales = learning_rate_scales(specification, axes)
    optimizer, rate = build_optimizer(Optimizer(), Schedule(), training.steps, axes, scales, model.untrained)
    is_half = compute_dtype(specification) == "float16"
    if is_half or recovery.policy == "skip_update":
        optimizer = skip_bad_updates(optimizer, recovery.update_limit if recovery.policy == "skip_update" else None)
    return StepBuilder(
        model,
        objective,
        optimizer,
        rate,
        training.microbatches,
        training.head_chunks,
        LossScale() if is_half else None,
        recovery.policy == "rewind" and recovery.lower_rate < 1,
        Statistics().every > 0,
    )


def check_layout(
    training: Training,
    config: TransformerConfig,
    objective: Objective,
    mesh: jax.sharding.Mesh,
    use: Parallelism | None = None,
) -> None:
    """Asks whether a mesh can hold batch and model, before anything is made.

    Where sequence, layers or experts are split, the forward pass is traced (a second or two): what cannot be
    laid out says so itself. `use` is gin's by default.

    Raises:
        UserError: it cannot, and why.
    """
    rows = training.batch_size // training.microbatches
    ways = math.prod(mesh.shape[axis] for axis in RULES["batch"])
    check(
        rows % ways == 0,
        f"BATCH_SIZE / microbatches ({rows}) must be a multiple of the {ways} ways the mesh splits a batch "
        "(data x fsdp x expert)",
    )
    if mesh.shape["context"] == mesh.shape["stage"] == mesh.shape["expert"] == 1:
        return
    sentinels = objective.sentinels
    bound = objective.bind(Vocabulary(256 + sentinels, num_sentinels=sentinels))
    model = build_model(config if config.vocab_size else config.with_vocab(256 + sentinels), objective.model_needs)
    spec = bound.batch_spec(rows, training.sequence_length)
    batch = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in spec.items()}
    with use_mesh(mesh, parallelism=use):
        jax.eval_shape(lambda params, batch: bound.forward(model.module(params), batch).hidden, model.shapes, batch)
