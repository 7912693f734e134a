"""Pictures out of noise: DDIM (Song et al. 2020) and Euler's steps along the flow, with classifier-free guidance.

Axes: B batch · N patches · P values of a patch · K steps.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from pretrain.core.diffusion import Path, PictureShape, Prediction, picture_and_noise, signal_and_noise

Sampler = Literal["ddim", "euler"]
FIRST = 0.999  # the time to begin at; at 1 the cosine path has no signal left to divide by


def sample(
    module: Any,
    shape: PictureShape,
    key: jax.Array,
    labels_B: jax.Array,
    *,
    path: Path,
    predict: Prediction,
    steps: int = 50,
    sampler: Sampler = "ddim",
    guidance: float = 1.0,
) -> jax.Array:
    """Patches from -1 to 1, float32 [batch, patches, values]; traceable.

    Both samplers go from time 1 to 0 in even steps. DDIM takes the picture and the noise that the model sees and puts
    them together as the next time has them; Euler follows the path's slope, d/dt (signal picture + noise e), which on
    the straight path is the same step.

    Args:
        module: a `DiffusionTransformer`.
        shape: of the pictures.
        key: of the noise to begin with.
        labels_B: int32, classes.
        path, predict: as the model was trained.
        steps: calls of the model.
        sampler: "ddim" or "euler".
        guidance: how far to go from what is said without a label to what is said with it; 1 is the model itself.
    """
    batch, none_B = labels_B.shape[0], jnp.full_like(labels_B, shape.classes)
    rows, columns = shape.grid
    x_BNP = jax.random.normal(key, (batch, rows * columns, shape.patch_values))
    times_K = jnp.linspace(FIRST, 0.0, steps + 1)

    def said(x_BNP: jax.Array, time: jax.Array) -> jax.Array:
        times_B = jnp.full((batch,), time)
        with_label = module.said(module(x_BNP, times_B, labels_B))
        if guidance == 1:
            return with_label
        without = module.said(module(x_BNP, times_B, none_B))
        return without + guidance * (with_label - without)

    def step(x_BNP: jax.Array, times: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        now, then = times
        a, b = signal_and_noise(path, now)
        picture, noise = picture_and_noise(predict, said(x_BNP, now), x_BNP, a, b)
        picture = jnp.clip(picture, -1, 1)
        noise = (x_BNP - a * picture) / b  # the noise that goes with the picture as it was cut
        if sampler == "euler":
            slopes = jax.jvp(lambda t: signal_and_noise(path, t), (now,), (jnp.ones_like(now),))[1]
            return x_BNP + (then - now) * (slopes[0] * picture + slopes[1] * noise), None
        next_a, next_b = signal_and_noise(path, then)
        return next_a * picture + next_b * noise, None

    x_BNP, _ = jax.lax.scan(step, x_BNP, (times_K[:-1], times_K[1:]))
    return jnp.clip(x_BNP, -1, 1)
