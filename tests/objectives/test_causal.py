"""Next-token prediction: what is predicted from what, and the loss against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import packed_rows

from pretrain.core.errors import UserError
from pretrain.objectives.causal import Causal
from pretrain.objectives.losses import cross_entropy, weighted_sum

RNG = np.random.default_rng(0)


def test_each_token_is_predicted_from_the_one_before_it():
    packed = {
        "tokens": np.array([[5, 6, 1, 7, 8, 0]], np.int32),
        "segment_ids": np.array([[1, 1, 1, 2, 2, 0]], np.int32),
        "positions": np.array([[0, 1, 2, 0, 1, 0]], np.int32),
        "first_inputs": np.array([[3, 0, 0, 9, 0, 0]], np.int32),  # BOS; and a long document that goes on after 9
    }
    batch = Causal().finish(packed, np.random.default_rng(0))
    assert batch["tokens"].tolist() == [[3, 5, 6, 9, 7, 0]]
    assert batch["targets"].tolist() == [[5, 6, 1, 7, 8, 0]]
    assert batch["loss_weights"].tolist() == [[1, 1, 1, 1, 1, 0]]


def test_loss_terms_are_sums_of_the_formulas():
    logits = 3 * RNG.normal(size=(4, 16, 12)).astype(np.float32)
    batch = Causal().finish(packed_rows([[16], [5, 7], [3], [2, 9, 4]], 16, vocab=12), RNG)
    terms, metrics = Causal(z_loss=0.25).loss(jnp.asarray(logits), batch)
    exact, weights = logits.astype(np.float64), batch["loss_weights"]
    log_z = np.log(np.exp(exact).sum(-1))
    target = np.take_along_axis(exact, batch["targets"][..., None], -1)[..., 0]
    np.testing.assert_allclose(terms["cross_entropy"].sum, ((log_z - target) * weights).sum(), rtol=1e-6)
    np.testing.assert_allclose(terms["z_loss"].sum, (log_z**2 * weights).sum(), rtol=1e-6)
    assert terms["z_loss"].coefficient == 0.25 and terms["cross_entropy"].coefficient == 1
    assert terms["z_loss"].weight == terms["cross_entropy"].weight == weights.sum() == 46
    hits, count = metrics["accuracy"]
    assert (hits, count) == (((exact.argmax(-1) == batch["targets"]) * weights).sum(), 46)


def test_of_equal_logits_only_the_first_is_a_hit():
    batch = Causal().finish(packed_rows([[16], [5, 7]], 16, vocab=12), RNG) | {"targets": np.full((2, 16), 3)}
    constant = jnp.zeros((2, 16, 12))
    for logits, hits in ((constant, 0), (constant.at[..., 3].set(1), 28), (constant.at[..., 3:].set(1), 28)):
        assert Causal().loss(logits, batch)[1]["accuracy"] == (hits, 28)
    assert Causal().loss(constant * jnp.nan, batch)[1]["accuracy"][0] == 0


def test_z_loss_is_off_by_default_and_never_negative():
    batch = Causal().finish(packed_rows([[4]], 4), RNG)
    assert set(Causal().loss(jnp.zeros((1, 4, 64)), batch)[0]) == {"cross_entropy"}
    with pytest.raises(UserError, match="z_loss"):
        Causal(z_loss=-1.0)


def test_cross_entropy_survives_extreme_logits():
    logits = jnp.array([[[1e4, 0.0, -1e4]]])
    for target, expected in ((0, 0.0), (1, 1e4), (2, 2e4)):
        nll, _ = cross_entropy(logits, jnp.array([[target]]))
        np.testing.assert_allclose(nll, [[expected]])
    slope = jax.grad(lambda x: cross_entropy(x, jnp.array([[0]]))[0].sum())(logits)
    assert np.isfinite(slope).all()


def test_weight_zero_hides_even_infinity():
    values, weights = jnp.array([[1.0, jnp.inf, jnp.nan]]), jnp.array([[2.0, 0.0, 0.0]])
    assert weighted_sum(values, weights) == 2
