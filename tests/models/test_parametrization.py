"""muP and CompleteP: the base shape is as standard, and updates keep their size as width and depth grow."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG, VOCAB, model

from pretrain.models.config import TransformerConfig
from pretrain.models.parametrization import learning_rate_scales
from pretrain.objectives.causal import Causal
from pretrain.optim.optimizers import Optimizer, build_optimizer
from pretrain.optim.schedules import Schedule
from pretrain.train.step import StepBuilder

BASE = TransformerConfig(
    vocab_size=VOCAB, num_layers=2, embed_dim=32, num_heads=2, mlp_dim=64, max_length=32, base_embed_dim=32,
    base_num_layers=2,
)  # fmt: skip
STEPS = 5


def shaped(kind: str, width: int, layers: int = 2) -> TransformerConfig:
    return dataclasses.replace(
        BASE, parametrization=kind, embed_dim=width, num_heads=width // 16, mlp_dim=2 * width, num_layers=layers
    )


def batch() -> dict[str, np.ndarray]:
    tokens = np.random.default_rng(0).integers(4, VOCAB, (4, 32)).astype(np.int32)
    ones = np.ones_like(tokens)
    positions = np.broadcast_to(np.arange(32, dtype=np.int32), tokens.shape)
    packed = {"tokens": tokens, "segment_ids": ones, "positions": positions, "first_inputs": 0 * ones}
    return Causal().finish(packed, np.random.default_rng(0))


def params(config: TransformerConfig) -> dict:
    return model(config).init(jax.random.key(0))


def movement(config: TransformerConfig) -> tuple[float, float]:
    """Root mean square change of hidden states and logits over a few steps of Adam: one row of a coordinate check."""
    functional, data = model(config), batch()
    axes = functional.logical_axes()
    optimizer, rate = build_optimizer(
        Optimizer(weight_decay=0.0, clip_norm=None), Schedule("constant", 1e-2, 0), STEPS, axes,
        learning_rate_scales(config, axes),
    )  # fmt: skip
    builder = StepBuilder(functional, Causal(), optimizer, rate)

    @jax.jit
    def outputs(values):
        module = functional.module(values)
        hidden = module(data["tokens"], data["segment_ids"], data["positions"]).hidden
        return hidden, module.head(hidden)

    @jax.jit
    def update(values, state):
        grads, _ = builder.gradients(values, data)
        updates, state = optimizer.update(grads, state, values)
        return jax.tree.map(jnp.add, values, updates), state

    values = params(config)
    state, before = optimizer.init(values), outputs(values)
    for _ in range(STEPS):
        values, state = update(values, state)
    return tuple(float(jnp.sqrt(jnp.mean(jnp.square(a - b)))) for a, b in zip(before, outputs(values), strict=True))


@pytest.mark.parametrize("kind", ["mup", "completep"])
def test_the_base_shape_is_as_standard(kind):
    config = shaped(kind, 32)
    assert learning_rate_scales(config, model(config).logical_axes()) is None
    for ours, standard in zip(
        jax.tree.leaves(params(config)), jax.tree.leaves(params(shaped("standard", 32))), strict=True
    ):
        np.testing.assert_array_equal(ours, standard)
    np.testing.assert_allclose(movement(config), movement(shaped("standard", 32)), rtol=1e-6)


def test_logits_move_alike_at_every_width_under_mup_and_not_without():
    """From one width to four times it; what is left of the initial logits fades as 1 / sqrt(width)."""
    growth = {}
    for kind in ("mup", "standard"):
        narrow, wide = (movement(shaped(kind, width))[1] for width in (64, 256))
        growth[kind] = wide / narrow
    assert 0.65 < growth["mup"] < 1.25 and growth["standard"] > 1.3, growth


def test_hidden_states_move_alike_at_every_depth_under_completep():
    moved = [movement(shaped("completep", 32, layers))[1] for layers in (2, 4, 8, 16)]
    assert max(moved) / min(moved) < 1.6, moved
    assert shaped("completep", 32, 16).depth_ratio == 8 and shaped("mup", 32, 16).depth_ratio == 1


def test_only_matrices_from_width_to_width_learn_slower():
    config = shaped("mup", 128)
    scales = learning_rate_scales(config, model(config).logical_axes())
    assert scales["embedding"] == 1 and scales["decoder"]["final_norm"]["scale"] == 1
    block = scales["decoder"]["blocks"]
    assert block["mlp"]["up"]["kernel"] == block["attention"]["query"]["kernel"] == 1 / 4
    assert block["mlp_norm"]["scale"] == 1


def test_weight_decay_does_not_shrink_with_the_learning_rate():
    """A parameter without gradient decays by rate * decay, whatever its factor."""
    axes = {"kernel": ("embed", "mlp")}
    weights = {"kernel": jnp.ones((2, 3))}
    optimizer, _ = build_optimizer(
        Optimizer(weight_decay=0.5, clip_norm=None), Schedule("constant", 0.1, 0), 10, axes, {"kernel": 0.25}
    )
    updates, _ = optimizer.update({"kernel": jnp.zeros((2, 3))}, optimizer.init(weights), weights)
    np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-6)


def test_a_standard_model_ignores_the_base_shape():
    other = dataclasses.replace(CONFIG, base_embed_dim=7, base_num_layers=9)
    assert other.width_ratio == other.depth_ratio == 1
