"""Mixtures of experts: what one expert, enough room, padding, losses and balance must do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiny import CONFIG, model, packed_rows, params

from pretrain.core.errors import UserError
from pretrain.models.config import Experts
from pretrain.models.experts import Mixture, _in_blocks, _ragged, moved_bias
from pretrain.models.mlp import Mlp
from pretrain.objectives.causal import Causal
from pretrain.train.state import TrainState
from pretrain.train.step import StepBuilder, combine

VALID = jnp.asarray(np.arange(12)[None] < np.array([[12], [7]]))


def mixture(**changes) -> Mixture:
    config = dataclasses.replace(CONFIG, experts=Experts(**{"num_experts": 4, "top_k": 2, **changes}))
    return Mixture(config, rngs=nnx.Rngs(0))


def inputs(seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (2, 12, CONFIG.embed_dim))


@pytest.mark.parametrize("capacity", [None, 1.0])
def test_one_expert_is_the_dense_layer(capacity):
    one, dense = mixture(num_experts=1, top_k=1, capacity_factor=capacity), Mlp(CONFIG, rngs=nnx.Rngs(1))
    for name in ("up", "gate", "down"):
        getattr(one, name)[...] = getattr(dense, name).kernel[...][None]
    valid = jnp.ones_like(VALID)
    np.testing.assert_allclose(one(inputs(), valid)[0], dense(inputs()), atol=1e-6)


def test_dropless_drops_nothing_and_room_for_all_gives_the_same():
    y, routing = mixture()(inputs(), VALID)
    assert routing.dropped == 0 and routing.load_E.sum() == 2 * VALID.sum()
    roomy, with_room = mixture(capacity_factor=4.0)(inputs(), VALID)
    assert with_room.dropped == 0
    np.testing.assert_allclose(jnp.where(VALID[..., None], roomy - y, 0), 0, atol=1e-5)


@pytest.mark.parametrize("sizes", [[0, 300, 1, 128], [129, 0, 0, 0], [1, 1, 1, 1]])
def test_blocks_are_ragged_products(sizes):
    experts = np.repeat(np.arange(4), sizes)
    x, kernel = (
        jax.random.normal(jax.random.key(seed), shape) for seed, shape in ((0, (len(experts), 8)), (1, (4, 8, 5)))
    )

    def total(x, kernel, run):
        mlp = lambda kernels, x, product: jnp.tanh(product(x, kernels[0]))  # noqa: E731
        y = run(mlp, [kernel], x, jnp.asarray(experts))
        return jnp.sum(y * jnp.cos(jnp.arange(y.size).reshape(y.shape))), y

    both = [jax.grad(total, argnums=(0, 1), has_aux=True)(x, kernel, run) for run in (_in_blocks, _ragged)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), *both)


def test_what_finds_no_room_is_dropped_and_counted():
    """All tokens want one expert, which has room for three of a row: first come, first served."""
    layer = mixture(top_k=1, capacity_factor=1.0, normalize=False)
    layer.router[...] = jnp.zeros_like(layer.router[...]).at[0, 2].set(100.0)
    x = inputs().at[..., 0].set(1.0)
    y, routing = layer(x, VALID)
    assert routing.dropped == (12 - 3) + (7 - 3)
    assert (y[:, 3:] == 0).all() and (jnp.abs(y[:, :3]).max(-1) > 0).all()
    assert routing.load_E.tolist() == [0, 0, 19, 0]


@pytest.mark.parametrize("capacity", [None, 1.0])
def test_padding_takes_no_room_and_is_not_counted(capacity):
    layer = mixture(capacity_factor=capacity)
    y, routing = layer(inputs(), VALID)
    noisy = jnp.where(VALID[..., None], inputs(), 7 * inputs(1))
    other, other_routing = layer(noisy, VALID)
    np.testing.assert_allclose(jnp.where(VALID[..., None], y - other, 0), 0, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), routing, other_routing)


def test_balance_loss_is_one_where_load_is_even_and_more_elsewhere():
    layer = mixture(top_k=1)
    layer.router[...] = jnp.zeros_like(layer.router[...]).at[:4, :4].set(50 * jnp.eye(4))
    even = jnp.zeros((1, 12, CONFIG.embed_dim)).at[0, jnp.arange(12), jnp.arange(12) % 4].set(1.0)
    uneven = jnp.zeros((1, 12, CONFIG.embed_dim)).at[0, :, 0].set(1.0)
    valid = jnp.ones((1, 12), bool)
    np.testing.assert_allclose(layer(even, valid)[1].balance, 1, rtol=1e-5)
    np.testing.assert_allclose(layer(uneven, valid)[1].balance, 4, rtol=1e-5)


def builder(experts: Experts, **changes) -> tuple[StepBuilder, dict]:
    config = dataclasses.replace(CONFIG, experts=experts)
    rate = lambda step: 1e-2  # noqa: E731
    return StepBuilder(model(config), Causal(), optax.adam(1e-2), rate, **changes), params(config)


def batch() -> dict[str, np.ndarray]:
    return Causal().finish(packed_rows([[16], [5, 7], [3], [2, 9, 4]], 16), np.random.default_rng(0))


@pytest.mark.parametrize("capacity", [None, 1.0])
def test_accumulation_and_chunks_keep_router_losses_exact(capacity):
    experts = Experts(4, 2, balance=0.1, router_z=0.01, capacity_factor=capacity)
    results = []
    for changes in ({}, {"microbatches": 4}, {"head_chunks": 4}):
        step, values = builder(experts, **changes)
        grads, (terms, metrics) = jax.jit(step.gradients)(values, batch())
        weights = {name: term.weight for name, term in terms.items()}
        assert {"router_balance", "router_z", "cross_entropy"} == terms.keys()
        results.append((combine(terms, weights), metrics["expert_load"], grads))
    for other in results[1:]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5 * np.abs(b).max() + 1e-8),
            other, results[0],
        )  # fmt: skip


def test_a_bias_moves_towards_experts_with_less_than_their_share():
    experts = Experts(4, 2, bias_rate=0.1)
    moved = moved_bias(jnp.zeros((1, 4)), jnp.array([[4.0, 2.0, 0.0, 2.0]]), experts)
    np.testing.assert_allclose(moved, [[-0.1, 0, 0.1, 0]])


def test_a_step_moves_the_bias_and_no_gradient_does():
    experts = Experts(4, 2, bias_rate=0.05, balance=0.0)
    step, values = builder(experts)
    state = TrainState(jnp.int32(0), values, step.optimizer.init(values), jax.random.key_data(jax.random.key(0)))
    after, metrics = jax.jit(step.train)(state, batch())
    before_bias, bias = (s.params["decoder"]["blocks"]["mlp"]["bias"] for s in (state, after))
    moves = np.round(np.asarray((bias - before_bias) / 0.05), 3)
    assert set(np.unique(moves)) <= {-1.0, 0.0, 1.0} and np.abs(moves).max() == 1
    _, (_, counted) = jax.jit(step.gradients)(values, batch())
    load, even = counted["expert_load"]
    np.testing.assert_array_equal(moves, np.sign(even - load))
    assert metrics["expert_load_min"] < 1 < metrics["expert_load_max"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"top_k": 9}, "top_k"), ({"capacity_factor": 0.0}, "capacity_factor"), ({"balance": -1.0}, "balance"),
     ({"dense_layers": -1}, "dense_layers"), ({"scores": "tanh"}, "'softmax'")],
)  # fmt: skip
def test_experts_that_cannot_be_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        Experts(**changes)
    with pytest.raises(UserError, match="leave a layer"):
        dataclasses.replace(CONFIG, experts=Experts(dense_layers=2))
