"""The log-mel spectrogram that Whisper hears (Radford et al. 2022, section 2.2), computed inside the step.

On the device, because a batch then holds samples as they are, int16: the bytes of a spectrogram of 80 bands of floats,
the same batch for models that hear samples, and no work for the hosts. The Fourier transform of windows of 400 is a
product with a matrix, which accelerators do best and which splits over a mesh with its rows: 1 GFLOP for 30 seconds, a
thirtieth of the smallest model's forward pass.

Axes: B batch · T samples · L frames · W samples of a window · F frequencies · M mel bands.
"""

import jax
import jax.numpy as jnp
import numpy as np

from pretrain.core.sound import HOP, RATE, WINDOW

BLOCK = 80  # samples; windows and hops are made of whole blocks
LINEAR, STEP = 200 / 3, np.log(6.4) / 27  # Slaney's scale: Hz a mel below 1 kHz, and logarithm of the ratio above
EXACT = jax.lax.Precision.HIGHEST  # float32 on accelerators too; powers range over eight decades


def hz_to_mel(hz: np.ndarray) -> np.ndarray:
    """Slaney's mel scale (Auditory Toolbox, 1998): linear up to 1 kHz, which is 15 mel, and logarithmic above."""
    return np.where(hz < 1000, hz / LINEAR, 15 + np.log(np.maximum(hz, 1000) / 1000) / STEP)


def mel_to_hz(mel: np.ndarray) -> np.ndarray:
    """The inverse of `hz_to_mel`."""
    return np.where(mel < 15, mel * LINEAR, 1000 * np.exp((np.maximum(mel, 15) - 15) * STEP))


def mel_filters(mels: int) -> np.ndarray:
    """Triangles of one area each, evenly spaced on the mel scale from 0 to 8 kHz: float64 [201, mels]."""
    edges = mel_to_hz(np.linspace(0, hz_to_mel(np.float64(RATE / 2)), mels + 2))
    hz_F1 = np.fft.rfftfreq(WINDOW, 1 / RATE)[:, None]
    rising_FM = (hz_F1 - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling_FM = (edges[2:] - hz_F1) / (edges[2:] - edges[1:-1])
    return np.maximum(np.minimum(rising_FM, falling_FM), 0) * 2 / (edges[2:] - edges[:-2])


def fourier_matrices() -> tuple[np.ndarray, np.ndarray]:
    """Real and imaginary part of the transform of a window under Hann's (periodic) weights, float64 [400, 201] each."""
    places_W1, numbers_F = np.arange(WINDOW)[:, None], np.arange(WINDOW // 2 + 1)
    hann_W1 = 0.5 - 0.5 * np.cos(2 * np.pi * places_W1 / WINDOW)
    angles_WF = 2 * np.pi * (places_W1 * numbers_F % WINDOW) / WINDOW
    return hann_W1 * np.cos(angles_WF), -hann_W1 * np.sin(angles_WF)


def windows(samples_BT: jax.Array) -> jax.Array:
    """Windows of 400 samples around every 160th, [B, T / 160, W]; beyond the ends the sound is mirrored."""
    batch, samples = samples_BT.shape
    edge = WINDOW // 2
    x = jnp.pad(samples_BT, ((0, 0), (edge, edge)), mode="reflect").reshape(batch, -1, BLOCK)
    hop, frames = HOP // BLOCK, samples // HOP
    return jnp.concatenate([x[:, i : i + hop * frames : hop] for i in range(WINDOW // BLOCK)], axis=-1)


def log_mel(samples_BT: jax.Array, mels: int) -> jax.Array:
    """Loudness by frame and band, about -1 to 1: float32 [B, T / 160, mels].

    Logarithms of powers, cut off 8 decades below the loudest of the recording, then (x + 4) / 4.

    Args:
        samples_BT: int16, as many as whole hops of 160.
        mels: number of bands.
    """
    x_BLW = windows(samples_BT.astype(jnp.float32) / 32768)
    cos_WF, sin_WF = (jnp.asarray(matrix, jnp.float32) for matrix in fourier_matrices())
    real_BLF, imaginary_BLF = (jnp.matmul(x_BLW, matrix, precision=EXACT) for matrix in (cos_WF, sin_WF))
    filters_FM = jnp.asarray(mel_filters(mels), jnp.float32)
    power_BLM = jnp.matmul(jnp.square(real_BLF) + jnp.square(imaginary_BLF), filters_FM, precision=EXACT)
    x_BLM = jnp.log10(jnp.maximum(power_BLM, 1e-10))
    return (jnp.maximum(x_BLM, jnp.max(x_BLM, axis=(1, 2), keepdims=True) - 8) + 4) / 4
