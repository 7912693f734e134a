"""Sound as arrays: WAV files read to 16 kHz, and how much of it a model hears.

All on the host, in numpy. Samples are int16 [samples], one channel, until they are on the device.
"""

import dataclasses
import io
import math
import warnings
from typing import Any

import gin
import numpy as np

from pretrain.core.errors import check
from pretrain.core.fields import check_fields

RATE = 16_000  # samples a second, everywhere behind `decode`
WINDOW, HOP = 400, 160  # samples: 25 and 10 ms
RATES = 1_000, 400_000  # of files; what lies beyond is a mistake, and resampling it could take any memory
UNKNOWN_SIZE = 0x7FFF_0000  # what writes to a pipe declares this many bytes or more, not knowing how many will come


class BrokenSound(ValueError):
    """Bytes that are no sound, or a damaged one."""


@gin.configurable
@dataclasses.dataclass(frozen=True)
class SoundShape:
    """How much sound a model hears at once, and how finely.

    Attributes:
        seconds: length of a recording; behind a shorter one there is silence.
        mels: bands of the log-mel spectrogram: 80 in Whisper, 128 in its version large-v3.
    """

    seconds: float = 30.0
    mels: int = 80

    def __post_init__(self):
        check_fields(self)
        check(self.mels > 0, f"SoundShape.mels must be > 0, got {self.mels}")
        pairs = self.seconds * RATE / (2 * HOP)  # of frames
        check(
            pairs >= 2 and abs(pairs - round(pairs)) < 1e-6,
            f"SoundShape.seconds must be a multiple of 0.02, and 0.04 or more, got {self.seconds}",
        )

    @property
    def samples(self) -> int:
        """Samples of a recording."""
        return round(self.seconds * RATE)

    @property
    def frames(self) -> int:
        """Frames of its spectrogram, one every 10 ms."""
        return self.samples // HOP


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Waves:
    """How a model hears samples without a spectrogram (wav2vec 2.0, Baevski et al. 2020).

    Attributes:
        seconds: length of a recording; of a longer one a part is heard, behind a shorter one there is silence.
        channels: of the convolutions.
        convolutions: (width, stride) of each.
        position_width, position_groups: of the convolution that says where a frame stands.
        codebooks, entries: a frame's code has one of `entries` vectors out of each of `codebooks`.
        code_dim: size of a code.
        joint_dim: of the space where what was said of a hidden frame meets codes.
    """

    seconds: float = 15.6
    channels: int = 512
    convolutions: tuple[tuple[int, int], ...] = ((10, 5), *[(3, 2)] * 4, *[(2, 2)] * 2)
    position_width: int = 128
    position_groups: int = 16
    codebooks: int = 2
    entries: int = 320
    code_dim: int = 256
    joint_dim: int = 256

    def __post_init__(self):
        check_fields(self)
        for name in ("channels", "position_width", "position_groups", "codebooks", "entries", "code_dim", "joint_dim"):
            check(getattr(self, name) > 0, f"Waves.{name} must be > 0, got {getattr(self, name)}")
        check(
            len(self.convolutions) > 0 and all(len(each) == 2 and min(each) > 0 for each in self.convolutions),
            f"Waves.convolutions are pairs of width and stride, got {self.convolutions}",
        )
        check(
            self.code_dim % self.codebooks == 0,
            f"Waves.code_dim ({self.code_dim}) must be a multiple of codebooks ({self.codebooks})",
        )
        check(self.frames(self.samples) >= 3, f"Waves.seconds: {self.seconds} seconds have less than 3 frames")

    @property
    def samples(self) -> int:
        """Samples of a recording."""
        return round(self.seconds * RATE)

    def frames(self, samples: Any) -> Any:
        """Frames that convolutions make of so many samples (integers, or an array of them), 49 a second by default."""
        for width, stride in self.convolutions:
            samples = (samples - width) // stride + 1
        return samples * (samples > 0)


def read_wav(data: bytes) -> tuple[np.ndarray, int]:
    """Samples of a WAV file, float32 [samples, channels] from -1 to 1, and their rate in Hz.

    Raises:
        BrokenSound: no WAV file, a damaged or truncated one, or one of a strange rate.
    """
    from scipy.io import wavfile  # here: it is slow to import, and training on text does without it

    if data[:4] not in (b"RIFF", b"RIFX", b"RF64") or data[8:12] != b"WAVE":
        raise BrokenSound("no WAV file")
    declared = int.from_bytes(data[4:8], "big" if data[:4] == b"RIFX" else "little") + 8
    if len(data) < declared < UNKNOWN_SIZE and data[:4] != b"RF64":
        raise BrokenSound(f"a truncated WAV file: {len(data):,} bytes of {declared:,}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of chunks that hold no sound
            rate, samples = wavfile.read(io.BytesIO(data))
    except Exception as error:  # scipy raises whatever it meets in damaged data
        raise BrokenSound(f"a damaged WAV file: {error}") from error
    if not RATES[0] <= rate <= RATES[1]:
        raise BrokenSound(f"a WAV file of {rate:,} samples a second; from {RATES[0]:,} to {RATES[1]:,} are read")
    samples = samples[:, None] if samples.ndim == 1 else samples
    if samples.dtype.kind != "f":
        is_unsigned = samples.dtype == np.uint8
        samples = (samples.astype(np.float32) - 128 * is_unsigned) / 2.0 ** (8 * samples.itemsize - 1)
    if not np.isfinite(samples).all():
        raise BrokenSound("a WAV file with samples that are no numbers")
    return samples.astype(np.float32), rate


def decode(stored: bytes | np.ndarray) -> np.ndarray:
    """A recording as int16 [samples], one channel, 16 kHz.

    Args:
        stored: a WAV file's bytes, or these as uint8 [bytes]; or samples at 16 kHz, int16 or float [samples].

    Raises:
        BrokenSound: it cannot be decoded.
    """
    if isinstance(stored, np.ndarray) and stored.dtype != np.uint8:
        if stored.ndim != 1 or stored.dtype.name not in ("int16", "float32", "float64"):
            raise BrokenSound(f"samples of {stored.dtype.name} {list(stored.shape)}, not int16 or float32 [samples]")
        return stored if stored.dtype == np.int16 else _rounded(stored)
    samples, rate = read_wav(bytes(stored))
    return _rounded(resample(samples.mean(axis=1), rate))


def resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """Samples at another rate, float [samples], as samples at 16 kHz; what is too high for that is filtered out."""
    if rate == RATE or not len(samples):
        return samples
    from scipy.signal import resample_poly

    common = math.gcd(rate, RATE)
    return resample_poly(samples, RATE // common, rate // common)


def _rounded(samples: np.ndarray) -> np.ndarray:
    return np.round(np.clip(samples, -1, 1) * 32767).astype(np.int16)


def encode(samples: np.ndarray, rate: int = RATE) -> bytes:
    """int16 or float32 [samples] or [samples, channels] as a WAV file."""
    from scipy.io import wavfile

    buffer = io.BytesIO()
    wavfile.write(buffer, rate, samples)
    return buffer.getvalue()


def padded(samples: np.ndarray, length: int) -> np.ndarray:
    """Samples with silence behind them, int16 [length].

    Raises:
        BrokenSound: there are none, or more than `length`.
    """
    if not 0 < len(samples) <= length:
        raise BrokenSound(f"{len(samples) / RATE:.1f} seconds; there must be some, at most {length / RATE:.1f}")
    return np.pad(samples, (0, length - len(samples)))
