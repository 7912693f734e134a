"""TPU flash attention against plain attention: values and gradients, run by the kernels' interpreter."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import CONFIG, abstract_mesh

from pretrain.core.platform import platform, traced_for
from pretrain.models.attention import Attention, Sight, attention_mask, dot_product_attention
from pretrain.models.layers import compute_dtype
from pretrain.models.splash import block_for, splash_attention
from pretrain.sharding.parallelism import Parallelism
from pretrain.sharding.rules import use_mesh

LENGTH, HEADS, KV_HEADS, SIZE = 256, 4, 2, 64


def inputs():
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, LENGTH, n, SIZE)), jnp.float32) for n in (HEADS, KV_HEADS, KV_HEADS))
    segments = jnp.asarray(np.repeat([[1, 2, 0], [1, 1, 2]], [100, 120, 36], axis=1), jnp.int32)
    return q, k, v, segments


@pytest.mark.parametrize("causal", [True, False])
def test_values_and_gradients_equal_plain_attention(causal):
    q, k, v, segments = inputs()
    weights = jnp.asarray(np.random.default_rng(1).normal(size=q.shape), jnp.float32) * (segments > 0)[..., None, None]

    def fused(q, k, v):
        y = splash_attention(q, k, v, (segments, segments), causal=causal, scale=0.1, softcap=20.0, interpret=True)
        return jnp.sum(weights * y)

    def plain(q, k, v):
        sight = Sight(attention_mask(segments, causal=causal), causal=causal)
        return jnp.sum(weights * dot_product_attention(q, k, v, sight, scale=0.1, softcap=20.0))

    found = jax.jit(jax.value_and_grad(fused, argnums=(0, 1, 2)))(q, k, v)
    expected = jax.jit(jax.value_and_grad(plain, argnums=(0, 1, 2)))(q, k, v)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-4)
    for a, b in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())


@pytest.mark.parametrize(("length", "block"), [(8192, 512), (384, 128), (256, 256), (100, None)])
def test_a_block_divides_the_length(length, block):
    assert block_for(length) == block


def test_kernels_are_chosen_for_the_platform_that_is_traced_for():
    attention = lambda: Attention(dataclasses.replace(CONFIG, compute_dtype="bfloat16"), rngs=nnx.Rngs(0))  # noqa: E731
    assert platform() == "cpu" and attention().implementation == "xla"
    with traced_for("tpu"):
        assert platform() == "tpu" and attention().implementation == "splash"
        assert compute_dtype(dataclasses.replace(CONFIG, compute_dtype="auto")) == jnp.bfloat16
    assert platform() == "cpu"


def test_what_the_kernels_cannot_do_goes_another_way():
    """A length that no block divides, sinks, biases, and masks beyond segments: the plain path, hence an answer."""
    q, k, v, segments = inputs()
    q, k, v, segments = q[:, :100], k[:, :100], v[:, :100], segments[:, :100]
    sight = Sight(attention_mask(segments, causal=True), segments=(segments, segments), causal=True)
    fused = dot_product_attention(q, k, v, sight, implementation="splash")
    np.testing.assert_array_equal(fused, dot_product_attention(q, k, v, sight))


@pytest.mark.parametrize(
    ("context", "use", "is_fused"), [(2, "all_gather", True), (4, "all_gather", False), (4, "ulysses", True)]
)
def test_a_block_divides_what_one_device_has(context, use, is_fused):
    """Of 256 queries: 128 or 64 of them, which no block divides; or all, of fewer heads."""
    q, k, v, segments = inputs()
    sight = Sight(attention_mask(segments, causal=True), segments=(segments, segments), causal=True)
    mesh = abstract_mesh(context=context)
    attend = functools.partial(dot_product_attention, sight=sight, implementation="splash")
    with use_mesh(mesh, parallelism=Parallelism(use)):
        program = jax.make_jaxpr(attend)(q, k, v)
    assert ("pallas_call" in str(program)) == is_fused
