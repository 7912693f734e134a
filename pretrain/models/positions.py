"""How a Transformer knows where a token stands: rotary tables, sinusoids, and biases by distance.

Documents in a packed row are contiguous, so the distance between two tokens of a document is their distance in the row.

Axes: B batch · L queries · S keys · D embed · H heads · Q head dimension.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pretrain.models.config import RopeScaling, TransformerConfig
from pretrain.models.layers import param

Rotary = tuple[jax.Array, jax.Array]


def rotary_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> tuple[np.ndarray, float]:
    """Angle a position turns each pair of dimensions by, float64 [head_dim / 2], and a factor on cosines and sines."""
    pairs = np.arange(0, head_dim, 2)
    if scaling is None:
        return theta ** (-pairs / head_dim), 1.0
    if scaling.kind == "ntk":
        return (theta * scaling.factor ** (head_dim / (head_dim - 2))) ** (-pairs / head_dim), 1.0
    frequency = theta ** (-pairs / head_dim)
    if scaling.kind == "linear":
        return frequency / scaling.factor, 1.0
    if scaling.kind == "llama3":
        rotations = scaling.original_length * frequency / (2 * math.pi)
        kept = np.clip((rotations - scaling.slow) / (scaling.fast - scaling.slow), 0, 1)
        return frequency * (kept + (1 - kept) / scaling.factor), 1.0

    def pair_of(rotations: float) -> float:
        return head_dim * math.log(scaling.original_length / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(math.floor(pair_of(scaling.fast)), 0), min(math.ceil(pair_of(scaling.slow)), head_dim - 1)
    kept = 1 - np.clip((np.arange(head_dim // 2) - low) / max(high - low, 1e-3), 0, 1)
    return frequency * (kept + (1 - kept) / scaling.factor), 0.1 * math.log(scaling.factor) + 1


def rotary_tables(positions_BL: jax.Array, config: TransformerConfig) -> Rotary:
    """Cosines and sines of rotary positions (Su et al. 2021), each [batch, length, head_dim / 2], float32."""
    frequency, scale = rotary_frequencies(config.query_dim, config.rope_theta, config.rope_scaling)
    angle = positions_BL[..., None].astype(jnp.float32) * jnp.asarray(frequency, jnp.float32)
    return scale * jnp.cos(angle), scale * jnp.sin(angle)


def rotate(x_BLHQ: jax.Array, tables: Rotary) -> jax.Array:
    """Rotates pairs (i, i + head_dim / 2) of each head by its position's angle."""
    cos, sin = (t[:, :, None, :] for t in tables)
    left, right = (half.astype(jnp.float32) for half in jnp.split(x_BLHQ, 2, axis=-1))
    return jnp.concatenate([left * cos - right * sin, right * cos + left * sin], -1).astype(x_BLHQ.dtype)


def sinusoids(positions_BL: jax.Array, embed_dim: int, *, closed: bool = False) -> jax.Array:
    """Sines, then cosines, of wavelengths from 2 pi to 10,000 * 2 pi (Vaswani et al. 2017, section 3.5), float32.

    With `closed` the last wave has that longest length, which it otherwise falls short of by one step (Whisper).
    """
    frequency = 10_000.0 ** (-np.arange(0, embed_dim, 2) / (embed_dim - 2 * closed))
    angle = positions_BL[..., None].astype(jnp.float32) * jnp.asarray(frequency, jnp.float32)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1)[..., :embed_dim]


def alibi_slopes(heads: int) -> np.ndarray:
    """Slope of each head, float32 [heads] (Press et al. 2021): a geometric series, and every other one of a longer."""
    whole = 2 ** math.floor(math.log2(heads))
    slopes = 2.0 ** (-8 * np.arange(1, whole + 1) / whole)
    more = 2.0 ** (-4 * np.arange(1, 2 * (heads - whole) + 1, 2) / whole)
    return np.concatenate([slopes, more]).astype(np.float32)


def relative_buckets(distance_LS: jax.Array, buckets: int, farthest: int, *, two_sided: bool) -> jax.Array:
    """T5's bucket of each distance key - query (Raffel et al. 2019, section 2.1): exact nearby, then by logarithm."""
    found = jnp.zeros_like(distance_LS)
    if two_sided:
        buckets //= 2
        found = jnp.where(distance_LS > 0, buckets, 0)
        size = jnp.abs(distance_LS)
    else:
        size = jnp.maximum(-distance_LS, 0)
    exact = buckets // 2
    far = jnp.log(jnp.maximum(size, 1) / exact) / math.log(farthest / exact) * (buckets - exact)
    return found + jnp.where(size < exact, size, jnp.minimum(exact + far.astype(jnp.int32), buckets - 1))


class DistanceBias(nnx.Module):
    """What is added to attention scores by distance: T5's learned buckets, or ALiBi's slopes."""

    def __init__(self, config: TransformerConfig, *, two_sided: bool, rngs: nnx.Rngs):
        self.config, self.two_sided = config, two_sided
        shape, scale = (config.relative_buckets, config.num_heads), config.init_scale or 1 / math.sqrt(config.embed_dim)
        self.table = (
            param(scale * jax.random.normal(rngs.params(), shape, config.param_dtype), (None, "heads"))
            if config.positions == "relative"
            else None
        )

    def __call__(self, queries_L: jax.Array, keys_S: jax.Array) -> jax.Array:
        """Bias [1, heads, queries, keys], float32, for places in the row."""
        distance_LS = keys_S[None, :] - queries_L[:, None]
        if self.table is None:
            away_LS = jnp.abs(distance_LS).astype(jnp.float32)
            return -jnp.asarray(alibi_slopes(self.config.num_heads))[None, :, None, None] * away_LS
        c = self.config
        bucket_LS = relative_buckets(distance_LS, c.relative_buckets, c.relative_distance, two_sided=self.two_sided)
        return self.table[...].astype(jnp.float32)[bucket_LS].transpose(2, 0, 1)[None]
