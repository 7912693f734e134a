"""Optimizers from optax, with clipping and weight decay on matrices only."""

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any, Literal

import gin
import jax
import optax

from pretrain.core.errors import check
from pretrain.core.fields import check_fields
from pretrain.core.trees import map_named, named_leaves
from pretrain.optim.averaging import keep_average
from pretrain.optim.clipping import AdaGC, ZClip
from pretrain.optim.compact import Storage, compact
from pretrain.optim.schedules import Schedule


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Hyperparameters of the optimizer.

    Attributes:
        kind: "adamw" (Loshchilov and Hutter 2019).
        b1, b2, epsilon: Adam's decay rates and denominator offset.
        weight_decay: decoupled decay times the learning rate, on parameters of two or more logical axes.
        clip_norm: largest global gradient norm; None turns clipping off (Pascanu et al. 2013).
        state: how moments are kept between updates: "float32", "bfloat16", or "int8", block-wise (see `compact`).
        clipping: `@AdaGC()` or `@ZClip()` in place of `clip_norm`; None for `clip_norm`.
        average: decay of an average of the weights, kept beside them in the state and in checkpoints (0.999 to 0.9999
            for diffusion); None keeps none.
        frozen: beginnings of the names of parameters that stay as they are, e.g. ("image/",).
    """

    kind: Literal["adamw"] = "adamw"
    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float | None = 1.0
    clipping: AdaGC | ZClip | None = None
    average: float | None = None
    state: Storage = "float32"
    frozen: Sequence[str] = ()

    def __post_init__(self):
        check_fields(self)
        for name in ("b1", "b2"):
            check(0 <= getattr(self, name) < 1, f"Optimizer.{name} must be in [0, 1), got {getattr(self, name)}")
        check(self.epsilon > 0, f"Optimizer.epsilon must be > 0, got {self.epsilon}")
        check(self.weight_decay >= 0, f"Optimizer.weight_decay must be >= 0, got {self.weight_decay}")
        check(self.average is None or 0 < self.average < 1,
              f"Optimizer.average must be above 0 and below 1, got {self.average}")  # fmt: skip
        check(self.clip_norm is None or self.clip_norm > 0, f"Optimizer.clip_norm must be > 0, got {self.clip_norm}")


def is_matrix(axes: tuple[str | None, ...]) -> bool:
    """Whether a parameter with these logical axes is decayed: not norms, not biases."""
    return len([axis for axis in axes if axis != "layers"]) >= 2


def build_optimizer(
    config: Optimizer, schedule: Schedule, total_steps: int, logical_axes: Any, rate_scales: Any | None = None,
    untrained: Sequence[str] = (),
):  # fmt: skip
    """The gradient transformation and its learning-rate function.

    Args:
        config, schedule: hyperparameters.
        total_steps: length of the run, for the schedule.
        logical_axes: tree of axis names of the parameters, which decides what is decayed.
        rate_scales: tree of factors on the learning rate, of the gradient's part of an update only; None for all 1.
        untrained: beginnings of the names of parameters that have no gradient, beside `Optimizer.frozen`.
    """
    learning_rate = schedule.build(total_steps)
    decayed = jax.tree.map(is_matrix, logical_axes, is_leaf=lambda node: isinstance(node, tuple))
    adam = compact(optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.epsilon), config.state)
    for name in config.frozen:
        check(any(each.startswith(name) for each in named_leaves(decayed)),
              f"Optimizer.frozen: no parameter's name begins with {name!r}")  # fmt: skip
    still = map_named(lambda name, _: name.startswith((*config.frozen, *untrained)), decayed)
    if any(jax.tree.leaves(still)):  # what stays as it is needs no moments
        adam = optax.masked(adam, jax.tree.map(operator.not_, still))
    transforms = [
        adam,
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(learning_rate),
    ]
    if rate_scales is not None:
        scale = lambda updates, params: jax.tree.map(lambda update, factor: update * factor, updates, rate_scales)  # noqa: E731
        transforms.insert(1, optax.stateless(scale))
    if config.clipping is not None:
        transforms.insert(0, config.clipping.transform())
    elif config.clip_norm is not None:
        transforms.insert(0, optax.clip_by_global_norm(config.clip_norm))
    if any(jax.tree.leaves(still)):
        transforms.append(optax.masked(optax.set_to_zero(), still))
    if config.average is not None:
        transforms.append(keep_average(config.average))
    return optax.chain(*transforms), learning_rate
