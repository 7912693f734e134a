"""FLOPs by the formula, and counted in the program that trains."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from tiny import CONFIG, model, packed_rows, params

from pretrain.core.objective import ModelNeeds
from pretrain.models.flops import count_flops
from pretrain.models.vision_config import Predictor, Vision
from pretrain.objectives.causal import Causal
from pretrain.train.step import StepBuilder

LENGTH = 16


def dot_flops(jaxpr, times: int = 1) -> int:
    """Two FLOPs for each multiply-add of the matrix products of a jaxpr, loop bodies as often as they run."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            ((contracted, _), _) = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += times * 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)
        repeats = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                total += dot_flops(inner, times * repeats)
    return total


@pytest.mark.parametrize(
    "changes", [{}, {"kv_heads": 4, "activation": "gelu"}, {"tie_embeddings": False, "head_dim": 16, "num_layers": 3}]
)
def test_the_formula_counts_the_products_of_the_training_step(changes):
    """Exactly, once attention is counted as the causal half that is needed and not as the square that is computed."""
    config = dataclasses.replace(CONFIG, **changes)
    batch = Causal().finish(packed_rows([[LENGTH]] * 3, LENGTH), np.random.default_rng(0))
    step = StepBuilder(model(config), Causal(), optimizer=None, learning_rate=None)
    loss = lambda values: step.loss(values, batch, {"cross_entropy": 1.0})[0]  # noqa: E731
    counted = dot_flops(jax.make_jaxpr(jax.grad(loss))(params(config)).jaxpr)
    square = 2 * 2 * config.num_heads * config.query_dim * LENGTH * config.num_layers
    assert counted == 3 * LENGTH * (count_flops(config, LENGTH).training + 3 * square // 2)


@pytest.mark.parametrize("vision", [{"pooling": "class"}, {"pooling": "mean", "frames": 4, "tube": 2}])
def test_of_a_masked_autoencoder_what_is_seen_and_what_is_said_count(vision):
    narrow = Predictor(num_layers=2, embed_dim=16, num_heads=2, mlp_dim=32)
    vision = Vision(image_size=16, patch_size=4, channels=1, positions="sincos", predictor=narrow, **vision)
    config = dataclasses.replace(CONFIG, architecture="vision", vision=vision)
    needs = ModelNeeds(("vision",), backbone="masked_autoencoder")
    seen, hidden = np.split(np.arange(vision.patches)[None], [vision.patches // 4], axis=1)
    shape, name = ((1, 16, 16, 1), "images") if vision.frames == 1 else ((1, 4, 16, 16, 1), "frames")
    paint = lambda values: model(config, needs).module(values)({name: np.zeros(shape, np.uint8)}, seen, hidden)  # noqa: E731
    counted = dot_flops(jax.make_jaxpr(paint)(params(config, needs)).jaxpr)
    assert counted == count_flops(config, 1, encoded=seen.size).forward < count_flops(config, 1).forward


def test_recomputation_is_not_counted():
    assert count_flops(dataclasses.replace(CONFIG, remat="full"), 64).training == count_flops(CONFIG, 64).training


def test_a_known_model():
    """GPT-2 small by hand: 12 layers of 12 * 768^2, a head of 768 * 50,304, causal scores at length 1,024."""
    gpt2 = dataclasses.replace(
        CONFIG, vocab_size=50_304, num_layers=12, embed_dim=768, num_heads=12, kv_heads=None, mlp_dim=3072,
        activation="gelu", max_length=1024,
    )  # fmt: skip
    assert count_flops(gpt2, 1024).training == 6 * (12 * 12 * 768**2 + 768 * 50_304) + 6 * 12 * 768 * 1024
