"""Logits in parts against whole ones: what a loss reads, and every gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG

from pretrain.core.errors import UserError
from pretrain.core.platform import traced_for
from pretrain.models.layers import look_up
from pretrain.models.parted_logits import PartedLogits, Shape
from pretrain.objectives.losses import read_logits

B, L, D, V = 2, 5, 8, 23  # no part count below divides the vocabulary


def numbers(seed=0):
    rng = np.random.default_rng(seed)
    hidden, kernel = rng.normal(size=(B, L, D)), 3 * rng.normal(size=(D, V))
    return jnp.asarray(hidden, jnp.float32), jnp.asarray(kernel, jnp.float32), jnp.asarray(rng.integers(0, V, (B, L)))


def whole(hidden, kernel, shape):
    logits = shape.multiplier * hidden @ kernel
    return logits if shape.softcap is None else shape.softcap * jnp.tanh(logits / shape.softcap)


@pytest.mark.parametrize(
    "shape", [Shape(1, V, 1.0, None), Shape(4, V, 0.5, None), Shape(7, V, 1.0, 5.0), Shape(23, V, 1.0, None)]
)
def test_readings_and_gradients_equal_those_of_whole_logits(shape):
    hidden, kernel, targets = numbers()
    weights = np.random.default_rng(1).normal(size=(3, B, L))

    def loss(logits):
        read = read_logits(logits, targets)
        return jnp.sum(weights[0] * read.log_z**2 + weights[1] * read.target + weights[2] * read.mean), read

    in_parts = lambda h, k: loss(PartedLogits(h, k, shape))  # noqa: E731
    expected = jax.value_and_grad(lambda h, k: loss(whole(h, k, shape)), argnums=(0, 1), has_aux=True)(hidden, kernel)
    found = jax.jit(jax.value_and_grad(in_parts, argnums=(0, 1), has_aux=True))(hidden, kernel)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("parts", [1, 4, 23])
def test_of_equal_logits_the_first_is_the_best(parts):
    hidden, kernel, targets = numbers()
    kernel = kernel[:, np.random.default_rng(2).integers(0, V, V)]  # some columns several times, in all parts
    expected = np.argmax(np.asarray(hidden @ kernel), axis=-1)
    shape = Shape(parts, V, 1.0, None)
    for logits in (PartedLogits(hidden, kernel, shape), hidden @ kernel):
        np.testing.assert_array_equal(read_logits(logits, targets).best, expected)
    assert (read_logits(PartedLogits(hidden, 0 * kernel, shape), targets).best == 0).all()


def test_whole_logits_are_never_made():
    hidden, kernel, targets = numbers()
    loss = lambda h, k: jnp.sum(read_logits(PartedLogits(h, k, Shape(4, V, 1.0, None)), targets).log_z)  # noqa: E731
    program = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(hidden, kernel).compile().as_text()
    assert f"f32[{B},{L},6]" in program
    assert f"f32[{B},{L},{V}]" not in program and f"f32[{B},{L},24]" not in program


def test_gradients_of_a_table_are_summed_in_its_dtype_part_by_part(monkeypatch):
    table = jnp.zeros((7, 4), jnp.float32)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 7, (2, 12)))
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(2, 12, 4)), jnp.float32)
    gradient = lambda t: jax.grad(lambda t: jnp.sum(look_up(t, tokens) * weights))(t)  # noqa: E731
    expected = np.zeros((7, 4))
    np.add.at(expected, np.asarray(tokens), np.asarray(weights))
    np.testing.assert_allclose(gradient(table), expected, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr("pretrain.models.layers.SUMMED_TOKENS", 8)
    with traced_for("tpu"):
        assert "scan" in str(jax.make_jaxpr(gradient)(table))
        np.testing.assert_allclose(gradient(table), expected, rtol=1e-5, atol=1e-6)


def test_an_extreme_logit_does_not_overflow():
    hidden, kernel, targets = numbers()
    logits = PartedLogits(1e4 * hidden, kernel, Shape(4, V, 1.0, None))
    assert np.isfinite(read_logits(logits, targets).log_z).all()


def test_the_number_of_parts_is_checked():
    with pytest.raises(UserError, match="vocab_chunks must be > 0"):
        dataclasses.replace(CONFIG, vocab_chunks=0)
