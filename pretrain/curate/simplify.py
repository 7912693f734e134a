"""Text reduced to what counts when documents are compared: words of lower-case letters and digits.

Case, punctuation, symbols, control characters and diacritics go (NFKD, marks dropped), digits of all scripts become
ASCII, white space becomes single or several plain spaces. Scripts written without spaces (Chinese, Japanese, Thai …)
have a word a character. ASCII text goes through one table; only runs of other characters are looked at one by one.
"""

import functools
import re
import unicodedata
from collections.abc import Iterable

SPACES = bytes(range(9, 14)) + bytes(range(28, 33))
DROPPED = bytes(byte for byte in range(128) if byte not in SPACES and not chr(byte).isalnum())
LOWER = bytes(32 if byte in SPACES else ord(chr(byte).lower()) if byte < 128 else byte for byte in range(256))
ZEROS = bytes(48 if 48 <= byte < 58 else byte for byte in LOWER)  # `LOWER`, and digits are all 0
NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
# Thai and Lao, Myanmar, Khmer, kana, ideographs.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


def simplify(texts: Iterable[str], digits: bool = True) -> list[bytes]:
    """Each text as UTF-8 words between spaces; `digits=False` makes all digits 0."""
    table = LOWER if digits else ZEROS
    return [_to_ascii_rules(text).translate(table, DROPPED) for text in texts]


def _to_ascii_rules(text: str) -> bytes:
    if text.isascii():
        return text.encode()
    return NOT_ASCII.sub(_simplify_match, text).encode()


def _simplify_match(match: re.Match) -> str:
    return "".join(map(_simplify_character, match[0]))


@functools.lru_cache(1 << 17)
def _simplify_character(character: str) -> str:
    """A character that is not ASCII by the rules above; what it shares with ASCII (case, punctuation) is left."""
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold())
    return "".join(map(_simplify_part, decomposed))


def _simplify_part(character: str) -> str:
    if character.isascii():
        return character  # of a compatibility form: the table decides
    if character.isspace():
        return " "
    if character.isalpha():
        return f" {character} " if UNSPACED.match(character) else character
    return str(unicodedata.decimal(character)) if character.isdecimal() else ""
