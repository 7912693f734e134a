"""A mixture of objectives: who gets which rows at which step, and what each adds to the loss."""

import jax.numpy as jnp
import numpy as np
import pytest
from conformance import VOCABULARY
from tiny import packed_rows

from pretrain.core.errors import UserError
from pretrain.objectives.causal import Causal
from pretrain.objectives.denoising import SpanCorruption, TextInfilling
from pretrain.objectives.fill_in_the_middle import FillInTheMiddle
from pretrain.objectives.mixed import Mixed
from pretrain.objectives.multi_token import MultiToken
from pretrain.objectives.prefix import PrefixLM

RNG = np.random.default_rng(0)
DECODERS = (Causal(z_loss=0.01), PrefixLM(), SpanCorruption(layout="decoder"))


def mixture(**changes) -> Mixed:
    return Mixed(**{"objectives": DECODERS, **changes}).bind(VOCABULARY)


def rows(objective: Mixed, count: int, length: int = 64, step: int = 0) -> dict:
    columns = objective.packed_length(length)
    return packed_rows([[columns - 20, 20]] * count, columns) | {"steps": np.full((count, columns), step)}


def test_every_row_is_what_its_objective_makes_of_it():
    objective = mixture()
    assert objective.packed_length(64) == DECODERS[2].packed_length(64) < 64
    packed = rows(objective, 60)
    batch, spec = objective.finish(packed, np.random.default_rng(0)), objective.batch_spec(60, 64)
    assert {name: (array.shape, str(array.dtype)) for name, array in batch.items()} == {
        name: (each.shape, each.dtype) for name, each in spec.items()
    }
    chosen = batch["objective"][:, 0]
    assert (batch["objective"] == chosen[:, None]).all() and set(chosen) == {0, 1, 2}
    causal = Causal().finish(packed, RNG)
    columns = packed["tokens"].shape[1]
    for name, array in causal.items():
        np.testing.assert_array_equal(batch[name][chosen == 0][:, :columns], array[chosen == 0])
        assert not batch[name][chosen == 0][:, columns:].any()
    np.testing.assert_array_equal(batch["tokens"][chosen == 1][:, :columns], causal["tokens"][chosen == 1])
    assert not batch["prefix_mask"][chosen == 0].any()
    assert batch["prefix_mask"][chosen == 1].any(1).all() and batch["prefix_mask"][chosen == 2].any(1).all()
    assert (batch["targets"][chosen == 2] == VOCABULARY.eos_id).sum(1).min() >= 2


def test_objectives_that_change_records_alike_may_be_mixed():
    """As fill in the middle by much of the text, then by less: the loader asks the mixture for what it asks each."""
    first, second = FillInTheMiddle(rate=1.0), FillInTheMiddle(rate=0.0)
    objective = mixture(objectives=(first, second), schedule=[(0, (1, 0)), (10, (0, 1))])
    text = {"tokens": np.arange(9, dtype=np.int32)}
    np.testing.assert_array_equal(
        objective.prepare(text, RNG)["tokens"], first.bind(VOCABULARY).prepare(text, RNG)["tokens"]
    )
    assert objective.prepared_length(np.array([9])) == first.prepared_length(np.array([9]))
    assert not getattr(objective.prepare, "identity", False) and mixture().prepare.identity
    packed = packed_rows([[20]] * 8, 20)
    for step, marked in ((0, True), (10, False)):
        batch = objective.finish(packed | {"steps": np.full((8, 20), step)}, np.random.default_rng(0))
        assert (batch["targets"] == VOCABULARY.sentinel(0)).any(1).tolist() == [marked] * 8


def test_shares_are_drawn_and_change_with_the_step():
    objective = mixture(schedule=[(0, (1, 0, 0)), (100, (0, 1, 3)), (200, (0, 0, 1))])
    expected = {0: (1, 0, 0), 50: (0.5, 0.125, 0.375), 100: (0, 0.25, 0.75), 150: (0, 0.125, 0.875), 999: (0, 0, 1)}
    for step, shares in expected.items():
        np.testing.assert_allclose(objective.shares_at(np.array([step]))[0], shares)
        batch = objective.finish(rows(objective, 400, step=step), np.random.default_rng(step))
        found = np.bincount(batch["objective"][:, 0], minlength=3) / 400
        np.testing.assert_allclose(found, shares, atol=0.06)
        assert ((found == 0) == (np.array(shares) == 0)).all()


def test_a_batch_may_hold_rows_of_several_steps():
    objective = mixture(schedule=[(0, (1, 0, 0)), (1, (0, 1, 0))])
    packed = rows(objective, 8)
    packed["steps"] = np.repeat([0, 1], 4)[:, None] * np.ones_like(packed["tokens"])
    assert objective.finish(packed, RNG)["objective"][:, 0].tolist() == [0] * 4 + [1] * 4


def test_without_steps_it_is_the_first():
    objective = mixture(schedule=[(0, (0, 1, 0)), (10, (1, 0, 0))])
    packed = {name: array for name, array in rows(objective, 4).items() if name != "steps"}
    assert (objective.finish(packed, RNG)["objective"] == 1).all()


def test_tokens_count_alike():
    """With average = "tokens" the loss is that of all targets together, whatever their objectives."""
    objective = mixture()
    batch = objective.finish(rows(objective, 12), np.random.default_rng(0))
    logits = jnp.asarray(RNG.normal(size=(12, 64, VOCABULARY.size)), jnp.float32)
    terms, metrics = objective.loss(logits, batch)
    alone, _ = Causal().loss(logits, batch)
    total = alone["cross_entropy"]
    parts = [terms[f"{name}_cross_entropy"] for name in ("Causal", "PrefixLM", "SpanCorruption")]
    assert all(part.weight == total.weight for part in parts)
    np.testing.assert_allclose(sum(part.sum for part in parts), total.sum, rtol=1e-6)
    mine = batch["loss_weights"] * (batch["objective"] == 2)
    assert metrics["SpanCorruption_mean_cross_entropy"][1] == mine.sum()
    assert terms["Causal_z_loss"].coefficient == 0.01 and "PrefixLM_z_loss" not in terms


def test_objectives_count_by_their_coefficients():
    objective = mixture(average="objectives", coefficients=(1.0, 0.5, 2.0))
    batch = objective.finish(rows(objective, 12), np.random.default_rng(0))
    terms, _ = objective.loss(jnp.zeros((12, 64, VOCABULARY.size)), batch)
    for number, (name, coefficient) in enumerate((("Causal", 1.0), ("PrefixLM", 0.5), ("SpanCorruption", 2.0))):
        term = terms[f"{name}_cross_entropy"]
        assert term.coefficient == coefficient
        assert term.weight == (batch["loss_weights"] * (batch["objective"] == number)).sum() > 0
    assert terms["Causal_z_loss"].coefficient == 0.01


def test_two_of_one_class_and_two_lengths():
    """In an encoder-decoder the arrays are as long as the longest of any objective."""
    objective = Mixed(objectives=(TextInfilling(), SpanCorruption(), SpanCorruption(density=0.5))).bind(VOCABULARY)
    assert objective.names == ["TextInfilling", "SpanCorruption1", "SpanCorruption2"]
    assert objective.sentinels == 100 and not objective.generates and mixture().generates
    columns = objective.packed_length(64)
    assert columns == 64
    batch = objective.finish(packed_rows([[columns]] * 30, columns), np.random.default_rng(0))
    assert batch["inputs"].shape == (30, SpanCorruption().room(64).inputs) and batch["targets"].shape == (30, 64)
    assert (batch["targets_segment_ids"].sum(1)[batch["objective"][:, 0] == 0] == 64).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": ()}, "empty"),
        ({"shares": (1.0,)}, "shares must be 3 numbers"),
        ({"shares": (1.0, -1.0, 0.0)}, "shares must be 3 numbers"),
        ({"shares": (1, 1, 1), "schedule": [(0, (1, 1, 1))]}, "not both"),
        ({"schedule": [(5, (1, 1, 1)), (0, (1, 1, 1))]}, "steps must rise"),
        ({"coefficients": (1.0,)}, "coefficients must be 3"),
        (
            {"objectives": (Causal(), SpanCorruption())},
            "SpanCorruption needs another model or forward pass than Causal",
        ),
        ({"objectives": (Causal(), MultiToken())}, "MultiToken needs another model"),
        ({"objectives": (Causal(), FillInTheMiddle())}, "FillInTheMiddle changes records before they are packed"),
        ({"average": "rows"}, "average"),
    ],
)
def test_mistakes_are_one_line(changes, message):
    with pytest.raises(UserError, match=message):
        Mixed(**{"objectives": DECODERS, **changes})
