"""What steers the updates beside the optimizer, kept in the train state: the loss scale and the factor on the rate.

Gradients of float16 activations underflow; the loss is multiplied by a scale that grows while gradients stay finite and
falls back when they overflow (Micikevicius et al. 2018, section 3.2). Parameters and optimizer stay float32.
"""

import dataclasses
from typing import Any

import gin
import jax
import jax.numpy as jnp

from pretrain.core.errors import check
from pretrain.core.fields import check_fields

Control = dict[str, jax.Array]  # name -> scalar; empty where nothing is steered


@gin.configurable
@dataclasses.dataclass(frozen=True)
class LossScale:
    """Dynamic loss scaling, used where `TransformerConfig.compute_dtype` is "float16".

    Attributes:
        initial: first scale.
        growth_interval: finite steps in a row after which the scale grows.
        factor: by which it grows and falls.
        largest: it grows no further.
    """

    initial: float = 2.0**15
    growth_interval: int = 2000
    factor: float = 2.0
    largest: float = 2.0**24

    def __post_init__(self):
        check_fields(self)
        check(1 <= self.initial <= self.largest, f"LossScale: 1 <= initial <= largest, got {self.initial}")
        check(self.growth_interval >= 1, f"LossScale.growth_interval must be >= 1, got {self.growth_interval}")
        check(self.factor > 1, f"LossScale.factor must be > 1, got {self.factor}")

    def begin(self) -> Control:
        """The scale before the first step."""
        return {"loss_scale": jnp.asarray(self.initial, jnp.float32), "finite_steps": jnp.zeros((), jnp.int32)}

    def follow(self, control: Control, finite: jax.Array) -> Control:
        """The scale after a step whose gradients were finite or not."""
        steps = jnp.where(finite, control["finite_steps"] + 1, 0)
        grows = steps >= self.growth_interval
        scale = control["loss_scale"] * jnp.where(finite, jnp.where(grows, self.factor, 1), 1 / self.factor)
        return {**control, "loss_scale": jnp.clip(scale, 1, self.largest), "finite_steps": jnp.where(grows, 0, steps)}


def begin_rate() -> Control:
    """The rate factor before the first step: none."""
    return {"rate_factor": jnp.ones((), jnp.float32), "rate_until": jnp.zeros((), jnp.int32)}


def rate_factor(control: Control, step: jax.Array) -> jax.Array | float:
    """The factor on the learning rate of the update after `step` steps."""
    if "rate_factor" not in control:
        return 1.0
    return jnp.where(step < control["rate_until"], control["rate_factor"], 1.0)


def lower_rate(control: Control, factor: float, until: int) -> Control:
    """Control whose rate is lowered until a step; traceable and not."""
    new = {"rate_factor": jnp.asarray(factor, jnp.float32), "rate_until": jnp.asarray(until, jnp.int32)}
    return {**control, **new}


def scaled(tree: Any, factor: jax.Array | float) -> Any:
    """Arrays times a factor, in their own dtype; as they are where it is the number 1."""
    if isinstance(factor, float) and factor == 1.0:
        return tree
    return jax.tree.map(lambda x: (x * factor).astype(x.dtype), tree)
