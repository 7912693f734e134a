"""Greedy transcripts against a forward pass, word errors against a recursion, and a run that is scored by them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tiny import CONFIG, model, params

from pretrain.core.objective import ModelNeeds
from pretrain.core.sound import SoundShape
from pretrain.evaluate.transcripts import transcribe, word_errors
from pretrain.experiment import Experiment

SHAPE = SoundShape(seconds=0.16, mels=20)
NEEDS = ModelNeeds(("encoder_decoder",), backbone="speech", shape=SHAPE)
UNTIED = {"positions": "learned", "use_bias": True, "tie_embeddings": False}  # or it says again what it read last
SPEECH = dataclasses.replace(CONFIG, architecture="encoder_decoder", **UNTIED)
BOS, LENGTH = 1, 6


@functools.cache
def written(eos: int):
    """Greedy transcripts of three sounds, and what a forward pass over it says comes next."""
    speech, values = model(SPEECH, NEEDS), params(SPEECH, NEEDS, seed=4)
    samples = jax.random.randint(jax.random.key(0), (3, SHAPE.samples), -9000, 9000, jnp.int16)
    samples *= jnp.array([[1], [0], [3]], jnp.int16)  # the second one is silent

    @jax.jit
    def both(values):
        module = speech.module(values)
        tokens_BL = transcribe(module, samples, BOS, eos, vocab_size=CONFIG.vocab_size, length=LENGTH)
        inputs_BL = jnp.concatenate([jnp.full((3, 1), BOS), tokens_BL[:, :-1]], axis=1)
        positions = jnp.broadcast_to(jnp.arange(LENGTH), inputs_BL.shape)
        hidden = module.transcribe(samples, (inputs_BL, jnp.ones_like(inputs_BL), positions)).hidden
        return tokens_BL, jnp.argmax(module.logits(hidden), axis=-1)

    return jax.tree.map(np.asarray, both(values))


def test_each_token_is_the_likeliest_after_those_before():
    tokens, next_tokens = written(eos=-1)
    np.testing.assert_array_equal(tokens, next_tokens)
    assert len(np.unique(tokens)) > 4 and (tokens[0] != tokens[1]).any(), "a model that says one thing would pass"


def test_after_the_end_there_is_nothing():
    free, _ = written(eos=-1)
    eos = int(free[0, 2])
    tokens, _ = written(eos)
    for row, before in zip(tokens, free, strict=True):
        end = int(np.argmax(np.append(before, eos) == eos))
        np.testing.assert_array_equal(row[:end], before[:end])
        assert (row[end:] == eos).all()


def recursion(found: tuple, wanted: tuple) -> int:
    if not found or not wanted:
        return len(found) + len(wanted)
    if found[-1] == wanted[-1]:
        return recursion(found[:-1], wanted[:-1])
    return 1 + min(
        recursion(found[:-1], wanted), recursion(found, wanted[:-1]), recursion(found[:-1], wanted[:-1])
    )  # fmt: skip


@given(st.lists(st.sampled_from("abc"), max_size=5), st.lists(st.sampled_from("abc"), max_size=5))
def test_word_errors_are_the_fewest_changes(found, wanted):
    assert word_errors(found, wanted) == recursion(tuple(found), tuple(wanted)) == word_errors(wanted, found)


def test_word_errors_of_a_sentence():
    assert word_errors(["two", "one"], ["one", "two", "one"]) == 1
    assert word_errors(["one", "nine", "one"], ["one", "two"]) == 2
    assert word_errors([], ["one", "two"]) == 2


def test_a_run_is_scored(tmp_path, capsys):
    small = ["INPUT='tones:40'", "TRAIN_STEPS=2", "BATCH_SIZE=4", "TransformerConfig.embed_dim=16",
             "TransformerConfig.mlp_dim=16", "TransformerConfig.num_heads=2", "VALIDATION_FRACTION=0.3"]  # fmt: skip
    experiment = Experiment.from_gin(["gin_configs/runs/tones_transcription.gin"], small, workdir=str(tmp_path / "run"))
    experiment.curate()
    experiment.cache()
    experiment.train()
    found = experiment.evaluate()
    assert found["words"] > 10 and found["sentences_right"] < 1
    assert found["word_error_rate"] > 0.5, "after two steps"
    assert "word error rate" in capsys.readouterr().err
