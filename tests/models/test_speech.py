"""The encoder of sound: its convolutions against jax's own, its positions, and what the decoder hears."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import CONFIG, model, params

from pretrain.core.objective import ModelNeeds
from pretrain.core.sound import SoundShape
from pretrain.models.convolution import Convolution
from pretrain.models.flops import count_flops
from pretrain.models.positions import sinusoids

SHAPE = SoundShape(seconds=0.16, mels=20)
NEEDS = ModelNeeds(("encoder_decoder",), backbone="speech", shape=SHAPE)
SPEECH = dataclasses.replace(CONFIG, architecture="encoder_decoder", positions="learned", use_bias=True)


@pytest.mark.parametrize(("width", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (10, 5, 0)])
def test_convolutions_are_jax_s(width, stride, padding):
    layer = Convolution(4, 6, CONFIG, width=width, stride=stride, padding=padding, rngs=nnx.Rngs(0))
    x_BLC = jax.random.normal(jax.random.key(1), (2, 40, 4))
    expected = jax.lax.conv_general_dilated(
        x_BLC, layer.matrix.kernel[...], (stride,), [(padding, padding)], dimension_numbers=("NWC", "WIO", "NWC"),
        precision=jax.lax.Precision.HIGHEST,
    )  # fmt: skip
    layer.matrix.bias[...] += 0.5
    np.testing.assert_allclose(layer(x_BLC), expected + 0.5, rtol=1e-5, atol=1e-5)


def test_positions_are_whisper_s():
    """Its wavelengths rise by one factor from 2 pi to 10,000 * 2 pi, the ends included."""
    found = sinusoids(jnp.arange(7), 8, closed=True)
    angles = np.arange(7)[:, None] * np.exp(-np.log(10_000) / 3 * np.arange(4))
    np.testing.assert_allclose(found, np.concatenate([np.sin(angles), np.cos(angles)], axis=1), atol=1e-6)


def test_keys_without_biases():
    shapes = model(dataclasses.replace(SPEECH, key_bias=False), NEEDS).shapes["decoder"]["blocks"]
    for part in ("attention", "cross"):
        assert [name for name in shapes[part] if "bias" in shapes[part][name]] == ["out", "query", "value"]


def test_flops_count_the_encoder_s_own_length():
    """Of a text of 10 tokens beside 40 hidden states of sound: as many as of all, a token."""
    found, even = count_flops(SPEECH, 10, 10, 40), count_flops(SPEECH, 40, 10)
    for part in ("attention_projections", "attention_scores", "mlp", "head"):
        assert getattr(found, part) == pytest.approx(4 * getattr(even, part), abs=4)


def test_what_the_decoder_hears_and_reads():
    """All of the sound, its end too, at every word; no later word; and nothing of another row."""
    speech, values = model(SPEECH, NEEDS), params(SPEECH, NEEDS)

    @jax.jit
    def hidden(samples_BT, tokens_BL):
        ones_BL = jnp.ones_like(tokens_BL)
        text = tokens_BL, ones_BL, jnp.broadcast_to(jnp.arange(5), tokens_BL.shape)
        return speech.module(values).transcribe(samples_BT, text).hidden

    rng = np.random.default_rng(0)
    samples, tokens = rng.integers(-9999, 9999, (2, SHAPE.samples), np.int16), rng.integers(4, 60, (2, 5), np.int32)
    first = np.asarray(hidden(samples, tokens))
    assert first.shape == (2, 5, 32) and np.isfinite(first).all()
    louder = samples.copy()
    louder[0, -200:] = 20_000
    changed = np.abs(np.asarray(hidden(louder, tokens)) - first).max(axis=-1)
    assert (changed[0] > 1e-4).all() and (changed[1] == 0).all()
    tokens[0, 3] += 1
    changed = np.abs(np.asarray(hidden(samples, tokens)) - first).max(axis=-1)
    assert (changed[0, :3] == 0).all() and (changed[0, 3:] > 1e-4).all() and (changed[1] == 0).all()
