"""Optimizer state in fewer bits: what a code holds, that nothing is divided by nothing, and that training goes on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.optim.compact import Blocks, block_of, compact, in_blocks


@given(last=st.integers(1, 600))
def test_a_block_divides_the_axis_and_is_worth_a_scale(last):
    block = block_of((3, last))
    if block is None:
        assert all(last % size for size in range(16, min(last, 256) + 1))
    else:
        assert last % block == 0 and 16 <= block <= 256


@given(exponent=st.integers(-30, 10), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_values_come_back_within_half_a_code(exponent, seed):
    x = 10.0**exponent * np.random.default_rng(seed).normal(size=(4, 64)).astype(np.float32)
    kept = in_blocks(jnp.asarray(x), power=2)
    assert kept.codes.dtype == jnp.int8 and kept.scales.shape == (4, 1)
    greatest = np.abs(x).max(-1, keepdims=True)
    roots = np.sqrt(np.abs(np.asarray(kept.values())) / greatest), np.sqrt(np.abs(x) / greatest)
    np.testing.assert_allclose(*roots, atol=0.51 / 127)
    assert (np.sign(kept.values()) * np.sign(x) >= 0).all()


def test_a_second_moment_that_is_not_zero_stays_so():
    x = jnp.asarray([[1.0, 1e-3, 1e-12, 1e-30, 0.0] + [0.0] * 11])
    kept = in_blocks(x, power=4, round_up=True).values()
    assert (kept[0, :4] >= x[0, :4] * 0.999).all() and (kept[0, 4:] == 0).all()


@pytest.mark.parametrize("storage", ["bfloat16", "int8"])
def test_adam_learns_as_with_all_bits(storage):
    """A noisy regression: the loss falls as far, to a few per cent, and the updates point the same way."""
    rng = np.random.default_rng(0)
    x, true = jnp.asarray(rng.normal(size=(256, 64)), jnp.float32), jnp.asarray(rng.normal(size=(64, 32)), jnp.float32)
    y = x @ true + 0.1 * jnp.asarray(rng.normal(size=(256, 32)), jnp.float32)

    def loss(params, rows):
        return jnp.mean(jnp.square(x[rows] @ params["kernel"] + params["bias"] - y[rows]))

    def trained(transform):
        optimizer = optax.chain(transform, optax.scale_by_learning_rate(0.02))
        params = {"kernel": jnp.zeros((64, 32)), "bias": jnp.zeros(32)}
        state = optimizer.init(params)

        @jax.jit
        def step(params, state, rows):
            updates, state = optimizer.update(jax.grad(loss)(params, rows), state, params)
            return optax.apply_updates(params, updates), state

        for number in range(300):
            params, state = step(params, state, np.random.default_rng(number).integers(0, 256, 64))
        return float(loss(params, np.arange(256))), state

    adam = optax.scale_by_adam(b2=0.95)
    (expected, plain), (found, small) = trained(adam), trained(compact(adam, storage))
    assert found < 1.1 * expected + 0.002, (found, expected)
    size = lambda state: sum(leaf.nbytes for leaf in jax.tree.leaves(state))  # noqa: E731
    assert size(small) < {"bfloat16": 0.51, "int8": 0.3}[storage] * size(plain)


def test_all_bits_are_the_transformation_itself():
    adam = optax.scale_by_adam()
    assert compact(adam, "float32") is adam
    state = compact(adam, "int8").init({"kernel": jnp.zeros((4, 64)), "norm": jnp.zeros(7)})
    assert isinstance(state.mu["kernel"], Blocks) and not isinstance(state.mu["norm"], Blocks)
    np.testing.assert_array_equal(state.nu["kernel"].values(), 0)
