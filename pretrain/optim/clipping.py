"""Gradient clipping that follows the gradient's own history, and updates that are left out.

AdaGC (Wang et al., arXiv 2502.11034) bounds each tensor's norm by a running mean of its clipped norms. ZClip (Kumar
et al., arXiv 2504.02507) bounds the global norm by its z-score against a running mean and variance. Both are optax
transformations whose state is a few scalars (for AdaGC, one a tensor), kept in checkpoints with the optimizer's.
"""

import dataclasses
from typing import Any, NamedTuple

import gin
import jax
import jax.numpy as jnp
import optax

from pretrain.core.errors import check
from pretrain.core.fields import check_fields

EPSILON = 1e-12


@gin.configurable
@dataclasses.dataclass(frozen=True)
class AdaGC:
    """Clips each tensor at `relative` times the running mean of its clipped norms.

    Attributes:
        relative: bound over the running mean (the paper's lambda_rel).
        decay: of the running mean (beta).
        warmup: steps that are clipped by the global norm instead, while the least norms are noted.
        absolute: bound of the global norm in these steps (lambda_abs).
    """

    relative: float = 1.05
    decay: float = 0.98
    warmup: int = 100
    absolute: float = 1.0

    def __post_init__(self):
        check_fields(self)
        _check(self, ("relative", "absolute"))

    def transform(self) -> optax.GradientTransformation:
        """The optax transformation."""

        def init(params):
            return AdaGCState(jnp.zeros((), jnp.int32), jax.tree.map(lambda _: jnp.asarray(jnp.inf), params))

        def update(grads, state, params=None):
            del params
            norms = jax.tree.map(_norm, grads)
            early = state.count < self.warmup
            whole = jnp.minimum(self.absolute / (optax.tree.norm(grads) + EPSILON), 1)

            def factor(norm, bound):
                return jnp.where(early, whole, jnp.minimum(self.relative * bound / (norm + EPSILON), 1))

            def follow(bound, norm):
                mean = self.decay * bound + (1 - self.decay) * norm
                return jnp.where(jnp.isfinite(norm), jnp.where(early, jnp.minimum(bound, norm), mean), bound)

            factors = jax.tree.map(factor, norms, state.bounds)
            bounds = jax.tree.map(lambda b, n, f: follow(b, n * f), state.bounds, norms, factors)
            clipped = jax.tree.map(lambda grad, f: (grad * f).astype(grad.dtype), grads, factors)
            return clipped, AdaGCState(state.count + 1, bounds)

        return optax.GradientTransformation(init, update)


class AdaGCState(NamedTuple):
    """Steps done, and each tensor's running mean of norms."""

    count: jax.Array
    bounds: Any


@gin.configurable
@dataclasses.dataclass(frozen=True)
class ZClip:
    """Clips the global norm where it lies too many standard deviations above its running mean.

    A norm of z-score z beyond the threshold t becomes mean + t^2 / z standard deviations: the further out, the less.

    Attributes:
        threshold: z-score from which on to clip.
        decay: of the running mean and variance (alpha).
        warmup: steps that are only looked at; mean and variance begin as those of their norms.
    """

    threshold: float = 2.5
    decay: float = 0.97
    warmup: int = 25

    def __post_init__(self):
        check_fields(self)
        _check(self, ("threshold",))
        check(self.warmup >= 2, f"ZClip.warmup must be >= 2 steps, got {self.warmup}")

    def transform(self) -> optax.GradientTransformation:
        """The optax transformation."""

        def init(params):
            del params
            return ZClipState(jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.zeros(()))

        def update(grads, state, params=None):
            del params
            norm, count = optax.tree.norm(grads), state.count
            early = count < self.warmup
            deviation = jnp.sqrt(state.variance) + EPSILON
            z = (norm - state.mean) / deviation
            high = ~early & (z > self.threshold)
            clipped = jnp.where(high, state.mean + self.threshold**2 / jnp.maximum(z, EPSILON) * deviation, norm)
            weight = jnp.where(early, 1 / (count + 1), 1 - self.decay)  # the plain mean of the first norms
            mean = state.mean + weight * (clipped - state.mean)
            early_variance = state.variance + weight * ((clipped - state.mean) * (clipped - mean) - state.variance)
            variance = self.decay * state.variance + (1 - self.decay) * jnp.square(clipped - mean)
            new = ZClipState(count + 1, mean, jnp.where(early, early_variance, variance))
            new = jax.tree.map(lambda now, before: jnp.where(jnp.isfinite(norm), now, before), new, state)
            factor = jnp.where(high, clipped / (norm + EPSILON), 1)
            return jax.tree.map(lambda grad: (grad * factor).astype(grad.dtype), grads), new

        return optax.GradientTransformation(init, update)


class ZClipState(NamedTuple):
    """Steps done, and the running mean and variance of the global norm."""

    count: jax.Array
    mean: jax.Array
    variance: jax.Array


class SkipState(NamedTuple):
    """State of `skip_bad_updates`.

    Attributes:
        inner: of the optimizer.
        skipped: int32, updates left out so far.
        count: int32, updates made so far.
        mean: running mean of the gradient norm.
    """

    inner: Any
    skipped: jax.Array
    count: jax.Array
    mean: jax.Array


def skip_bad_updates(
    optimizer: optax.GradientTransformation, limit: float | None = None, *, decay: float = 0.98, warmup: int = 20
) -> optax.GradientTransformation:
    """An optimizer whose update is zero, and its state untouched, where the gradient is not finite or too large.

    Args:
        optimizer: what makes the updates.
        limit: largest gradient norm over its running mean; None for any that is finite.
        decay: of the running mean, which a norm beyond the limit enters at the limit.
        warmup: updates before a norm can be too large.
    """

    def init(params):
        return SkipState(optimizer.init(params), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), jnp.zeros(()))

    def update(grads, state, params=None):
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(norm)
        most = jnp.inf if limit is None else jnp.where(state.count < warmup, jnp.inf, limit * state.mean)
        good = finite & (norm <= most)
        updates, inner = optimizer.update(grads, state.inner, params)
        updates = jax.tree.map(lambda u: jnp.where(good, u, jnp.zeros_like(u)), updates)
        inner = jax.tree.map(lambda new, old: jnp.where(good, new, old), inner, state.inner)
        weight = jnp.maximum(1 - decay, 1 / (state.count + 1))
        mean = jnp.where(finite, state.mean + weight * (jnp.minimum(norm, most) - state.mean), state.mean)
        return updates, SkipState(inner, state.skipped + ~good, state.count + good, mean)

    return optax.GradientTransformation(init, update)


def _norm(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32))))


def _check(config: Any, positive: tuple[str, ...]) -> None:
    check_fields(config)
    kind = type(config).__name__
    for name in positive:
        check(getattr(config, name) > 0, f"{kind}.{name} must be > 0, got {getattr(config, name)}")
    check(0 <= config.decay < 1, f"{kind}.decay must be in [0, 1), got {config.decay}")
    check(config.warmup >= 1, f"{kind}.warmup must be >= 1 step, got {config.warmup}")
