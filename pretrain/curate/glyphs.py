"""Pictures with captions that are there offline: the glyphs of matplotlib's bundled fonts, and their Unicode names.

    glyphs             every face of the DejaVu and STIX families, about 53,000 pairs
    glyphs:PATTERN     faces by file name: "glyphs:DejaVuSans*", "glyphs:STIXGeneral"

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

from pretrain.core.errors import check
from pretrain.core.images import encode
from pretrain.curate.documents import Record, Unreadable
from pretrain.curate.inputs import InputFile

FORMAT = "glyphs"
FAMILIES = ("DejaVu*", "STIXGeneral*")  # others hold placeholders, or have tables that are not Unicode's
SIDE, MARGIN, POINTS = 32, 1, 24  # pixels; the size is reduced for glyphs that would not fit


def find_faces(pattern: str, source: str) -> list[InputFile]:
    """The faces whose file names match, without the extension; all for an empty pattern.

    Raises:
        UserError: there is none.
    """
    names = sorted(name.removesuffix(".ttf") for name in os.listdir(folder()) if name.endswith(".ttf"))
    faces = [name for name in names if any(fnmatch.fnmatch(name, family) for family in FAMILIES)]
    found = [name for name in faces if fnmatch.fnmatch(name, pattern or "*")]
    check(bool(found), f"--input=glyphs:{pattern}: no face of that name; there are {', '.join(faces)}")
    return [InputFile(name, os.path.getsize(path_of(name)), source, FORMAT) for name in found]


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
        if not name:
            continue
        pixels = draw(chr(code), path_of(file.path))
        if pixels.min() == 255:
            yield Unreadable(origin, f"{name.lower()} has no ink", rule="no_ink")
            continue
        about = {"face": style, "script": name.split()[0].lower(), "category": unicodedata.category(chr(code))}
        yield Record(
            name.lower(), origin, group=f"U+{code:04X}", metadata=json.dumps(about), arrays={"image": encode(pixels)}
        )


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
