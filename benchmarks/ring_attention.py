"""Ring attention over 8 devices against blockwise attention on one, with gradients, up to 32,768 tokens.

make benchmark-ring-attention ARGS='4096 32768'
"""

import os
import sys
import time

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import jax.numpy as jnp
import numpy as np

from pretrain.models.attention import Sight, dot_product_attention
from pretrain.sharding.mesh import MeshConfig, make_mesh
from pretrain.sharding.parallelism import Parallelism
from pretrain.sharding.ring import ring_attention
from pretrain.sharding.rules import use_mesh
from pretrain.sharding.zigzag import from_zigzag, into_zigzag

HEADS, KV_HEADS, HEAD_DIM = 1, 1, 8


def blockwise(q_BLHQ, k_BSKQ, v_BSKQ, segments_BL):
    """Causal attention within segments on one device, 512 queries at a time."""
    block, places_S = 512, jnp.arange(q_BLHQ.shape[1])

    @jax.checkpoint
    def of_rows(start):
        rows = lambda x: jax.lax.dynamic_slice_in_dim(x, start, block, axis=1)  # noqa: E731
        causal_LS = (start + jnp.arange(block))[:, None] >= places_S
        mask_BLS = causal_LS & (rows(segments_BL)[:, :, None] == segments_BL[:, None])
        return dot_product_attention(rows(q_BLHQ), k_BSKQ, v_BSKQ, Sight(mask_BLS))

    y_NBLHQ = jax.lax.map(of_rows, jnp.arange(0, q_BLHQ.shape[1], block))
    return jnp.moveaxis(y_NBLHQ, 0, 1).reshape(q_BLHQ.shape)


def around(q_BLHQ, k_BSKQ, v_BSKQ, segments_BL):
    """The same through the ring."""
    q, k, v, segments = map(into_zigzag, (q_BLHQ, k_BSKQ, v_BSKQ, segments_BL))
    y = ring_attention(q, k, v, (segments, segments), causal=True, scale=HEAD_DIM**-0.5)
    return from_zigzag(y)


def compare(length: int) -> None:
    """Prints the largest differences of result and gradients, relative to the largest value."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(1, length, heads, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)]
    *operands, weights = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))
    ends = np.sort(np.random.default_rng(0).integers(1, length, 5))  # six documents, the last one padding
    segments_BL = jnp.asarray((6 - (np.arange(length)[:, None] < ends).sum(1)) % 6, jnp.int32)[None]
    found = []
    for attend, devices in ((blockwise, jax.devices()[:1]), (around, jax.devices())):

        def total(*x, attend=attend):
            y = attend(*x, segments_BL)
            return jnp.sum(y * weights), y

        begun = time.monotonic()
        with use_mesh(make_mesh(MeshConfig(fsdp=1, context=len(devices)), devices), parallelism=Parallelism("ring")):
            grads, value = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(*operands)
            found.append([np.asarray(x) for x in (value, *grads)])
        print(f"{length} tokens, {len(devices)} device(s): {time.monotonic() - begun:.1f} s", flush=True)
    for name, a, b in zip(("result", "of queries", "of keys", "of values"), *found, strict=True):
        print(f"  {name}: {np.abs(a - b).max() / np.abs(a).max():.1e}")


if __name__ == "__main__":
    for argument in sys.argv[1:] or ["32768"]:
        compare(int(argument))
