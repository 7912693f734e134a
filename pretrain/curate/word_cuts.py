"""Where words start inside runs of characters that hold no white space: spaCy's English rules, over whole arrays.

In the order in which they apply: prefixes and suffixes come off both ends of a run as far as they go; what is left is
cut around marks inside, unless it is a URL; contractions are split; strings that are one word are put together again.
C is the number of characters of all runs together, R that of runs; runs lie one after another.
"""

import functools
import sys
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pretrain.curate import english, marks

# What a character can be, as bits.
ALPHA, LOWER, UPPER, DIGIT, QUOTE, PREFIX, SUFFIX, ICON, CURRENCY, BEFORE_STOP, OPERATOR, RELATION = (
    1 << bit for bit in range(12)
)
WHOLE_FIRST, WHOLE_SECOND = 1 << 12, 1 << 13  # the first two characters of strings that are kept whole
# A host name or address with what may stand around it: such a run is cut nowhere inside.
HOST_CHARACTER = r"A-Za-z0-9\x{a1}-\x{ffff}"
URL = (
    r"^(?:[\w+.-]{2,}://)?(?:\S+@)?"
    rf"(?:(?:\d{{1,3}}\.){{3}}\d{{1,3}}|(?:[{HOST_CHARACTER}](?:[{HOST_CHARACTER}_-]*[{HOST_CHARACTER}])?\.)+"
    r"[a-z]{2,63})(?::\d{2,5})?(?:[/?#]\S*)?$"
)


@functools.cache
def character_bits() -> np.ndarray:
    """uint16 bits of every Unicode character."""
    bits = np.zeros(sys.maxunicode + 1, np.uint16)
    for code in range(sys.maxunicode + 1):
        category = unicodedata.category(chr(code))
        if category[0] == "L":  # letters without case count as both
            lower = LOWER | BEFORE_STOP if category not in ("Lu", "Lt") else 0
            bits[code] = ALPHA | lower | (UPPER if category != "Ll" else 0)
        elif category == "So" and chr(code) != "°":
            bits[code] = ICON | PREFIX | SUFFIX
    for characters, kind in (
        ("0123456789", DIGIT | BEFORE_STOP),
        (marks.PUNCTUATION, PREFIX | SUFFIX | BEFORE_STOP),
        (marks.QUOTES, QUOTE | PREFIX | SUFFIX | BEFORE_STOP),
        (marks.CURRENCY, CURRENCY | PREFIX),
        (marks.ONLY_PREFIX, PREFIX),
        (marks.DASHES, PREFIX | SUFFIX),
        ("%²-+|", BEFORE_STOP),
        ("+-*^", OPERATOR),
        (":<>=/", RELATION),
        ({whole[0] for whole in english.wholes()}, WHOLE_FIRST),
        ({whole[1] for whole in english.wholes()}, WHOLE_SECOND),
    ):
        bits[[ord(character) for character in characters]] |= kind
    return bits


def cut(text: str, lengths_R: np.ndarray) -> np.ndarray:
    """Where words start, in runs of the given lengths that together are `text`.

    Returns:
        bool, C + 1 of them; the last is the end of the text.
    """
    if not text:
        return np.ones(1, bool)
    runs = Runs(text, lengths_R[lengths_R > 0])
    cuts_C1 = np.append(runs.is_first_C, True)
    left_R, right_R = runs.peel(cuts_C1)
    runs.cut_inside(cuts_C1, left_R, right_R)
    runs.split_contractions(cuts_C1, left_R, right_R)
    runs.keep_whole(cuts_C1)
    return cuts_C1


class Runs:
    """Runs of characters, each character with its bits and those of its neighbours in the run."""

    def __init__(self, text: str, lengths_R: np.ndarray):
        self.text, self.lengths_R = text, lengths_R
        self.codes_C = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        self.ends_R = np.cumsum(lengths_R)
        self.starts_R = self.ends_R - lengths_R
        self.is_first_C, self.is_last_C = np.zeros((2, len(self.codes_C)), bool)
        self.is_first_C[self.starts_R] = True
        self.is_last_C[self.ends_R - 1] = True
        self.bits_C = character_bits()[self.codes_C]
        self.before_C, self.after_C = self.before(self.bits_C), self.after(self.bits_C)
        is_stop = self.codes_C == ord(".")
        self.is_stops_C = is_stop & (self.before(is_stop) | self.after(is_stop))  # of two and more in a row

    def before(self, values_C: np.ndarray) -> np.ndarray:
        """For each character the value of the one before it in its run, or 0."""
        shifted = np.zeros_like(values_C)
        shifted[1:] = values_C[:-1]
        shifted[self.is_first_C] = 0
        return shifted

    def after(self, values_C: np.ndarray) -> np.ndarray:
        """For each character the value of the one after it in its run, or 0."""
        shifted = np.zeros_like(values_C)
        shifted[:-1] = values_C[1:]
        shifted[self.is_last_C] = 0
        return shifted

    def peel(self, cuts_C1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cuts prefixes and suffixes off, one character each but for rows of full stops, 's and units.

        Returns:
            Where what is left of each run starts and ends; the two are equal where nothing is.
        """
        codes_C, bits_C, index_C = self.codes_C, self.bits_C, np.arange(len(self.codes_C))
        is_prefix = has(bits_C, PREFIX) | self.is_stops_C | ((codes_C == ord("+")) & ~has(self.after_C, DIGIT))
        left_R = np.minimum.reduceat(np.where(is_prefix, len(codes_C), index_C), self.starts_R)
        left_R = np.minimum(left_R, self.ends_R)
        is_upper = has(bits_C, UPPER)
        ends_sentence = has(self.before_C, BEFORE_STOP) | self.before(is_upper & self.before(is_upper))
        is_s = np.isin(codes_C, (ord("s"), ord("S"))) & self.before(
            np.isin(codes_C, [ord(mark) for mark in marks.APOSTROPHES])
        )
        after_digit = (codes_C == ord("+")) | has(bits_C, CURRENCY)
        is_suffix = has(bits_C, SUFFIX) | self.is_stops_C | ((codes_C == ord(".")) & ends_sentence)
        is_suffix |= is_s | (after_digit & has(self.before_C, DIGIT))
        right_R = np.maximum.reduceat(np.where(is_suffix, -1, index_C), self.starts_R) + 1
        right_R = np.maximum(right_R, left_R)
        is_peeled = (index_C < self.of_run(left_R)) | (index_C >= self.of_run(right_R))
        glued = (self.is_stops_C & self.before(self.is_stops_C)) | is_s
        cuts_C1[:-1] |= is_peeled & ~(glued & is_peeled & self.before(is_peeled))
        cuts_C1[left_R] = cuts_C1[right_R] = True
        return left_R, self._cut_units(cuts_C1, left_R, right_R)

    def _cut_units(self, cuts_C1: np.ndarray, left_R: np.ndarray, right_R: np.ndarray) -> np.ndarray:
        """Cuts a unit off a number at the end of what is left of a run; returns where that ends then."""
        right_R = right_R.copy()
        for length, units in by_length(english.UNITS).items():
            row = np.flatnonzero(right_R - length > left_R)
            start = right_R[row] - length
            row = row[has(self.bits_C[start - 1], DIGIT) & self.equal_any(start, length, units)]
            right_R[row] -= length
            cuts_C1[right_R[row]] = True
        return right_R

    def cut_inside(self, cuts_C1: np.ndarray, left_R: np.ndarray, right_R: np.ndarray) -> None:
        """Cuts around marks between letters or digits, in runs that are no URL."""
        codes_C = self.codes_C
        index_C = np.arange(len(codes_C))
        inside = (index_C >= self.of_run(left_R)) & (index_C < self.of_run(right_R))
        before_C, after_C = self.before(inside) * self.before_C, self.after(inside) * self.after_C
        single = has(self.bits_C, OPERATOR) & has(before_C, DIGIT)
        single &= has(after_C, DIGIT) | self.after(inside & (codes_C == ord("-")))
        is_stop = (codes_C == ord(".")) & ~self.is_stops_C
        single |= is_stop & has(before_C, LOWER | QUOTE) & has(after_C, UPPER | QUOTE)
        single |= (codes_C == ord(",")) & has(before_C, ALPHA) & has(after_C, ALPHA)
        single |= has(self.bits_C, RELATION) & has(before_C, ALPHA | DIGIT) & has(after_C, ALPHA)
        single |= has(self.bits_C, ICON) | (codes_C == ord("…"))
        starts, ends = [np.flatnonzero(single & inside)] * 2
        pieces = [(starts, ends), self._rows(self.is_stops_C & inside)]
        for mark, longest in marks.HYPHENS:
            first, last = self._rows((codes_C == ord(mark)) & inside)
            fits = (last - first < longest) & has(before_C[first], ALPHA | DIGIT) & has(after_C[last], ALPHA)
            pieces.append((first[fits], last[fits]))
        first, last = (np.concatenate(places) for places in zip(*pieces, strict=True))
        is_cut = np.zeros(len(codes_C) + 1, bool)
        is_cut[first] = is_cut[last + 1] = True
        is_cut[:-1] &= inside
        is_cut[left_R] = False
        self._keep_urls(is_cut, left_R, right_R)
        cuts_C1 |= is_cut

    def _rows(self, is_in_C: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and last character of each row of marked characters in a run."""
        return np.flatnonzero(is_in_C & ~self.before(is_in_C)), np.flatnonzero(is_in_C & ~self.after(is_in_C))

    def _keep_urls(self, is_cut_C1: np.ndarray, left_R: np.ndarray, right_R: np.ndarray) -> None:
        """Takes the cuts out of what is a URL."""
        cuts_before, stops_before = np.cumsum(is_cut_C1), np.cumsum(self.codes_C == ord("."))
        last_R = np.maximum(right_R - 1, 0)
        is_cut_R = cuts_before[last_R] > cuts_before[np.minimum(left_R, last_R)]
        has_stop_R = stops_before[last_R] > stops_before[np.minimum(left_R, last_R)]
        row = np.flatnonzero(is_cut_R & has_stop_R)
        is_url = pc.match_substring_regex(self.strings(left_R[row], right_R[row]), URL)
        row = row[is_url.to_numpy(zero_copy_only=False)]
        index_C = np.arange(len(self.codes_C))
        is_kept = np.zeros(len(left_R), bool)
        is_kept[row] = True
        is_cut_C1[:-1] &= ~(self.of_run(is_kept) & (index_C > self.of_run(left_R)))

    def keep_whole(self, cuts_C1: np.ndarray) -> None:
        """Takes the cuts out of strings that are one word, wherever one fits between two cuts; longer ones first."""
        start = np.flatnonzero(cuts_C1[:-1] & has(self.bits_C, WHOLE_FIRST) & has(self.after_C, WHOLE_SECOND))
        room = self.of_run(self.ends_R)[start] - start
        is_taken = np.zeros(len(self.codes_C), bool)
        for length, wholes in by_length(english.wholes()).items():
            fits = start[room >= length]
            fits = fits[cuts_C1[fits + length] & ~is_taken[fits] & ~is_taken[fits + length - 1]]
            for position in apart(fits[self.equal_any(fits, length, wholes)], length):
                is_taken[position : position + length] = True
                cuts_C1[position + 1 : position + length] = False

    def split_contractions(self, cuts_C1: np.ndarray, left_R: np.ndarray, right_R: np.ndarray) -> None:
        """Splits what is left of a run, if nothing is cut inside, where it is a contraction."""
        inner = np.cumsum(cuts_C1)
        row = np.flatnonzero((right_R > left_R) & (inner[right_R - 1] == inner[left_R]))
        words = english.contractions()
        found = pc.index_in(self.strings(left_R[row], right_R[row]), pa.array(words, pa.large_string()))
        known = found.is_valid().to_numpy(zero_copy_only=False)
        places = list(words.values())
        for start, word in zip(left_R[row[known]].tolist(), found.drop_null().to_pylist(), strict=True):
            cuts_C1[[start + place for place in places[word]]] = True

    def of_run(self, values_R: np.ndarray) -> np.ndarray:
        """A value of each run, for each of its characters."""
        return np.repeat(values_R, self.lengths_R)

    def equal_any(self, start: np.ndarray, length: int, words: tuple[str, ...]) -> np.ndarray:
        """Whether the `length` characters from each start on are one of `words`, which all have that length."""
        kind = pa.binary(4 * length)
        windows = self.codes_C[start[:, None] + np.arange(length)]
        found = pa.Array.from_buffers(kind, len(start), [None, pa.py_buffer(windows.tobytes())])
        wanted = pa.array([word.encode("utf-32-le") for word in words], kind)
        return pc.is_in(found, wanted).to_numpy(zero_copy_only=False)

    def strings(self, start: np.ndarray, end: np.ndarray) -> pa.LargeStringArray:
        """The characters from each start to its end; the ranges come in order."""
        places = np.concatenate([[0], np.stack([start, end], 1).ravel(), [len(self.codes_C)]])
        return spans(self.text, places)[1:-1:2]


def has(bits: np.ndarray, kinds: int) -> np.ndarray:
    """Whether a character is of one of these kinds."""
    return (bits & kinds) != 0


def by_length(words: tuple[str, ...]) -> dict[int, tuple[str, ...]]:
    """Words by their number of characters, the longest first."""
    lengths = sorted(set(map(len, words)), reverse=True)
    return {length: tuple(word for word in words if len(word) == length) for length in lengths}


def apart(positions: np.ndarray, distance: int) -> list[int]:
    """Of rising positions the first, and then each next one at least `distance` further."""
    chosen: list[int] = []
    for position in positions.tolist():
        if not chosen or position >= chosen[-1] + distance:
            chosen.append(position)
    return chosen


def spans(text: str, places: np.ndarray) -> pa.LargeStringArray:
    """What lies between one place and the next, places being character positions in rising order."""
    data = text.encode()
    starts = places.astype(np.int64, copy=False)
    if len(data) > len(text):
        starts = np.append(np.flatnonzero((np.frombuffer(data, np.uint8) & 0xC0) != 0x80), len(data))[places]
    return pa.LargeStringArray.from_buffers(len(places) - 1, pa.py_buffer(starts), pa.py_buffer(data))
