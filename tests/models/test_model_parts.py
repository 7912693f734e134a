"""The parts of a Transformer against plain float64 numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpy_transformer as reference
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CONFIG

from pretrain.models.attention import Sight, attention_mask, dot_product_attention
from pretrain.models.layers import ACTIVATIONS, Norm, Projection, compute_dtype, param
from pretrain.models.mlp import Mlp
from pretrain.models.positions import rotary_tables, rotate

RNG = np.random.default_rng(0)
HEADS_OF_8 = dataclasses.replace(CONFIG, head_dim=8, rope_theta=10_000.0)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def weights(module: nnx.Module) -> dict:
    """Random parameters put into a module, and the same as float64."""
    graph, state = nnx.split(module)
    values = jax.tree.map(lambda x: jnp.asarray(normal(*x.shape)), nnx.to_pure_dict(state))
    nnx.replace_by_pure_dict(state, values)
    return nnx.merge(graph, state), reference.as_float64(values)


@pytest.mark.parametrize("kind", ["rmsnorm", "layernorm"])
@pytest.mark.parametrize("use_bias", [False, True])
def test_norm_is_the_formula(kind, use_bias):
    config = dataclasses.replace(CONFIG, norm=kind, use_bias=use_bias, norm_epsilon=1e-2)
    module, exact = weights(Norm(24, config))
    x = 3 + normal(2, 5, 24)
    np.testing.assert_allclose(module(x), reference.norm(x.astype(np.float64), exact, kind, 1e-2), rtol=2e-5, atol=2e-5)
    assert ("bias" in exact) == (kind == "layernorm" and use_bias)


def test_norm_works_in_float32_when_its_input_is_bfloat16():
    module, exact = weights(Norm(512, CONFIG))
    x = jnp.asarray(100 * normal(4, 512), jnp.bfloat16)
    y = module(x)
    assert y.dtype == jnp.bfloat16
    expected = reference.norm(np.asarray(x, np.float64), exact, "rmsnorm", CONFIG.norm_epsilon)
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=2**-8, atol=1e-6)  # one rounding, at the end


@pytest.mark.parametrize("use_bias", [False, True])
def test_projection_contracts_its_last_axes(use_bias):
    config = dataclasses.replace(CONFIG, use_bias=use_bias)
    module, exact = weights(Projection((4, 6), (5,), ("heads", None, "embed"), config, rngs=nnx.Rngs(0)))
    x = normal(2, 3, 4, 6)
    np.testing.assert_allclose(module(x), reference.project(x, exact, 2), rtol=2e-5, atol=2e-5)


def test_a_parameter_needs_one_name_per_axis():
    with pytest.raises(AssertionError):
        param(jnp.zeros((2, 3)), ("embed",))


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_mlp_is_the_formula(activation):
    config = dataclasses.replace(CONFIG, activation=activation, use_bias=True)
    module, exact = weights(Mlp(config, rngs=nnx.Rngs(0)))
    assert ("gate" in exact) == activation.endswith("glu")
    x = normal(2, 3, config.embed_dim) / 3
    hidden = reference.project(x, exact["up"])
    act = reference.ACTIVATIONS[activation]
    hidden = act(reference.project(x, exact["gate"])) * hidden if "gate" in exact else act(hidden)
    np.testing.assert_allclose(module(x), reference.project(hidden, exact["down"]), rtol=2e-4, atol=2e-4)


def test_rotary_positions_are_complex_rotations():
    x, positions = normal(2, 7, 3, 8), RNG.integers(0, 5000, (2, 7))
    y = rotate(x, rotary_tables(jnp.asarray(positions), HEADS_OF_8))
    np.testing.assert_allclose(y, reference.rotate(x.astype(np.float64), positions, 10_000.0), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(jnp.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)


@given(shift=st.integers(0, 300), distance=st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_rotary_scores_depend_on_the_distance_only(shift, distance):
    q, k = normal(1, 1, 1, 8), normal(1, 1, 1, 8)

    def score(at):
        turn = lambda x, p: rotate(x, rotary_tables(jnp.full((1, 1), p), HEADS_OF_8))  # noqa: E731
        return float(jnp.vdot(turn(q, at + distance), turn(k, at)))

    np.testing.assert_allclose(score(shift), score(0), atol=5e-4)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [9, 150])  # in one block of queries, and in several of which the last is shorter
def test_attention_is_the_formula(kv_heads, causal, length):
    q, k, v = normal(2, length, 4, 6), normal(2, length, kv_heads, 6), normal(2, length, kv_heads, 6)
    segments = np.stack([np.arange(length) // (length // 2 + 1) + 1, np.arange(length) < length - 3])
    mask = attention_mask(jnp.asarray(segments), causal=causal)
    expected = reference.attention(q.astype(np.float64), k, v, np.asarray(mask))
    y = jax.jit(dot_product_attention)(q, k, v, Sight(mask, causal=causal))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_causal_attention_leaves_the_keys_beyond_a_block_out():
    q = jax.ShapeDtypeStruct((1, 512, 2, 8), np.float32)
    mask = jax.ShapeDtypeStruct((1, 512, 512), bool)

    def scores(causal: bool) -> int:
        """Elements of all score arrays, the operands of the softmaxes."""
        program = jax.make_jaxpr(dot_product_attention)(q, q, q, Sight(mask, causal=causal))
        return sum(equation.invars[0].aval.size for equation in program.eqns if equation.primitive.name == "exp")

    assert scores(causal=False) == 2 * 512 * 512
    assert scores(causal=True) <= 0.6 * scores(causal=False)


def test_attention_survives_large_scores_and_rows_with_nothing_to_see():
    q, k, v = 1e4 * normal(1, 4, 2, 8), normal(1, 4, 2, 8), normal(1, 4, 2, 8)
    mask = np.tril(np.ones((1, 4, 4), bool))
    mask[0, 2] = False
    y = np.asarray(dot_product_attention(q, k, v, Sight(jnp.asarray(mask))))
    assert np.isfinite(y).all()
    np.testing.assert_allclose(y[0, 2], v[0].mean(0), rtol=1e-5, atol=1e-6)


@given(data=st.data(), causal=st.booleans())
@settings(max_examples=30, deadline=None)
def test_mask_joins_only_positions_of_one_segment(data, causal):
    segments = np.array(
        data.draw(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=2, max_size=2))
    )
    mask = np.asarray(attention_mask(jnp.asarray(segments), causal=causal))
    for b, i, j in np.ndindex(mask.shape):
        assert mask[b, i, j] == (segments[b, i] == segments[b, j] and (j <= i or not causal))


def test_compute_dtype_follows_the_hardware_unless_it_is_given(monkeypatch):
    auto = dataclasses.replace(CONFIG, compute_dtype="auto")
    for backend, expected in (("cpu", "float32"), ("gpu", "bfloat16"), ("tpu", "bfloat16")):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        assert compute_dtype(auto) == expected
        assert compute_dtype(CONFIG) == "float32"
