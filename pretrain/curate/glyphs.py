"""Pictures with captions that are there offline: the glyphs of matplotlib's bundled fonts, and their Unicode names.

    glyphs             every face of the DejaVu and STIX families, about 53,000 pairs
    glyphs:PATTERN     faces by file name: "glyphs:DejaVuSans*", "glyphs:STIXGeneral"
    letters[:PATTERN]  of these, capital letters, bare, with accents and of mathematical alphabets, about 5,000, with a
                       class: `label` int32 [1], 0 for A to 25 for Z

A caption is the character's name in small letters, "greek small letter alpha". One face is one unit of work. Characters
of one code point are a group, whatever the face: a glyph of the validation split was never seen in any face.
"""

import fnmatch
import functools
import json
import os
import unicodedata
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pretrain.core.arrays import to_bytes
from pretrain.core.errors import check
from pretrain.core.images import encode
from pretrain.curate.documents import Record, Unreadable
from pretrain.curate.inputs import InputFile

FORMAT, LETTERS = "glyphs", "letters"
CAPITALS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FAMILIES = ("DejaVu*", "STIXGeneral*")  # others hold placeholders, or have tables that are not Unicode's
SIDE, MARGIN, POINTS = 32, 1, 24  # pixels; the size is reduced for glyphs that would not fit


def find_faces(format_: str, pattern: str, source: str) -> list[InputFile]:
    """The faces whose file names match, without the extension; all for an empty pattern.

    Raises:
        UserError: there is none.
    """
    names = sorted(name.removesuffix(".ttf") for name in os.listdir(folder()) if name.endswith(".ttf"))
    faces = [name for name in names if any(fnmatch.fnmatch(name, family) for family in FAMILIES)]
    found = [name for name in faces if fnmatch.fnmatch(name, pattern or "*")]
    check(bool(found), f"--input={format_}:{pattern}: no face of that name; there are {', '.join(faces)}")
    return [InputFile(name, os.path.getsize(path_of(name)), source, format_) for name in found]


def folder() -> str:
    """Where matplotlib keeps its fonts."""
    import matplotlib

    return os.path.join(matplotlib.get_data_path(), "fonts", "ttf")


def path_of(face: str) -> str:
    """The file of a face."""
    return os.path.join(folder(), f"{face}.ttf")


def read_face(file: InputFile) -> Iterator[Record | Unreadable]:
    """One record a character that has a name, in the order of code points; blank glyphs are left out, and counted."""
    from matplotlib.ft2font import FT2Font

    font = FT2Font(path_of(file.path))
    style = f"{font.family_name} {font.style_name}"
    for code in sorted(font.get_charmap()):
        name, origin = unicodedata.name(chr(code), ""), f"{file.path}:U+{code:04X}"
        letter = letter_of(chr(code)) if file.format == LETTERS else None
        if not name or (file.format == LETTERS and letter is None):
            continue
        pixels = draw(chr(code), path_of(file.path))
        if pixels.min() == 255:
            yield Unreadable(origin, f"{name.lower()} has no ink", rule="no_ink")
            continue
        about = {"face": style, "script": name.split()[0].lower(), "category": unicodedata.category(chr(code))}
        arrays = {"image": encode(pixels)}
        if letter is not None:
            arrays["label"] = to_bytes(np.array([letter], np.int32))
        yield Record(name.lower(), origin, group=f"U+{code:04X}", metadata=json.dumps(about), arrays=arrays)


def letter_of(character: str) -> int | None:
    """Which capital letter a character is, whatever its accents and its style, from 0 for A; None for none."""
    first, *marks = unicodedata.normalize("NFKD", character)
    return CAPITALS.index(first) if first in CAPITALS and all(map(unicodedata.combining, marks)) else None


def draw(character: str, path: str) -> np.ndarray:
    """A character in black on white, its ink in the middle, uint8 [SIDE, SIDE, 1]."""
    room = SIDE - 2 * MARGIN
    for points in (POINTS, 16, 10, 6):
        font = _font(path, points)
        left, top, right, bottom = font.getbbox(character, anchor="ls")
        if max(right - left, bottom - top) <= room:
            break
    picture = Image.new("L", (SIDE, SIDE), 255)
    corner = (SIDE - (right - left)) / 2 - left, (SIDE - (bottom - top)) / 2 - top
    ImageDraw.Draw(picture).text(tuple(map(round, corner)), character, fill=0, font=font, anchor="ls")
    return np.asarray(picture)[..., None]


@functools.cache
def _font(path: str, points: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, points, layout_engine=ImageFont.Layout.BASIC)
