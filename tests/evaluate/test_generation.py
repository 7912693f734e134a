"""Sampling: greedy is the uncached argmax, filters keep what they promise, seeds and ends are respected."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CONFIG, VOCAB, model, params

from pretrain.core.errors import UserError
from pretrain.evaluate.generation import PROMPT_BUCKET, Generation, filter_logits, generate

MODEL = dataclasses.replace(CONFIG, tie_embeddings=False)  # a tied one at random repeats itself
NEVER = VOCAB  # an end token that is never drawn


def sample(prompt, config: Generation, **changes) -> list[np.ndarray]:
    options = {"eos_id": NEVER, "vocab_size": VOCAB, "max_length": CONFIG.max_length, **changes}
    return generate(model(MODEL), PARAMS, np.asarray(prompt, np.int32), config, **options)


PARAMS = params(MODEL)  # made here: inside a trace they would be tracers


@jax.jit
def next_logits(tokens_BL, length):
    """Logits after the first `length` tokens, without a cache."""
    module = model(MODEL).module(PARAMS)
    positions = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1]), tokens_BL.shape)
    segments = (positions < length).astype(jnp.int32)
    return module.head(module(tokens_BL, segments, positions).hidden)[:, length - 1]


@pytest.mark.parametrize("size", [1, PROMPT_BUCKET - 1, PROMPT_BUCKET, PROMPT_BUCKET + 1])
def test_greedy_is_the_uncached_argmax_token_for_token(size):
    def expected(prompt: np.ndarray) -> list[int]:
        tokens = np.zeros((1, 128), np.int32)
        tokens[0, :size] = prompt
        for step in range(12):
            tokens[0, size + step] = int(np.argmax(next_logits(tokens, size + step)))
        return tokens[0, size : size + 12].tolist()

    prompts = (np.random.default_rng([size, seed]).integers(4, VOCAB, size) for seed in range(20))
    varied = next(prompt for prompt in prompts if len(set(expected(prompt))) > 2)  # a constant would prove little
    (found,) = sample(varied, Generation(max_tokens=12, temperature=0.0))
    assert found.tolist() == expected(varied)


def test_the_vocabulary_s_padding_is_never_drawn():
    limit = 10
    (found,) = sample([5, 6], Generation(max_tokens=40, temperature=5.0, top_p=1.0), vocab_size=limit, eos_id=limit)
    assert len(found) == 40 and found.max() < limit


def test_the_end_token_ends_and_is_not_returned():
    config = Generation(max_tokens=30, temperature=1.5, top_p=1.0, num_samples=6, seed=3)
    whole = sample([5, 6, 7], config)
    end = int(whole[0][4])
    for cut, full in zip(sample([5, 6, 7], config, eos_id=end), whole, strict=True):
        places = np.flatnonzero(full == end)
        expected = full[: places[0]] if len(places) else full
        np.testing.assert_array_equal(cut, expected)


def test_samples_are_seeded_and_differ_from_each_other():
    config = Generation(max_tokens=16, temperature=1.0, num_samples=3, seed=1)
    first, again, other = (sample([5], c) for c in (config, config, dataclasses.replace(config, seed=2)))
    np.testing.assert_array_equal(first, again)
    assert len({tuple(row) for row in [*first, *other]}) == 6


@pytest.mark.parametrize("top", [{"top_k": 20, "top_p": 0.9}, {}])
def test_frequencies_are_the_filtered_probabilities(top):
    """2,000 draws of one token: every frequency within 5 standard deviations of its probability."""
    config = Generation(max_tokens=1, temperature=0.7, num_samples=2000, **{"top_p": 1.0, **top})
    drawn = np.concatenate(sample([9, 8], config))
    tokens = np.zeros((1, 64), np.int32)
    tokens[0, :2] = 9, 8
    logits = np.asarray(next_logits(tokens, 2), np.float64)[0] / 0.7
    kept = np.asarray(filter_logits(jnp.asarray(logits[None], jnp.float32), config.top_k, config.top_p))[0]
    p = np.where(np.isfinite(kept), np.exp(logits - logits.max()), 0)
    p /= p.sum()
    counts = np.bincount(drawn, minlength=VOCAB)
    assert (counts[p == 0] == 0).all()
    assert (np.abs(counts - 2000 * p) <= 5 * np.sqrt(2000 * p * (1 - p)) + 1).all()


LOGITS = st.lists(st.integers(-80, 80), min_size=8, max_size=8, unique=True).map(lambda x: np.array([x]) / 10)


@given(logits=LOGITS, top_k=st.integers(1, 12))
@settings(deadline=None, max_examples=40)
def test_top_k_keeps_the_k_likeliest_as_they_are(logits, top_k):
    found = np.asarray(filter_logits(jnp.asarray(logits, jnp.float32), top_k, 1.0))[0]
    kept = np.flatnonzero(np.isfinite(found))
    assert set(kept) == set(np.argsort(-logits[0])[:top_k])
    np.testing.assert_array_equal(found[kept], logits[0, kept].astype(np.float32))


@given(logits=LOGITS, top_p=st.floats(0.01, 0.999))
@settings(deadline=None, max_examples=60)
def test_top_p_keeps_the_smallest_likely_set(logits, top_p):
    found = np.asarray(filter_logits(jnp.asarray(logits, jnp.float32), 0, top_p))[0]
    p = np.sort(np.exp(logits[0]) / np.exp(logits[0]).sum())[::-1]
    kept = np.isfinite(found)
    assert set(np.flatnonzero(kept)) == set(np.argsort(-logits[0])[: kept.sum()])  # the likeliest ones
    assert p[: kept.sum()].sum() >= top_p - 1e-5  # enough of them
    assert p[: kept.sum() - 1].sum() < top_p + 1e-5  # and not one too many


@given(logits=LOGITS, top_k=st.integers(1, 8), top_p=st.floats(0.01, 1.0))
@settings(deadline=None, max_examples=40)
def test_both_limits_hold_and_the_likeliest_stays(logits, top_k, top_p):
    x = jnp.asarray(logits, jnp.float32)
    both = np.isfinite(filter_logits(x, top_k, top_p))
    assert (both == np.isfinite(filter_logits(filter_logits(x, top_k, 1.0), 0, top_p))).all()
    assert both[0, np.argmax(logits)]


def test_no_limits_change_nothing():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 7)), jnp.float32)
    np.testing.assert_array_equal(filter_logits(logits, 0, 1.0), logits)
    np.testing.assert_array_equal(filter_logits(logits, 7, 1.0), logits)


def test_what_does_not_fit_the_model_is_refused():
    with pytest.raises(UserError, match="shorten the prompt or lower max_tokens"):
        sample([5] * 100, Generation(max_tokens=CONFIG.max_length - 99))


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 0}, {"temperature": -0.1}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"num_samples": 0},
        {"seed": -1}, {"prompts": "one string"}, {"max_tokens": "many"},
    ],
)  # fmt: skip
def test_a_wrong_setting_is_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Generation(**wrong)


def test_prompts_from_gin_are_a_list():
    assert hash(Generation(prompts=["a", "b"])) == hash(Generation(prompts=("a", "b")))
