"""The encoder of sound samples: its parts against plain sums, what it sees of hidden frames, and its codes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import CONFIG, model, params

from pretrain.core.objective import ModelNeeds
from pretrain.core.sound import Waves
from pretrain.models.layers import ACTIVATIONS
from pretrain.models.wave import DECAY, FIRST, LAST, ChannelNorm, Codes, Places

WAVES = Waves(
    seconds=0.18, channels=16, position_width=4, position_groups=2, entries=8, code_dim=8, joint_dim=8,
    convolutions=((10, 5), (4, 4), (4, 4), (2, 2)),
)  # fmt: skip
NEEDS = ModelNeeds(("encoder",), backbone="wave", shape=WAVES)
SOUND = dataclasses.replace(
    CONFIG, architecture="encoder", positions="none", use_bias=True, norm="layernorm", norm_position="post"
)
FRAMES = WAVES.frames(WAVES.samples)


@pytest.fixture(scope="module")
def heard():
    """(samples, lengths, valid, hidden, noise) -> `Heard`, of one tiny model."""
    encoder, values = model(SOUND, NEEDS), params(SOUND, NEEDS)
    return jax.jit(lambda *arrays: encoder.module(values)(*arrays))


def recordings(rows: int = 2) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    samples = rng.integers(-9000, 9000, (rows, WAVES.samples)).astype(np.int16)
    hidden = np.zeros((rows, FRAMES), bool)
    hidden[:, 3:6] = True
    lengths = np.full(rows, WAVES.samples, np.int32)
    return samples, lengths, np.ones_like(hidden), hidden, np.arange(rows, dtype=np.int32)


def test_frames_are_those_of_the_paper():
    """About 49 a second, and a first one of 400 samples, 25 ms."""
    waves = Waves()
    assert [waves.frames(n) for n in (0, 399, 400, 719, 720, 16_000, 250_000)] == [0, 0, 1, 1, 2, 49, 781]
    np.testing.assert_array_equal(waves.frames(np.array([399, 16_000])), [0, 49])


def test_a_channel_is_normed_over_time():
    x_BLC = np.random.default_rng(0).normal(3, 2, (2, 50, 4)).astype(np.float32)
    found = ChannelNorm(4, CONFIG)(x_BLC)
    np.testing.assert_allclose(found, (x_BLC - x_BLC.mean(1, keepdims=True)) / x_BLC.std(1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize("width", [4, 5])
def test_places_are_a_sum_over_neighbours_of_the_same_group(width):
    """In float64; the kernel of each place of the width has the length that is learned for it."""
    waves, config = dataclasses.replace(WAVES, position_width=width), dataclasses.replace(SOUND, embed_dim=8)
    layer = Places(config, waves, rngs=nnx.Rngs(0))
    layer.lengths[...] *= 1.5
    x_LD = np.random.default_rng(0).normal(size=(9, 8))
    kernel = 1.5 * np.asarray(layer.kernel[...], np.float64)
    expected = np.zeros((9, 8))
    for place in range(9):
        for tap in range(width):
            at = place + tap - width // 2
            for out in range(8):
                group = slice(out // 4 * 4, out // 4 * 4 + 4)
                expected[place, out] += x_LD[at, group] @ kernel[tap, :, out] if 0 <= at < 9 else 0
    expected = ACTIVATIONS["gelu_erf"](jnp.asarray(expected, jnp.float32))
    np.testing.assert_allclose(layer(jnp.asarray(x_LD, jnp.float32)[None])[0], expected, atol=1e-5)


def test_codes_are_entries_and_chances_have_no_noise():
    """More often the likelier ones; the gradient is that of the soft choice; a small temperature chooses the same."""
    codes = Codes(SOUND, WAVES, rngs=nnx.Rngs(0))
    x_BLC = jax.random.normal(jax.random.key(0), (64, 5, WAVES.channels)) / 16
    x_BLC = jnp.broadcast_to(x_BLC[:1], x_BLC.shape)
    joint_BLJ, chosen_BLG, chances_BLGV = codes(x_BLC, jnp.arange(64))
    picked = np.asarray(codes.entries[...])[np.arange(2), np.asarray(chosen_BLG)].reshape(64, 5, -1)
    np.testing.assert_allclose(joint_BLJ, codes.joint(picked), atol=1e-5)
    np.testing.assert_allclose(chances_BLGV, jax.nn.softmax(codes.scores(x_BLC)), atol=1e-6)
    drawn = np.zeros(chances_BLGV.shape[1:])
    for place, group in np.ndindex(5, 2):
        drawn[place, group] = np.bincount(chosen_BLG[:, place, group], minlength=WAVES.entries) / 64
    np.testing.assert_allclose(drawn, chances_BLGV[0], atol=0.25)
    gradient = jax.grad(lambda x: codes(x, jnp.arange(64))[0].sum())(x_BLC)
    assert np.abs(gradient).max() > 0


def test_a_hidden_frame_is_not_seen():
    """Whatever it holds, all hidden states stay; shown, it changes its own and those of others."""
    encoder, values = model(SOUND, NEEDS), params(SOUND, NEEDS)
    x_BLC = np.random.default_rng(0).normal(size=(1, FRAMES, WAVES.channels)).astype(np.float32)
    hidden_BL = np.arange(FRAMES)[None] == 4
    other_BLC = np.where(hidden_BL[..., None], -x_BLC, x_BLC)
    encode = jax.jit(lambda x, hidden: encoder.module(values).encode(x, np.ones((1, FRAMES), bool), hidden))
    np.testing.assert_array_equal(encode(x_BLC, hidden_BL), encode(other_BLC, hidden_BL))
    apart_L = np.abs(encode(x_BLC, np.zeros_like(hidden_BL)) - encode(other_BLC, np.zeros_like(hidden_BL))).max(
        axis=(0, 2)
    )
    assert (apart_L > 1e-4).all()


def test_codes_are_made_of_what_is_there(heard):
    samples, lengths, valid, hidden, noise = recordings()
    before, shown = (heard(samples, lengths, valid, where, noise) for where in (hidden, np.zeros_like(hidden)))
    assert np.abs(before.said_BLJ - shown.said_BLJ).max() > 1e-3
    np.testing.assert_array_equal(before.codes_BLJ, shown.codes_BLJ)


def test_silence_behind_a_recording_is_no_frame(heard):
    """Nor is another row's sound heard."""
    samples, lengths, valid, hidden, noise = recordings()
    valid[0, 8:], lengths[0] = False, WAVES.samples - 100
    expected = heard(samples, lengths, valid, hidden, noise)
    other = samples.copy()
    other[1] = other[1, ::-1]
    found = heard(other, lengths, valid, hidden, noise)
    np.testing.assert_allclose(found.said_BLJ[0], expected.said_BLJ[0], atol=1e-6)
    assert np.abs(found.said_BLJ[1] - expected.said_BLJ[1]).max() > 1e-3


def test_the_choice_cools_after_each_update():
    encoder, values = model(SOUND, NEEDS), params(SOUND, NEEDS)
    values["codes"]["temperature"] = jnp.float32(FIRST)
    assert float(encoder.advance(values, {})["codes"]["temperature"]) == pytest.approx(FIRST * DECAY, rel=1e-6)
    values["codes"]["temperature"] = jnp.float32(LAST)
    assert float(encoder.advance(values, {})["codes"]["temperature"]) == LAST
