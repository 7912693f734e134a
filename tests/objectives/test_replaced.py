"""Replaced-token detection: what the generator draws, what is detected, which gradients flow, which tables are one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance import LENGTH, VOCABULARY, batch, model_of, params_of
from tiny import CONFIG

from pretrain.core.errors import UserError
from pretrain.core.trees import named_leaves
from pretrain.models.build import build_model
from pretrain.objectives.replaced import ReplacedTokens, draw

OBJECTIVE = ReplacedTokens(rate=0.5).bind(VOCABULARY)


def outputs(params, arrays, objective=OBJECTIVE):
    """What the loss gets."""
    module = model_of(objective).module(params)
    return objective.head(module, objective.forward(module, arrays).hidden, arrays)


def test_draws_follow_the_distribution_and_the_noise_alone():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    many = jnp.broadcast_to(logits, (3, 4000, 4))
    drawn = np.asarray(draw(many, jnp.array([1, 2, 1])))
    for row in drawn[:2]:
        np.testing.assert_allclose(np.bincount(row, minlength=4) / 4000, np.exp(logits), atol=0.03)
    np.testing.assert_array_equal(drawn[0], drawn[2])
    assert not np.array_equal(drawn[0], drawn[1])
    alone = draw(many[1:2], jnp.array([2]))  # in another batch, or on another device
    np.testing.assert_array_equal(alone[0], drawn[1])


def test_no_gradient_goes_through_what_is_drawn():
    params, arrays = params_of(OBJECTIVE), batch(OBJECTIVE)

    def detection(generator):
        terms, _ = OBJECTIVE.loss(outputs({**params, "generator": generator}, arrays), arrays)
        return terms["replaced"].sum

    slopes = jax.grad(detection)(params["generator"])
    assert all((slope == 0).all() for slope in jax.tree.leaves(slopes))


def test_one_table_of_embeddings_learns_from_both():
    shapes = named_leaves(model_of(OBJECTIVE).shapes)
    tables = [name for name in shapes if name.endswith("embedding")]
    assert len(tables) == 1, tables
    params, arrays = params_of(OBJECTIVE), batch(OBJECTIVE)
    owner = tables[0].split("/")[0]

    def term(name):
        def of_table(table):
            both = {**params, owner: {**params[owner], "embedding": table}}
            return OBJECTIVE.loss(outputs(both, arrays), arrays)[0][name].sum

        return jax.grad(of_table)(params[owner]["embedding"])

    assert jnp.abs(term("generator")).max() > 0 and jnp.abs(term("replaced")).max() > 0


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_position_and_type_tables_are_shared_too(positions):
    config = dataclasses.replace(CONFIG, architecture="encoder", positions=positions, token_types=2)
    names = [name for name in named_leaves(build_model(config, OBJECTIVE.model_needs).shapes) if "embedding" in name]
    tables = [name.split("/")[-1] for name in names if name.split("/")[-1].endswith("embedding")]
    assert sorted(tables) == sorted(["embedding", "type_embedding", *["position_embedding"] * (positions == "learned")])


def test_the_detector_sees_the_text_but_for_what_was_drawn():
    arrays = batch(OBJECTIVE)
    found = outputs(params_of(OBJECTIVE), arrays)
    hidden, (row, slot) = np.zeros((4, LENGTH), bool), np.nonzero(arrays["loss_weights"])
    hidden[row, arrays["target_positions"][row, slot]] = True
    drawn = draw(found["generator"], arrays["noise"])
    wrong = np.zeros((4, LENGTH), bool)
    wrong[row, arrays["target_positions"][row, slot]] = (np.asarray(drawn) != arrays["targets"])[row, slot]
    np.testing.assert_array_equal(found["replaced"], wrong)
    assert 0 < wrong.sum() <= hidden.sum()
    assert (arrays["tokens"][hidden] == VOCABULARY.sentinel(0)).all()  # the generator sees masks only


def test_loss_and_metrics_are_the_formulas():
    arrays, rng = batch(OBJECTIVE), np.random.default_rng(0)
    real = arrays["segment_ids"] > 0
    logits, replaced = 3 * rng.normal(size=(4, LENGTH)).astype(np.float32), rng.random((4, LENGTH)) < 0.3
    guesses = rng.normal(size=(4, 8, VOCABULARY.size)).astype(np.float32)
    terms, metrics = OBJECTIVE.loss({"generator": guesses, "discriminator": logits, "replaced": replaced}, arrays)
    chance = 1 / (1 + np.exp(-logits.astype(np.float64)))
    nats = -np.log(np.where(replaced, chance, 1 - chance))
    np.testing.assert_allclose(terms["replaced"].sum, nats[real].sum(), rtol=1e-5)
    assert terms["replaced"].weight == real.sum() and terms["replaced"].coefficient == 50
    assert terms["generator"].coefficient == 1 and terms["generator"].weight == arrays["loss_weights"].sum()
    right = (logits > 0) == replaced
    assert metrics["replaced_accuracy"] == (right[real].sum(), real.sum())
    assert metrics["replaced_recall"] == (right[real & replaced].sum(), (real & replaced).sum())


def test_sizes_must_make_sense():
    for fields in ({"generator_size": 0.0}, {"generator_size": 1.5}, {"coefficient": 0.0}, {"rate": 1.0}):
        with pytest.raises(UserError, match=next(iter(fields))):
            ReplacedTokens(**fields)
    small, large = (ReplacedTokens(generator_size=size).model_needs for size in (0.25, 0.5))
    assert (small.generator, large.generator) == (0.25, 0.5)
