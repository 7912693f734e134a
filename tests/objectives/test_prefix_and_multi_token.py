"""Prefix LM, multi-token prediction, and what `Causal` got: label smoothing and weights of sources."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conformance import VOCABULARY
from tiny import CONFIG, model, packed_rows, params

from pretrain.core.errors import UserError
from pretrain.core.objective import Term
from pretrain.objectives.causal import Causal
from pretrain.objectives.multi_token import MultiToken
from pretrain.objectives.prefix import PrefixLM

RNG = np.random.default_rng(0)
ROWS = [[16], [5, 7], [3], [2, 9, 4]]


def test_label_smoothing_is_the_formula():
    logits = 2 * RNG.normal(size=(4, 16, 12)).astype(np.float32)
    batch = Causal().finish(packed_rows(ROWS, 16, vocab=12), RNG)
    terms, _ = Causal(label_smoothing=0.1).loss(jnp.asarray(logits), batch)
    log_p = np.log(np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    smoothed = 0.9 * np.eye(12)[batch["targets"]] + 0.1 / 12
    expected = -(smoothed * log_p).sum(-1) * batch["loss_weights"]
    assert list(terms) == ["cross_entropy", "uniform_cross_entropy"]
    assert all(isinstance(term, Term) and term.weight == 46 for term in terms.values())
    np.testing.assert_allclose(sum(t.coefficient * t.sum for t in terms.values()), expected.sum(), rtol=1e-6)


def test_sources_weigh_as_they_are_told():
    packed = packed_rows(ROWS, 16) | {
        "source_weights": np.repeat([[2.0], [1.0], [0.0], [0.5]], 16, 1).astype(np.float32)
    }
    weights = Causal(source_weights={"code": 2.0}).finish(packed, RNG)["loss_weights"]
    assert weights.sum(1).tolist() == [32, 12, 0, 7.5] and weights.dtype == np.float32
    assert Causal().finish(packed, RNG)["loss_weights"].sum() == 46


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Causal(label_smoothing=-0.1), "Causal.label_smoothing"),
        (lambda: Causal(source_weights={"web": -1.0}), "source_weights: web"),
        (lambda: PrefixLM(z_loss=-1.0), "PrefixLM.z_loss"),
        (lambda: MultiToken(ahead=0), "MultiToken.ahead"),
        (lambda: MultiToken(ahead_weight=0.0), "MultiToken.ahead_weight"),
    ],
)
def test_mistakes_are_one_line(make, message):
    with pytest.raises(UserError, match=message):
        make()


# --- prefix LM


def test_the_prefix_is_shown_and_the_rest_is_predicted():
    packed = packed_rows([[12, 20]] * 300, 40)
    batch = PrefixLM().finish(packed, np.random.default_rng(0))
    prefixes = {1: [], 2: []}
    for row in range(300):
        for segment, size in ((1, 12), (2, 20)):
            of = packed["segment_ids"][row] == segment
            seen, weight = batch["prefix_mask"][row][of], batch["loss_weights"][row][of]
            count = int(seen.sum())
            assert 1 <= count <= size and seen[:count].all()
            assert weight.tolist() == [0] * (count - 1) + [1] * (size - count + 1)
            prefixes[segment].append(count)
    assert set(prefixes[1]) == set(range(1, 13)) and set(prefixes[2]) == set(range(1, 21))
    assert not batch["prefix_mask"][packed["segment_ids"] == 0].any()


def test_no_predicted_token_is_seen_in_the_prefix():
    """The logit of a target does not move when the token itself, or a later one, is changed."""
    objective, values = PrefixLM(), params()
    batch = objective.finish(packed_rows([[16], [7, 9]], 16), np.random.default_rng(2))

    @jax.jit
    def hidden(tokens):
        return objective.forward(model().module(values), {**batch, "tokens": tokens}).hidden

    before = hidden(batch["tokens"])
    for row, place in np.argwhere(batch["loss_weights"] > 0):
        later = np.arange(16) > place  # inputs after this one: the target itself and what follows
        later &= batch["segment_ids"][row] == batch["segment_ids"][row, place]
        tokens = batch["tokens"].copy()
        tokens[row] = np.where(later, (tokens[row] + 7) % CONFIG.vocab_size, tokens[row])
        np.testing.assert_allclose(hidden(tokens)[row, place], before[row, place], atol=1e-5)


def test_the_prefix_is_read_in_both_directions():
    objective, values = PrefixLM(), params()
    batch = objective.finish(packed_rows([[16]], 16), np.random.default_rng(0))
    batch["prefix_mask"] = np.arange(16)[None] < 6
    slope = jax.jacrev(lambda x: _first_hidden(objective, values, batch, x))(jnp.zeros((16, CONFIG.embed_dim)))
    touched = np.abs(np.asarray(slope)).sum((0, 2)) > 0
    assert touched.tolist() == [True] * 6 + [False] * 10


def _first_hidden(objective, values, batch, change):
    """Hidden state of the first token when the embeddings are moved by `change`."""
    module = model().module(values)
    plain = module.embed
    module.embed = lambda *rows: plain(*rows) + change
    return objective.forward(module, batch).hidden[0, 0]


# --- multi-token prediction


def test_each_depth_has_the_tokens_further_on():
    objective = MultiToken(ahead=2)
    packed = packed_rows([[16], [5, 7]], 16)
    batch = objective.finish(packed, RNG)
    tokens = packed["tokens"]
    assert batch["ahead1_targets"][0].tolist() == [*tokens[0, 1:], 0]
    assert batch["ahead2_weights"][1].tolist() == [1] * 3 + [0] * 2 + [1] * 5 + [0] * 6
    assert batch["ahead1_weights"].sum() == 15 + 4 + 6
    inside = batch["ahead2_weights"] > 0
    np.testing.assert_array_equal(batch["ahead2_targets"][:, :-2][inside[:, :-2]], tokens[:, 2:][inside[:, :-2]])


def test_further_losses_are_terms_of_their_own():
    objective = MultiToken(ahead=2, ahead_weight=0.3, z_loss=0.01).bind(VOCABULARY)
    batch = objective.finish(packed_rows(ROWS, 16), RNG)
    logits = {str(d): jnp.asarray(RNG.normal(size=(4, 16, 64)), jnp.float32) for d in range(3)}
    terms, metrics = objective.loss(logits, batch)
    assert terms["cross_entropy"].coefficient == 1 and terms["ahead1_cross_entropy"].coefficient == 0.15
    assert terms["ahead2_z_loss"].coefficient == pytest.approx(0.0015)
    assert {name: float(term.weight) for name, term in terms.items() if "cross" in name} == {
        "cross_entropy": 46, "ahead1_cross_entropy": 39, "ahead2_cross_entropy": 32,
    }  # fmt: skip
    assert set(metrics) == {"accuracy", "ahead1_accuracy", "ahead2_accuracy"}
    alone, _ = Causal(z_loss=0.01).loss(logits["0"], batch)
    assert alone["cross_entropy"].sum == terms["cross_entropy"].sum


def test_a_depth_sees_the_tokens_up_to_the_one_it_joins_and_no_further():
    """Hidden state d at place i depends on inputs up to i and on the d tokens after them, of its document alone."""
    objective = MultiToken(ahead=2)
    needs, packed = objective.model_needs, packed_rows([[7, 9]], 16)
    values = params(CONFIG, needs)

    @jax.jit
    def hidden(tokens):
        batch = objective.finish(packed, RNG) | tokens
        return objective.forward(model(CONFIG, needs).module(values), batch).hidden

    def read(tokens):
        batch = objective.finish({**packed, "tokens": tokens}, RNG)
        return {name: batch[name] for name in ("tokens", "targets", "ahead1_targets", "ahead2_targets")}

    before = hidden(read(packed["tokens"]))
    for changed in (3, 10):
        tokens = packed["tokens"].copy()
        tokens[0, changed] = (tokens[0, changed] + 5) % 60
        after = hidden(read(tokens))
        for depth in range(3):
            moved = np.abs(np.asarray(after[str(depth)] - before[str(depth)])[0]).max(1) > 1e-4
            weights = objective.finish(packed, RNG)["loss_weights" if not depth else f"ahead{depth}_weights"][0] > 0
            same = packed["segment_ids"][0] == packed["segment_ids"][0, changed]
            reaches = same & (np.arange(16) >= changed + 1 - depth)  # the token `changed` is input `changed + 1`
            assert (moved & weights).tolist() == (reaches & weights).tolist(), (changed, depth)
