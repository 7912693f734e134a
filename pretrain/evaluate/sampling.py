"""Pictures out of noise: DDIM (Song et al. 2020) and Euler's steps along the flow, with classifier-free guidance.

Axes: B batch · N patches · P pixels of a patch · Z values of a patch as the model sees it · K steps.
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
    given_BNP: jax.Array | None = None,
    *,
    path: Path,
    predict: Prediction,
    steps: int = 50,
    sampler: Sampler = "ddim",
    guidance: float = 1.0,
) -> jax.Array:
    """Patches of pixels from -1 to 1, float32 [batch, patches, pixels]; traceable.

    Both samplers go from time 1 to 0 in even steps. DDIM takes the picture and the noise that the model sees and puts
    them together as the next time has them; Euler follows the path's slope, d/dt (signal picture + noise e), which on
    the straight path is the same step.

    Args:
        module: a `DiffusionTransformer`.
        shape: of the pictures.
        key: of the noise to begin with.
        labels_B: int32, classes.
        given_BNP: patches of the frames that films begin with, as many as `shape.given_patches`.
        path, predict: as the model was trained.
        steps: calls of the model.
        sampler: "ddim" or "euler".
        guidance: how far to go from what is said without a label to what is said with it; 1 is the model itself.
    """
    batch = labels_B.shape[0]
    first_BNZ = jnp.zeros((batch, 0, shape.values)) if given_BNP is None else given_BNP
    if module.codes is not None and given_BNP is not None:
        first_BNZ = module.codes.centred(module.codes.digits(given_BNP))
    assert first_BNZ.shape[1] == shape.given_patches, f"{shape.given} frames must be given"
    times_K = jnp.linspace(FIRST, 0.0, steps + 1)

    def begun(x_BNZ: jax.Array) -> jax.Array:
        """With the given frames in their place."""
        return x_BNZ.at[:, : shape.given_patches].set(first_BNZ)

    def step(x_BNZ: jax.Array, times: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        now, then = times
        a, b = signal_and_noise(path, now)
        picture, noise = picture_and_noise(predict, _said(module, begun(x_BNZ), now, labels_B, guidance), x_BNZ, a, b)
        picture = jnp.clip(picture, -1, 1)
        noise = (x_BNZ - a * picture) / b  # the noise that goes with the picture as it was cut
        if sampler == "euler":
            slopes = jax.jvp(lambda t: signal_and_noise(path, t), (now,), (jnp.ones_like(now),))[1]
            return x_BNZ + (then - now) * (slopes[0] * picture + slopes[1] * noise), None
        next_a, next_b = signal_and_noise(path, then)
        return next_a * picture + next_b * noise, None

    noise_BNZ = jax.random.normal(key, (batch, shape.patches, shape.values))
    x_BNZ, _ = jax.lax.scan(step, noise_BNZ, (times_K[:-1], times_K[1:]))
    x_BNZ = begun(x_BNZ)
    patches_BNP = x_BNZ if module.codes is None else module.codes.patches(module.codes.nearest(x_BNZ))
    return jnp.clip(patches_BNP, -1, 1)


def _said(module: Any, x_BNZ: jax.Array, time: jax.Array, labels_B: jax.Array, guidance: float) -> jax.Array:
    """What the model says at a time, with guidance."""
    times_B = jnp.full(labels_B.shape, time)
    with_label = module.said(module(x_BNZ, times_B, labels_B))
    if guidance == 1:
        return with_label
    without = module.said(module(x_BNZ, times_B, jnp.full_like(labels_B, module.shape.classes)))
    return without + guidance * (with_label - without)
