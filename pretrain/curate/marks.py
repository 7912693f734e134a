# ruff: noqa: RUF001 — signs that look alike are what this file is about
"""Sets of characters that rules about words and lines speak of."""

import string

APOSTROPHES = "'’"
DASHES = "—–"
PUNCTUATION = "…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪"
QUOTES = "'\"”“`‘´’‚„»«「」『』（）〔〕【】《》〈〉〈〉⟦⟧"
CURRENCY = "$£€¥฿₽﷼₴" + "".join(map(chr, range(0x20A0, 0x20C0)))
ONLY_PREFIX = "§%="
HYPHENS = (("-", 3), ("—", 2), ("–", 1), ("~", 1))  # and how many in a row may stand between words
# Characters that end a sentence: the Unicode property Sentence_Terminal, and those of Khmer.
TERMINAL = (
    "!.?։؝؞؟۔܀܁܂߹࠷࠹࠽࠾।॥၊။፧፨᙮᜵᜶។៕៖៙៚᠃᠉᥄᥅᪨᪩᪪᪫᭚᭛᭞᭟᭽᭾᰻᰼᱾᱿‼‽⁇⁈⁉⸮⸼⹓⹔。꓿꘎꘏꛳꛷꡶꡷꣎꣏꤯꧈꧉꩝꩞꩟꫰꫱꯫﹒﹖﹗！．？｡"
    "𐩖𐩗𐽕𐽖𐽗𐽘𐽙𐾆𐾇𐾈𐾉𑁇𑁈𑂾𑂿𑃀𑃁𑅁𑅂𑅃𑇅𑇆𑇍𑇞𑇟𑈸𑈹𑈻𑈼𑊩𑑋𑑌𑗂𑗃𑗉𑗊𑗋𑗌𑗍𑗎𑗏𑗐𑗑𑗒𑗓𑗔𑗕𑗖𑗗𑙁𑙂𑜼𑜽𑜾𑥄𑥆𑩂𑩃𑪛𑪜𑱁𑱂𑻷𑻸𑽃𑽄𖩮𖩯𖫵𖬷𖬸𖭄𖺘𛲟𝪈"
)
# Words of these alone are symbols, for the number of words and their mean length.
SYMBOLS = string.punctuation + TERMINAL + "—–…”“„’´«»►∶１％〈〉《》「」【】、，：；（）～━"


def literal(text: str) -> str:
    """A regular expression (RE2) that matches a text and nothing else."""
    return "".join(f"\\x{{{ord(character):x}}}" for character in text)


def in_class(characters: str) -> str:
    """The inside of a character class of a regular expression (RE2)."""
    return literal("".join(sorted(set(characters))))
