"""Pictures as arrays: decoding with Pillow, and the crops, flips and colours that training changes them by.

All on the host, in numpy and Pillow, pure in (picture, random generator). Pictures are uint8 [height, width, channels].
"""

import io
import warnings

import numpy as np
from PIL import Image, ImageEnhance

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
MAX_PIXELS = 178_956_970  # of a picture, as Pillow warns at: what is larger is a mistake or a decompression bomb
Resample = Image.Resampling


class BrokenImage(ValueError):
    """Bytes that are no picture, or a damaged one."""


def read_size(data: bytes) -> tuple[int, int]:
    """Height and width of an encoded picture, from its header alone.

    Raises:
        BrokenImage: no picture, or larger than `MAX_PIXELS`.
    """
    with _open(data) as image:
        return image.height, image.width


def decode(data: bytes | np.ndarray, channels: int = 3) -> np.ndarray:
    """An encoded picture (any format that Pillow reads) as uint8 [height, width, channels].

    Args:
        data: the file's bytes, or these as uint8 [bytes].
        channels: 1 (grey), 3 (RGB) or 4 (with alpha); a transparent picture in 1 or 3 lies on white.

    Raises:
        BrokenImage: no picture, a damaged or truncated one, or one larger than `MAX_PIXELS`.
    """
    try:
        with _open(bytes(data)) as image:
            if channels < 4 and (image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info):
                clear = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
            array = np.asarray(image.convert(MODES[channels]))
    except BrokenImage:
        raise
    except Exception as error:  # plugins raise whatever they meet in damaged data
        raise BrokenImage(f"a damaged picture: {error}") from error
    return array.reshape(*array.shape[:2], channels)


def _open(data: bytes) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of decompression bombs, which are refused here, and of odd metadata
            image = Image.open(io.BytesIO(data))
    except Exception as error:  # UnidentifiedImageError, DecompressionBombError, and what plugins raise
        raise BrokenImage(f"no picture: {type(error).__name__}") from error
    if image.width * image.height > MAX_PIXELS:
        raise BrokenImage(f"a picture of {image.width} x {image.height} pixels; {MAX_PIXELS:,} are allowed")
    return image


def encode(image: np.ndarray, kind: str = "PNG") -> bytes:
    """uint8 [height, width, channels] as a file."""
    buffer = io.BytesIO()
    _picture(image).save(buffer, kind)
    return buffer.getvalue()


def _picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def resize(
    image: np.ndarray, height: int, width: int, *, box: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    """Bicubic, with the filter as wide as the reduction asks; `box` is the part to take: left, top, right, bottom."""
    if box is None and image.shape[:2] == (height, width):
        return image
    resized = np.asarray(_picture(image).resize((width, height), Resample.BICUBIC, box=box))
    return resized.reshape(height, width, image.shape[-1])


def resize_to_square(image: np.ndarray, size: int) -> np.ndarray:
    """The middle square of a picture, resized: how pictures are shown in evaluation."""
    height, width = image.shape[:2]
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    return resize(image, size, size, box=(left, top, left + side, top + side))


def random_resized_crop(
    image: np.ndarray, size: int, rng: np.random.Generator, *, area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> np.ndarray:  # fmt: skip
    """A random part of a picture as a square (Szegedy et al. 2014).

    Args:
        image: uint8 [height, width, channels].
        size: side of the result, in pixels.
        rng: draws.
        area: least and largest share of the picture's area.
        aspect: least and largest width / height; drawn on a logarithmic scale.
    """
    height, width = image.shape[:2]
    share, ratio = rng.uniform(*area), np.exp(rng.uniform(*np.log(aspect)))
    crop_width = min(width, np.sqrt(height * width * share * ratio))
    crop_height = min(height, np.sqrt(height * width * share / ratio))
    left, top = rng.uniform(0, width - crop_width), rng.uniform(0, height - crop_height)
    return resize(image, size, size, box=(left, top, left + crop_width, top + crop_height))


def random_flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture or, as often, its mirror image."""
    return image[:, ::-1] if rng.random() < 0.5 else image


def random_colours(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast and saturation changed by up to 0.8 * `strength`, in random order (Chen et al. 2020).

    A grey picture has no saturation to change. The hue stays.
    """
    if strength == 0:
        return image
    changes = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color][: 3 if image.shape[-1] == 3 else 2]
    picture = _picture(image)
    for which in rng.permutation(len(changes)):
        picture = changes[which](picture).enhance(max(0.0, 1 + 0.8 * strength * rng.uniform(-1, 1)))
    return np.asarray(picture).reshape(image.shape)


def random_grey(image: np.ndarray, probability: float, rng: np.random.Generator) -> np.ndarray:
    """With some probability the picture without its colours, in as many channels."""
    if image.shape[-1] == 1 or rng.random() >= probability:
        return image
    return np.repeat(np.asarray(_picture(image).convert("L"))[..., None], image.shape[-1], axis=-1)
