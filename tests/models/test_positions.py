"""Kinds of positions against their published formulas, one number at a time."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import numpy_transformer as reference
import pytest
from tiny import CONFIG

from pretrain.core.errors import UserError
from pretrain.models.config import RopeScaling
from pretrain.models.positions import alibi_slopes, relative_buckets, rotary_frequencies, sinusoids


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (8, 20)])
def test_buckets_are_t5s(causal, buckets, farthest):
    config = dataclasses.replace(CONFIG, relative_buckets=buckets, relative_distance=farthest)
    distances = np.arange(-300, 301)
    found = relative_buckets(jnp.asarray(distances)[None], buckets, farthest, two_sided=not causal)[0]
    assert found.tolist() == [reference.bucket(int(d), config, causal=causal) for d in distances]
    assert found.max() == buckets - 1


def test_alibi_slopes_are_the_published_ones():
    np.testing.assert_allclose(alibi_slopes(8), [2.0**-i for i in range(1, 9)])
    np.testing.assert_allclose(alibi_slopes(12)[8:], [2.0 ** (-0.5 * i) for i in (1, 3, 5, 7)], rtol=1e-6)


def test_sinusoids_turn_once_in_two_pi_and_ever_slower():
    table = np.asarray(sinusoids(jnp.arange(50)[None], 8))[0]
    np.testing.assert_allclose(table[:, 0], np.sin(np.arange(50)), atol=1e-5)
    np.testing.assert_allclose(table[:, 5], np.cos(np.arange(50) / 10), atol=1e-5)


def test_llama3_keeps_short_wavelengths_and_stretches_long_ones():
    plain, _ = rotary_frequencies(128, 500_000.0)
    scaled, factor = rotary_frequencies(128, 500_000.0, RopeScaling("llama3", 8.0, 8192, 1.0, 4.0))
    wavelength = 2 * math.pi / plain
    short, long = wavelength < 8192 / 4, wavelength > 8192
    assert factor == 1 and short.any() and long.any() and not (short | long).all()
    np.testing.assert_allclose(scaled[short], plain[short])
    np.testing.assert_allclose(scaled[long], plain[long] / 8)
    between = ~(short | long)
    assert ((scaled < plain) & (scaled > plain / 8))[between].all()


def test_other_scalings():
    plain, _ = rotary_frequencies(64, 10_000.0)
    np.testing.assert_allclose(rotary_frequencies(64, 10_000.0, RopeScaling("linear", 4.0))[0], plain / 4)
    ntk, _ = rotary_frequencies(64, 10_000.0, RopeScaling("ntk", 4.0))
    assert ntk[0] == plain[0]
    np.testing.assert_allclose(ntk[-1], plain[-1] / 4)  # the slowest turns as if interpolated, the fastest as before
    yarn, factor = rotary_frequencies(64, 10_000.0, RopeScaling("yarn", 4.0, 2048, 1.0, 32.0))
    np.testing.assert_allclose(factor, 0.1 * math.log(4) + 1)
    assert yarn[0] == plain[0] and yarn[-1] == plain[-1] / 4 and (np.diff(yarn) < 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"factor": 0.5}, "factor"), ({"slow": 5.0}, "slow < fast"), ({"original_length": 0}, "original_length")],
)
def test_scalings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        RopeScaling(**changes)


def test_settings_that_need_others():
    with pytest.raises(UserError, match="rope_scaling goes with"):
        dataclasses.replace(CONFIG, positions="learned", rope_scaling=RopeScaling())
    with pytest.raises(UserError, match="global_every goes with"):
        dataclasses.replace(CONFIG, global_every=2)
