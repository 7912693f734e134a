"""The log-mel spectrogram against a direct Fourier sum in float64, written from the paper's words alone."""

import math

import jax
import numpy as np
import pytest

from pretrain.core.sound import RATE, SoundShape
from pretrain.models.log_mel import hz_to_mel, log_mel, mel_filters, mel_to_hz

heard = jax.jit(log_mel, static_argnums=1)


def slaney(mel: float) -> float:
    """Hz of a mel."""
    return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)


def band(hz: float, low: float, middle: float, high: float) -> float:
    """A triangle of area 1."""
    if not low < hz < high:
        return 0.0
    share = (hz - low) / (middle - low) if hz <= middle else (high - hz) / (high - middle)
    return share * 2 / (high - low)


def reference(samples: np.ndarray, mels: int) -> np.ndarray:
    """float64 [frames, mels]: a sum over 400 samples for every frame and frequency."""
    x = np.pad(samples.astype(np.float64) / 32768, 200, mode="reflect")
    hann = np.array([math.sin(math.pi * n / 400) ** 2 for n in range(400)])
    waves = np.exp(-2j * np.pi * np.outer(np.arange(201), np.arange(400)) / 400)
    powers = np.array([np.abs(waves @ (hann * x[start : start + 400])) ** 2 for start in range(0, len(samples), 160)])
    top = 15 + 27 * math.log(8) / math.log(6.4)
    edges = [slaney(top * n / (mels + 1)) for n in range(mels + 2)]
    filters = np.array([[band(40.0 * k, *edges[m : m + 3]) for k in range(201)] for m in range(mels)])
    logarithms = np.log10(np.maximum(powers @ filters.T, 1e-10))
    return (np.maximum(logarithms, logarithms.max() - 8) + 4) / 4


def sounds() -> np.ndarray:
    """A glide, noise that ends in silence, silence with one click, and silence: int16 [4, 3200]."""
    rng, time = np.random.default_rng(0), np.arange(3200) / RATE
    glide = 12_000 * np.sin(2 * np.pi * (200 + 8_000 * time) * time)
    noise = rng.normal(size=3200) * 3_000 * (time < 0.1)
    click = np.where(np.arange(3200) == 1000, 20_000, 0)
    return np.stack([glide, noise, click, np.zeros(3200)]).astype(np.int16)


@pytest.mark.parametrize("mels", [80, 128])
def test_equals_a_direct_sum_in_float64(mels):
    found = heard(sounds(), mels)
    assert found.shape == (4, 20, mels) and found.dtype == np.float32
    for row, samples in enumerate(sounds()):
        expected = reference(samples, mels)
        far = np.abs(found[row] - expected).max()
        assert far < 1e-4, (row, far)


def test_each_row_is_cut_off_below_its_own_loudest():
    found, louder = np.asarray(heard(sounds(), 80)), sounds()
    louder[0] *= 2
    assert found[0].max() - found[0].min() <= 2 + 1e-6  # 8 decades over 4
    assert (found[3] == (-10 + 4) / 4).all()
    again = np.asarray(heard(louder, 80))
    np.testing.assert_array_equal(again[1:], found[1:])
    np.testing.assert_allclose(again[0], found[0] + math.log10(4) / 4, atol=1e-5)


def test_the_mel_scale_and_its_filters():
    hz = np.array([0.0, 500.0, 1000.0, 2000.0, 6400.0, 8000.0])
    np.testing.assert_allclose(mel_to_hz(hz_to_mel(hz)), hz, rtol=1e-12)
    np.testing.assert_allclose(hz_to_mel(np.array([1000.0, 6400.0])), [15, 42])
    filters = mel_filters(80)
    assert filters.shape == (201, 80) and (filters >= 0).all() and (filters.max(axis=0) > 0).all()
    np.testing.assert_allclose(filters[:, 40:].sum(axis=0) * 40, 1, rtol=0.1)  # area one, where bands are wide
    assert not mel_filters(300).any(axis=0).all(), "bands narrower than a frequency hear nothing: 80 and 128 do not"
    assert mel_filters(128).any(axis=0).all()


def test_shapes():
    assert (SoundShape().samples, SoundShape().frames) == (480_000, 3000)
