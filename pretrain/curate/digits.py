"""Handwritten digits that come with scikit-learn, as pictures with a class, and as films in which they move.

    digits:pictures     1,797 documents: `image` uint8 [8, 8, 1], `label` int32 [1]; the text is the digit's name
    digits:600          600 films: `frames` uint8 [16, 32, 32, 1] of two digits that bounce off the walls (after
                        Srivastava et al. 2015, "Moving MNIST"); each follows from its number alone

scikit-learn comes with the extra [digits].
"""

import json
from collections.abc import Iterator

import numpy as np

from pretrain.core.arrays import to_bytes
from pretrain.core.errors import UserError, check
from pretrain.core.rng import host_rng
from pretrain.curate.documents import Record
from pretrain.curate.inputs import InputFile
from pretrain.curate.readers import Fields

FORMAT, PICTURES = "digits", "pictures"
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
UNIT = 100  # films read together
STEPS, FIELD, SIDE, FASTEST = 16, 32, 8, 3  # frames of a film; pixels of a frame's and a digit's side; pixels a frame


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """All digits, uint8 [1797, 8, 8], and which they are, int32 [1797].

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise UserError("--input=digits needs scikit-learn: pip install 'pretrain[digits]'") from error
    found = datasets.load_digits()
    return np.round(found.images * (255 / 16)).astype(np.uint8), found.target.astype(np.int32)


def find_parts(given: str, source: str) -> list[InputFile]:
    """Units of work for `digits:pictures` or `digits:FILMS`.

    Raises:
        UserError: neither.
    """
    if given == PICTURES:
        return [InputFile(f"{FORMAT}:{PICTURES}", 1797 * SIDE**2, source, FORMAT)]
    check(
        given.isdigit() and int(given) > 0,
        f"--input=digits:{given}: write digits:pictures, or digits:FILMS, e.g. digits:600",
    )
    ends = range(0, int(given), UNIT)
    size = UNIT * STEPS * FIELD**2
    return [InputFile(f"{FORMAT}:{start}-{min(start + UNIT, int(given))}", size, source, FORMAT) for start in ends]


def read_part(file: InputFile, fields: Fields) -> Iterator[Record]:
    """Pictures or films, each a document."""
    del fields
    images, labels = load_digits()
    part = file.path.partition(":")[2]
    if part == PICTURES:
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            arrays = {"image": to_bytes(image[..., None]), "label": to_bytes(np.array([label], np.int32))}
            yield Record(NAMES[label], f"{FORMAT}/{number}", arrays=arrays)
        return
    first, last = map(int, part.split("-"))
    for number in range(first, last):
        rng = host_rng(0, "moving digits", number)
        chosen = rng.choice(len(images), 2, replace=False)
        told = json.dumps({"digits": labels[chosen].tolist()})
        frames, _ = film(images[chosen], rng)
        yield Record("", f"{FORMAT}/film/{number}", metadata=told, arrays={"frames": to_bytes(frames)})


def film(digits: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Digits uint8 [n, 8, 8] that move evenly and bounce: uint8 [16, 32, 32, 1]; the lighter one is in front.

    Beside it by how many rows and columns each moves a frame, before it bounces, int [n, 2].
    """
    room = FIELD - SIDE
    starts = rng.integers(0, room + 1, (len(digits), 2))
    speeds = rng.integers(1, FASTEST + 1, (len(digits), 2)) * rng.choice([-1, 1], (len(digits), 2))
    frames = np.zeros((STEPS, FIELD, FIELD), np.uint8)
    for step, frame in enumerate(frames):
        unfolded = (starts + speeds * step) % (2 * room)
        for digit, (row, column) in zip(digits, np.minimum(unfolded, 2 * room - unfolded), strict=True):
            seen = frame[row : row + SIDE, column : column + SIDE]
            np.maximum(seen, digit, out=seen)
    return frames[..., None], speeds
