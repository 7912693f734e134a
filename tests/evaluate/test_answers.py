"""Batched answers with a cache are those of one example at a time without one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG, VOCAB, model, params

from pretrain.evaluate.answer_metrics import summarise
from pretrain.evaluate.answers import PROMPT_BUCKET, answer_questions
from pretrain.evaluate.tasks import CHOICES, Question
from pretrain.sharding.mesh import MeshConfig, make_mesh

USED = VOCAB - 5  # the last rows of the embedding pad the vocabulary
CONFIGS = {
    "rotary": dataclasses.replace(CONFIG, tie_embeddings=False),
    "learned": dataclasses.replace(CONFIG, positions="learned", norm="layernorm", tie_embeddings=False),
}


def questions(count: int = 11, seed: int = 0) -> list[Question]:
    """Prompts of a few lengths on both sides of a bucket's edge, choices of different lengths."""
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        prompt = rng.integers(4, USED, (5, PROMPT_BUCKET, PROMPT_BUCKET + 1, 9)[index % 4])
        choices = [rng.integers(4, USED, rng.integers(1, 10)) for _ in range(CHOICES)]
        made.append(Question(prompt.astype(np.int32), tuple(c.astype(np.int32) for c in choices), 7))
    return made


def reference(config, question: Question):
    """Log-probabilities, hits and greedy tokens of one question, every token with a full pass over what is before."""
    module_of, weights = model(config), params(config)

    @jax.jit
    def log_probs(tokens_1L, length):
        positions = jnp.arange(tokens_1L.shape[1])[None]
        segments = (positions < length).astype(jnp.int32)
        module = module_of.module(weights)
        return jax.nn.log_softmax(module.head(module(tokens_1L, segments, positions).hidden)[0, length - 1, :USED])

    def after(tokens):
        padded = np.zeros((1, 96), np.int32)
        padded[0, : len(tokens)] = tokens
        return np.asarray(log_probs(padded, len(tokens)))

    prompt, found = question.prompt_L.tolist(), []
    for choice in question.choices:
        rows = [after([*prompt, *choice[:i]]) for i in range(len(choice))]
        found.append([row[token] for row, token in zip(rows, choice, strict=True)])
        if choice is question.answer_L:
            hits = [row.argmax() == token for row, token in zip(rows, choice, strict=True)]
    greedy = list(prompt)
    for _ in question.answer_L:
        greedy.append(int(after(greedy).argmax()))
    return found, hits, greedy[len(prompt) :]


@pytest.mark.parametrize("name", CONFIGS)
def test_answers_are_exactly_the_uncached_reference(name):
    config, asked = CONFIGS[name], questions(6)
    found = answer_questions(asked, model(config), params(config), vocab_size=USED, batch_size=4)
    for question, answer in zip(asked, found, strict=True):
        log_probs, hits, greedy = reference(config, question)
        for ours, theirs in zip(answer.log_probs, log_probs, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(answer.hits_A, hits)
        assert answer.greedy_A.tolist() == greedy and max(greedy) < USED


def test_order_batches_and_mesh_change_nothing():
    config, asked = CONFIGS["rotary"], questions()
    options = {"vocab_size": USED}
    whole = answer_questions(asked, model(config), params(config), batch_size=4, **options)
    turned = answer_questions(asked[::-1], model(config), params(config), batch_size=3,
                              mesh=make_mesh(MeshConfig()), **options)  # fmt: skip
    for one, other in zip(whole, turned[::-1], strict=True):
        np.testing.assert_allclose(np.concatenate(one.log_probs), np.concatenate(other.log_probs), atol=1e-5)
        np.testing.assert_array_equal(one.greedy_A, other.greedy_A)


def test_progress_counts_every_question_once():
    counts = []
    config, asked = CONFIGS["rotary"], questions()
    answer_questions(asked, model(config), params(config), vocab_size=USED, batch_size=4, on_batch=counts.append)
    assert sum(counts) == len(asked) and max(counts) <= 4


def test_one_compilation_serves_all_prompt_lengths_of_a_bucket():
    from pretrain.evaluate.answers import _answer

    config = dataclasses.replace(CONFIG, embed_dim=48)  # of this test alone
    short = [dataclasses.replace(q, prompt_L=q.prompt_L[:n]) for n, q in enumerate(questions(5), 1)]
    before = _answer._cache_size()
    answer_questions(short, model(config), params(config), vocab_size=USED)
    assert _answer._cache_size() == before + 1


def test_greedy_is_right_where_every_forced_token_is():
    """Exact match could be read off the forced pass: both ways must agree, on answers that a model gives itself."""
    config = CONFIGS["rotary"]
    asked = questions()
    first = answer_questions(asked, model(config), params(config), vocab_size=USED, batch_size=4)
    right = [
        dataclasses.replace(q, choices=(a.greedy_A, *q.choices[1:])) if index % 2 else q
        for index, (q, a) in enumerate(zip(asked, first, strict=True))
    ]
    answers = answer_questions(right, model(config), params(config), vocab_size=USED, batch_size=4)
    for question, answer in zip(right, answers, strict=True):
        assert bool(answer.hits_A.all()) == (answer.greedy_A.tolist() == question.answer_L.tolist())
    assert summarise(right, answers)["exact_match"] == pytest.approx(5 / 11)
